"""The cache of principals before two replicas of authsvc: their answers and invalidations are numbered by one database."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from naru import api_key
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.balancing import target_of
from naru.client import ServiceClient
from naru.convert import principal_to_proto
from naru.credentials import CachedAuthenticator
from naru.errors import NaruError, Reason, invalid_api_key
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.lifecycle import Lifecycle
from naru.metrics import Metrics
from naru.server import GrpcServer
from naru.testing.clock import FakeClock
from tests.support import authenticating
from tests.support.service_tokens import EDGE_TOKENS, NobodyKnown

KEY = api_key.generate(os.urandom)
KEY_ID = api_key.parse(KEY).key_id


@dataclass
class Database:
    """What all replicas read."""

    sequence: int = 0
    revoked: bool = False

    def change(self, *, revoked: bool) -> None:
        """Revokes the key, or unblocks it."""
        self.sequence += 1
        self.revoked = revoked


class Replica(auth_service_pb2_grpc.AuthServiceServicer):
    """Answers with what the database said when it was asked, as late as the test wants."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.asked = 0
        self.watched = False
        self.answer = asyncio.Event()
        self.answer.set()
        self.told = asyncio.Queue[int]()

    async def Authenticate(self, request: object, context: object) -> auth_service_pb2.AuthenticateResponse:
        self.asked += 1
        as_of, revoked = self._database.sequence, self._database.revoked
        await self.answer.wait()
        if revoked:
            raise invalid_api_key()
        principal = principal_to_proto(Principal("w", key_id=KEY_ID))
        return auth_service_pb2.AuthenticateResponse(principal=principal, as_of=as_of, epoch="one")

    async def BatchAuthenticate(
        self, request: auth_service_pb2.BatchAuthenticateRequest, context: object
    ) -> auth_service_pb2.BatchAuthenticateResponse:
        return await authenticating.answered(self.Authenticate, request, context)

    async def WatchInvalidations(
        self, request: object, context: object
    ) -> AsyncIterator[auth_service_pb2.WatchInvalidationsResponse]:
        self.watched = True
        yield auth_service_pb2.WatchInvalidationsResponse(sequence=self._database.sequence, epoch="one")
        while True:
            sequence = await self.told.get()
            yield auth_service_pb2.WatchInvalidationsResponse(sequence=sequence, epoch="one", key_ids=[KEY_ID])


@dataclass
class World:
    """Two replicas, and a cache before both."""

    cache: CachedAuthenticator
    replicas: list[Replica]
    servers: list[GrpcServer]
    database: Database = field(default_factory=Database)

    def hold_answers(self) -> None:
        """From now on answers are late."""
        for replica in self.replicas:
            replica.answer.clear()

    def let_answer(self) -> None:
        """Answers arrive."""
        for replica in self.replicas:
            replica.answer.set()

    def tell(self) -> None:
        """The replica that is watched hears of the newest change and tells it."""
        for replica in self.replicas:
            replica.told.put_nowait(self.database.sequence)

    @property
    def asked(self) -> list[int]:
        """How often each replica was asked."""
        return [replica.asked for replica in self.replicas]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    database = Database()
    replicas = [Replica(database), Replica(database)]
    async with AsyncExitStack() as stack:
        servers, ports = [], []
        for replica in replicas:
            server = GrpcServer(CallerAuthenticator(ServiceTokens(EDGE_TOKENS), NobodyKnown()), metrics=Metrics())
            server.add(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, replica, "naru.api.auth.v1.AuthService")
            ports.append(await server.start("127.0.0.1", 0))
            stack.push_async_callback(server.stop, 0)
            servers.append(server)
        target = target_of(",".join(f"127.0.0.1:{port}" for port in ports))
        client = ServiceClient(target, name="authsvc", service_token=EDGE_TOKENS[ServiceName.EDGE])
        stack.push_async_callback(client.close)
        cache = CachedAuthenticator(client, FakeClock(), Lifecycle().background)
        await stack.enter_async_context(_watching(cache))
        await until(lambda: cache.watching)
        made = World(cache, replicas, servers, database)
        # Both are connected once both were asked.
        async with asyncio.timeout(20):
            while not all(made.asked):
                await cache.authenticate(KEY)
                cache._entries.clear()
        yield made


