"""The cache of principals: it follows invalidations, survives an absent authsvc for a while, and lets nobody new in then."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from naru import api_key, deadline
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.convert import principal_to_proto, timestamp_from_proto, timestamp_to_proto
from naru.credentials import CachedAuthenticator
from naru.errors import NaruError, Reason, invalid_api_key, unavailable
from naru.identity import Principal, Scopes, ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.lifecycle import Lifecycle
from naru.metrics import Metrics
from naru.refusals import WRONG_KEYS_BURST
from naru.server import GrpcServer
from naru.testing.clock import FakeClock
from tests.support import authenticating

TOKEN = "t" * 40
KEY = api_key.generate(os.urandom)
KEY_ID = api_key.parse(KEY).key_id


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No call is asked again because a busy machine took a second for it; `test_credentials_replicas` is about that."""
    monkeypatch.setattr("naru.credentials._FIRST_TIMEOUT_SECONDS", 20.0)


class Nobody:
    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        raise invalid_api_key()


class AuthPeer(auth_service_pb2_grpc.AuthServiceServicer):
    """An authsvc that tells what the test wants told, and counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.batches: list[int] = []
        self.sequence = 0
        self.epoch = "one"
        self.revoked = False
        self.wrong: set[str] = set()
        self.expire_time = 0.0
        self.scopes = Scopes()
        self.principal: Principal | None = None
        self.answer = asyncio.Event()
        self.answer.set()
        self.uses: list[dict[str, float]] = []
        self.messages: asyncio.Queue[auth_service_pb2.WatchInvalidationsResponse | None] = asyncio.Queue()

    async def Authenticate(
        self, request: auth_service_pb2.AuthenticateRequest, context: object
    ) -> auth_service_pb2.AuthenticateResponse:
        self.calls += 1
        as_of, revoked = self.sequence, self.revoked or request.credential in self.wrong
        await self.answer.wait()
        if revoked:
            raise invalid_api_key()
        response = auth_service_pb2.AuthenticateResponse(
            principal=principal_to_proto(self.principal or Principal("w", key_id=KEY_ID, scopes=self.scopes)),
            as_of=as_of,
            epoch=self.epoch,
        )
        if self.expire_time:
            response.expire_time.CopyFrom(timestamp_to_proto(self.expire_time))
        return response

    async def BatchAuthenticate(
        self, request: auth_service_pb2.BatchAuthenticateRequest, context: object
    ) -> auth_service_pb2.BatchAuthenticateResponse:
        self.batches.append(len(request.requests))
        return await authenticating.answered(self.Authenticate, request, context)

    async def NoteKeyUses(
        self, request: auth_service_pb2.NoteKeyUsesRequest, context: object
    ) -> auth_service_pb2.NoteKeyUsesResponse:
        self.uses.append({use.key_id: timestamp_from_proto(use.time) for use in request.uses})
        return auth_service_pb2.NoteKeyUsesResponse()

    async def WatchInvalidations(
        self, request: object, context: object
    ) -> AsyncIterator[auth_service_pb2.WatchInvalidationsResponse]:
        yield auth_service_pb2.WatchInvalidationsResponse(sequence=self.sequence, epoch=self.epoch)
        while (message := await self.messages.get()) is not None:
            yield message

    def revoke(self) -> None:
        self.sequence += 1
        self.revoked = True
        self.messages.put_nowait(
            auth_service_pb2.WatchInvalidationsResponse(sequence=self.sequence, epoch=self.epoch, key_ids=[KEY_ID])
        )


class World:
    """An authsvc on a port and a cache in front of it."""

    def __init__(self) -> None:
        self.peer = AuthPeer()
        self.clock = FakeClock()

    async def __aenter__(self) -> World:
        self.server = GrpcServer(
            CallerAuthenticator(ServiceTokens({ServiceName.EDGE: TOKEN}), Nobody()), metrics=Metrics()
        )
        self.server.add(
            auth_service_pb2_grpc.add_AuthServiceServicer_to_server, self.peer, "naru.api.auth.v1.AuthService"
        )
        port = await self.server.start("127.0.0.1", 0)
        self.client = ServiceClient(f"127.0.0.1:{port}", name="authsvc", service_token=TOKEN)
        self.cache = CachedAuthenticator(self.client, self.clock, Lifecycle().background)
        self.watcher = asyncio.create_task(self.cache.watch())
        await until(lambda: self.cache.watching)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.watcher.cancel()
        await asyncio.gather(self.watcher, return_exceptions=True)
        await self.client.close()
        await self.server.stop(0)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for at most 20 seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_refused_key_is_asked_about_once() -> None:
    """A wrong key is asked about once in ten seconds; an invalidation of it, such as an unblock, is heard at once."""
    async with World() as world:
        world.peer.revoked = True
        for _ in range(5):
            with pytest.raises(NaruError) as failure:
                await world.cache.authenticate(KEY, "192.0.2.1")
            assert failure.value == invalid_api_key()
        assert world.peer.calls == 1
        world.clock.advance(10)
        with pytest.raises(NaruError):
            await world.cache.authenticate(KEY, "192.0.2.1")
        assert world.peer.calls == 2
        world.peer.revoke()
        world.peer.revoked = False

        async def works() -> bool:
            try:
                return (await world.cache.authenticate(KEY, "192.0.2.1")).key_id == KEY_ID
            except NaruError:
                return False

        async with asyncio.timeout(20):
            while not await works():
                await asyncio.sleep(0.005)
        assert world.peer.calls == 3


async def test_an_address_that_guesses_is_stopped() -> None:
    """After too many different wrong keys an address is asked to wait, without asking authsvc; known keys go on."""
    async with World() as world:
        assert await world.cache.authenticate(KEY, "192.0.2.1")
        world.peer.revoked = True
        for _ in range(WRONG_KEYS_BURST):
            with pytest.raises(NaruError):
                await world.cache.authenticate(api_key.generate(os.urandom), "192.0.2.1")
        calls = world.peer.calls
        with pytest.raises(NaruError) as failure:
            await world.cache.authenticate(api_key.generate(os.urandom), "192.0.2.1")
        assert failure.value.reason is Reason.RATE_LIMIT_EXCEEDED
        assert world.peer.calls == calls
        assert (await world.cache.authenticate(KEY, "192.0.2.1")).key_id == KEY_ID


async def test_uses_are_reported_together() -> None:
    """However often a key is used, authsvc hears of it when uses are handed on, once."""
    async with World() as world:
        for _ in range(3):
            world.clock.advance(1)
            await world.cache.authenticate(KEY)
        await world.cache.uses.flush()
        await world.cache.uses.flush()
        assert world.peer.uses == [{KEY_ID: world.clock.time()}]


async def test_a_key_is_looked_up_once() -> None:
    """Later and concurrent requests with one key cost no call."""
    async with World() as world:
        await asyncio.gather(*[world.cache.authenticate(KEY) for _ in range(20)])
        assert (await world.cache.authenticate(KEY)).key_id == KEY_ID
        assert world.cache.known(KEY) is not None
        assert world.peer.calls == 1


async def test_a_malformed_key_costs_no_call() -> None:
    """The checksum is verified before anybody is asked."""
    async with World() as world:
        for wrong in ("", "sk-other", KEY[:-1] + ("0" if KEY[-1] != "0" else "1")):
            with pytest.raises(NaruError) as raised:
                await world.cache.authenticate(wrong)
            assert raised.value.reason is Reason.INVALID_API_KEY
        assert world.peer.calls == 0


async def test_keys_that_are_asked_about_together_share_a_call() -> None:
    """However many new keys come at the same time: one call, each with its own answer; a token goes by itself."""
    token = "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl"
    async with World() as world:
        keys = [api_key.generate(os.urandom) for _ in range(300)]
        found = await asyncio.gather(*map(world.cache.authenticate, [*keys, token]))
        assert len(found) == 301
        assert world.peer.batches == [256, 44]
        assert world.peer.calls == 301


async def test_a_wrong_key_is_no_matter_of_those_asked_about_with_it() -> None:
    """Each is refused, or let in, for itself."""
    async with World() as world:
        wrong = api_key.generate(os.urandom)
        world.peer.wrong = {wrong}
        found, refused = await asyncio.gather(
            world.cache.authenticate(KEY), world.cache.authenticate(wrong), return_exceptions=True
        )
        assert isinstance(found, Principal)
        assert refused == invalid_api_key()
        assert world.peer.batches == [2]


async def test_a_revoked_key_is_dropped_when_its_invalidation_comes() -> None:
    """The stream ends a cached entry."""
    async with World() as world:
        await world.cache.authenticate(KEY)
        world.peer.revoke()
        await until(lambda: world.cache.known(KEY) is None)
        with pytest.raises(NaruError):
            await world.cache.authenticate(KEY)


async def test_an_answer_older_than_an_invalidation_is_not_kept() -> None:
    """Answered before the revocation, received after it: the race that would keep a revoked key alive."""
    async with World() as world:
        world.peer.answer.clear()
        lookup = asyncio.create_task(world.cache.authenticate(KEY))
        await until(lambda: world.peer.calls == 1)
        world.peer.revoke()
        await until(lambda: world.cache._invalidated.get(KEY_ID) == 1)
        world.peer.answer.set()
        with pytest.raises(NaruError):
            await lookup
        assert world.cache.known(KEY) is None


async def test_an_answer_older_than_the_stream_is_not_kept() -> None:
    """Answered, revoked while nobody listened, then the stream connects: the answer is not put into the fresh cache."""
    async with World() as world:
        world.peer.answer.clear()
        lookup = asyncio.create_task(world.cache.authenticate(KEY))
        await until(lambda: world.peer.calls == 1)
        world.peer.sequence += 1
        world.peer.revoked = True
        world.peer.messages.put_nowait(None)  # the stream ends, and connects again at number 1
        await until(lambda: not world.cache.watching)
        await until(lambda: world.cache.watching)
        world.peer.answer.set()
        with pytest.raises(NaruError):
            await lookup
        assert world.cache.known(KEY) is None


async def test_an_expired_key_is_not_used_from_the_cache() -> None:
    """The expiry that came with the answer is kept without asking again."""
    async with World() as world:
        world.peer.expire_time = world.clock.time() + 60
        await world.cache.authenticate(KEY)
        world.clock.advance(61)
        assert world.cache.known(KEY) is None


async def test_another_epoch_clears_the_cache() -> None:
    """When the numbering begins anew nothing that was known counts."""
    async with World() as world:
        await world.cache.authenticate(KEY)
        world.peer.messages.put_nowait(auth_service_pb2.WatchInvalidationsResponse(sequence=0, epoch="two"))
        await until(lambda: world.cache.known(KEY) is None)


async def test_a_caller_in_a_hurry_does_not_fail_the_others() -> None:
    """The lookup they share has its own time, not what is left to the first of them."""
    async with World() as world:

        async def hurried() -> None:
            deadline.enter(0.001)
            await world.cache.authenticate(KEY)

        _, principal = await asyncio.gather(hurried(), world.cache.authenticate(KEY), return_exceptions=True)
        assert isinstance(principal, Principal)
        assert world.peer.calls == 1


async def test_known_principals_go_on_for_a_while_when_authsvc_is_away() -> None:
    """Up to a minute for those who are known; never for anybody else."""
    async with World() as world:
        await world.cache.authenticate(KEY)
        await world.server.stop(0)
        await until(lambda: not world.cache.watching)
        assert world.cache.known(KEY) is not None
        world.clock.advance(30)
        assert world.cache.known(KEY) is None
        assert (await world.cache.authenticate(KEY)).key_id == KEY_ID
        with pytest.raises(NaruError) as raised:
            await world.cache.authenticate(api_key.generate(os.urandom))
        assert raised.value.reason is Reason.SERVICE_UNAVAILABLE
        world.clock.advance(31)
        with pytest.raises(NaruError) as raised:
            await world.cache.authenticate(KEY)
        assert raised.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_key_bound_to_a_network_is_refused_elsewhere() -> None:
    """The address is checked on every use, cached or not."""
    async with World() as world:
        world.peer.scopes = Scopes(source_cidrs=("10.0.0.0/8",))
        for address in ("10.1.2.3", "::ffff:10.1.2.3"):
            assert (await world.cache.authenticate(KEY, address)).key_id == KEY_ID
        for address in ("192.168.1.1", "", "nonsense"):
            with pytest.raises(NaruError) as raised:
                await world.cache.authenticate(KEY, address)
            assert raised.value.reason is Reason.PERMISSION_DENIED


class FailingClient(ServiceClient):
    """A client whose stream fails when the test says so."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1:1", name="authsvc")
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @asynccontextmanager
    async def stream(self, *_: object, **__: object) -> AsyncIterator[AsyncIterator[None]]:
        async def messages() -> AsyncIterator[None]:
            yield await self.failure

        yield messages()