@asynccontextmanager
async def _watching(cache: CachedAuthenticator) -> AsyncIterator[None]:
    task = asyncio.create_task(cache.watch())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], object]) -> None:
    """Waits for at most 20 seconds."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def refused(world: World) -> bool:
    """Whether the key is no good."""
    try:
        await world.cache.authenticate(KEY)
    except NaruError as error:
        return error.reason is Reason.INVALID_API_KEY
    return False


@pytest.mark.parametrize("turn", [0, 1])
async def test_an_answer_of_one_replica_from_before_an_invalidation_of_the_other(world: World, turn: int) -> None:
    """Answered before the revocation by either replica, received after the one that is watched told of it: not kept."""
    for _ in range(turn):
        await world.cache.authenticate(KEY)
        world.cache._entries.clear()
    world.hold_answers()
    before = sum(world.asked)
    lookup = asyncio.create_task(refused(world))
    await until(lambda: sum(world.asked) > before)
    world.database.change(revoked=True)
    world.tell()
    await until(lambda: world.cache._invalidated.get(KEY_ID) == 1)
    world.let_answer()
    assert await lookup
    assert world.cache.known(KEY) is None


async def test_an_answer_that_is_ahead_of_the_replica_that_is_watched(world: World) -> None:
    """An answer from after a change stays when the watched replica tells of that change later, and goes with the next."""
    world.database.change(revoked=False)
    await world.cache.authenticate(KEY)
    world.tell()
    await until(lambda: world.cache._invalidated.get(KEY_ID) == 1)
    assert world.cache.known(KEY) is not None
    world.database.change(revoked=True)
    world.tell()
    await until(lambda: world.cache.known(KEY) is None)
    assert await refused(world)


async def test_a_refusal_from_before_a_change_is_not_kept(world: World) -> None:
    """Refused by one replica, unblocked and told of by the other before the refusal arrives: asked about again at once."""
    world.database.change(revoked=True)
    world.tell()
    await until(lambda: world.cache._invalidated.get(KEY_ID) == 1)
    world.hold_answers()
    before = sum(world.asked)
    lookup = asyncio.create_task(refused(world))
    await until(lambda: sum(world.asked) > before)
    world.database.change(revoked=False)
    world.tell()
    await until(lambda: world.cache._invalidated.get(KEY_ID) == 2)
    world.let_answer()
    assert await lookup
    assert not await refused(world)


async def test_either_replica_may_go(world: World) -> None:
    """With one replica gone unknown keys are answered by the other, and its stream of invalidations is followed."""
    for number, replica in enumerate(world.replicas):
        if replica.watched:
            await world.servers[number].stop(0)
            (left,) = [other for other in world.replicas if other is not replica]
    assert not await refused(world)
    await until(lambda: left.watched and world.cache.watching)
    world.database.change(revoked=True)
    world.tell()
    await until(lambda: world.cache._invalidated.get(KEY_ID) == 1)
    assert await refused(world)


@pytest.mark.parametrize(
    ("address", "uri"),
    [
        ("authsvc:50051", "authsvc:50051"),
        ("10.0.0.1:50051, 10.0.0.2:50051", "ipv4:10.0.0.1:50051,10.0.0.2:50051"),
        ("[fd00::1]:50051,[fd00::2]:50051", "ipv6:[fd00::1]:50051,[fd00::2]:50051"),
    ],
)
def test_addresses(address: str, uri: str) -> None:
    """One address goes to gRPC as it is, several as one target."""
    assert target_of(address).uri == uri


@pytest.mark.parametrize(
    "address",
    [
        "one:50051,two:50051",
        "10.0.0.1:1,[fd00::2]:1",
        "10.0.0.1,10.0.0.2",
        "fd00::1:1,fd00::2:1",
        "1.2.3.4:0,1.2.3.5:1",
    ],
)
def test_addresses_that_grpc_cannot_balance(address: str) -> None:
    """Several have to be IP addresses of one family, each with a port."""
    with pytest.raises(ValueError, match="several"):
        target_of(address)