@pytest.mark.parametrize("turns", range(6))
async def test_a_watch_ends_though_its_stream_fails_at_that_moment(turns: int) -> None:
    """However many turns of the loop lie between the two: authsvc and whoever watches it are often stopped together."""
    client = FailingClient()
    watch = asyncio.create_task(CachedAuthenticator(client, FakeClock(), Lifecycle().background).watch())
    await asyncio.sleep(0.01)
    client.failure.set_exception(unavailable("authsvc"))
    for _ in range(turns):
        await asyncio.sleep(0)
    watch.cancel()
    await asyncio.wait([watch], timeout=20)
    assert watch.cancelled()
    await client.close()


async def test_a_users_tokens_follow_the_users_invalidations() -> None:
    """What a user's token means is kept per workspace asked for, and forgotten when the user is no longer what it was."""
    token = "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl"
    async with World() as world:
        world.peer.principal = Principal("w1", user_id="u1")
        for workspace_id in ("", "w1", ""):
            assert (await world.cache.authenticate(token, "", workspace_id)).user_id == "u1"
        assert world.peer.calls == 2
        assert world.cache.known(token, "", "w1") is not None
        # Not the user's: looked up each time, and never in the way of others.
        await world.cache.authenticate(token, "", "w9")
        assert world.cache.known(token, "", "w9") is None
        world.peer.sequence += 1
        message = auth_service_pb2.WatchInvalidationsResponse(sequence=1, epoch="one", user_ids=["u1"])
        world.peer.messages.put_nowait(message)
        await until(lambda: world.cache.known(token) is None and world.cache.known(token, "", "w1") is None)
        await world.cache.authenticate(token)
        assert world.peer.calls == 4


async def test_an_answer_from_before_a_users_invalidation_is_not_kept() -> None:
    """An answer given before the user was invalidated, which comes after that, is asked for again."""
    token = "eyJhbGciOiJFZERTQSJ9.e30.c2lnbmF0dXJl"
    async with World() as world:
        world.peer.principal = Principal("w1", user_id="u1")
        other = f"{token}YQ"
        await world.cache.authenticate(other)
        world.peer.answer.clear()
        lookup = asyncio.create_task(world.cache.authenticate(token))
        await until(lambda: world.peer.calls == 2)
        world.peer.sequence, world.peer.revoked = 1, True
        message = auth_service_pb2.WatchInvalidationsResponse(sequence=1, epoch="one", user_ids=["u1"])
        world.peer.messages.put_nowait(message)
        await until(lambda: world.cache.known(other) is None)
        world.peer.answer.set()
        with pytest.raises(NaruError) as raised:
            await lookup
        assert raised.value.reason is Reason.INVALID_API_KEY
        assert world.cache.known(token) is None


async def test_a_users_keys_that_were_refused_are_asked_about_again() -> None:
    """Nobody knows whose a refused key is: when any user changes, such as one who is unblocked, it may hold."""
    async with World() as world:
        world.peer.revoked = True
        with pytest.raises(NaruError):
            await world.cache.authenticate(KEY)
        world.peer.sequence, world.peer.revoked = 1, False
        message = auth_service_pb2.WatchInvalidationsResponse(sequence=1, epoch="one", user_ids=["u1"])
        world.peer.messages.put_nowait(message)
        await until(lambda: KEY not in world.cache._refused)
        assert (await world.cache.authenticate(KEY)).key_id == KEY_ID
