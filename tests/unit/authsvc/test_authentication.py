"""How much work a credential makes: as much for an unknown key as for a wrong secret, and once for many at a time."""

from __future__ import annotations

import asyncio
import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from authsvc.authentication import Authenticator
from authsvc.foreign_authentication import ForeignAuthenticator, Home, OpenWebui
from authsvc.foreign_store import ForeignStore
from authsvc.key_store import KeyChanges
from authsvc.key_usage import KeyUsage
from authsvc.keys import Pepper, Peppers, new_key, new_secret
from authsvc.records import ApiKey, Workspace
from authsvc.sessions_store import SessionStore
from authsvc.store import KeyStore, StoredKey
from authsvc.token_authentication import CredentialAuthenticator, TokenAuthenticator
from authsvc.tokens import TokenPolicy
from naru import api_key
from naru.database import Database
from naru.errors import NaruError, Reason, invalid_api_key, unavailable
from naru.ids import uuid7
from naru.lifecycle import Lifecycle
from naru.refusals import WRONG_KEYS_BURST
from naru.testing.clock import FakeClock
from tests.support.auth_store import bootstrap, entry, people_audit
from tests.support.signing import key_ring

OLD, NEW = Pepper(1, b"o" * 32), Pepper(2, b"n" * 32)


class CountedStore(KeyStore):
    """Counts its lookups."""

    lookups = 0

    async def look_up(self, key_ids: Sequence[str], now: float) -> dict[str, StoredKey]:
        self.lookups += 1
        return await super().look_up(key_ids, now)


@dataclass
class CountedHmac:
    """Counts its digests, and the bytes that they are of."""

    sizes: list[int] = field(default_factory=list)

    def __call__(self, key: bytes, message: bytes) -> bytes:
        self.sizes.append(len(message))
        return hmac.digest(key, message, "sha256")


class World:
    """An authenticator over a database that has one key, `text`."""

    def __init__(self, database: Database) -> None:
        self.clock = FakeClock()
        self.digests = CountedHmac()
        self.changes = KeyChanges(database)
        self.usage = KeyUsage(self.changes, self.clock)
        self.store = CountedStore(database)
        self.made = new_key(Peppers([OLD]), os.urandom)
        self.authenticator = self.with_peppers(OLD)

    def with_peppers(self, *peppers: Pepper) -> Authenticator:
        return self.over(self.store, *peppers)

    def over(self, store: KeyStore, *peppers: Pepper) -> Authenticator:
        return Authenticator(store, Peppers(peppers, self.digests), self.clock, self.usage, Lifecycle().background)

    def of_all_kinds(self, database: Database) -> CredentialAuthenticator:
        """One that takes tokens too, none of which is good."""
        sessions, peppers = SessionStore(database), Peppers([OLD])
        ring = key_ring(sessions, peppers, self.clock)
        policy = TokenPolicy("naru", "naru", 60)
        foreign = ForeignAuthenticator(
            store=ForeignStore(database),
            audit=people_audit(self.clock),
            clock=self.clock,
            new_id=uuid7,
            openwebui=OpenWebui(None, None, Home()),
            provider=None,
        )
        tokens = TokenAuthenticator(store=sessions, ring=ring, policy=policy, clock=self.clock)
        return CredentialAuthenticator(self.authenticator, tokens, foreign, self.clock)

    async def work(self, text: str) -> tuple[int, list[int]]:
        """Lookups, and sizes of what was digested, for a credential that is refused."""
        self.store.lookups, self.digests.sizes = 0, []
        with pytest.raises(NaruError) as failure:
            await self.authenticator.resolve(text)
        assert failure.value.reason is Reason.INVALID_API_KEY
        return self.store.lookups, self.digests.sizes


@pytest.fixture
async def world(database: Database) -> World:
    world = World(database)
    key = ApiKey(world.made.key_id, "w1", world.clock.time())
    assert await bootstrap(world.store, Workspace("w1", "default", "free", 1.0), key, world.made.digest)
    return world


def wrong_secret(text: str) -> str:
    return api_key.format_key(api_key.parse(text).key_id, "x" * 43)


async def test_an_unknown_key_and_a_wrong_secret_are_the_same_work(world: World) -> None:
    """One lookup and the same digests for an unknown key, a wrong secret, and one of a key that is being rotated."""
    unknown = api_key.format_key("nobody000000", "x" * 43)
    expected = (1, [43, 43, 43])
    assert await world.work(unknown) == expected
    assert await world.work(wrong_secret(world.made.text)) == expected
    rotated = new_secret(world.made.key_id, Peppers([OLD]), os.urandom)
    await world.changes.rotate(
        world.made.key_id,
        lambda _: None,
        rotated.digest,
        lambda *_: entry(),
        time=world.clock.time(),
        grace=60,
        mark=None,
    )
    assert await world.work(wrong_secret(world.made.text)) == expected
    world.clock.advance(61)
    assert await world.work(world.made.text) == expected


async def test_a_good_key_is_no_more_work(world: World) -> None:
    """A key that works costs what one that does not costs."""
    await world.authenticator.resolve(world.made.text)
    assert (world.store.lookups, world.digests.sizes) == (1, [43, 43, 43])


async def test_lookups_at_once_are_one(world: World) -> None:
    """Many who ask for one key at the same time share a query, right secret or not; later ones ask anew."""
    asked = [world.made.text, wrong_secret(world.made.text)] * 10
    results = await asyncio.gather(*(world.authenticator.resolve(text) for text in asked), return_exceptions=True)
    assert sum(isinstance(one, NaruError) for one in results) == 10
    assert world.store.lookups == 1
    await world.authenticator.resolve(world.made.text)
    assert world.store.lookups == 2


async def test_many_keys_at_once_take_few_queries(world: World) -> None:
    """Lookups of different keys at the same time go together too, each with its own answer."""
    texts = [world.made.text, *(api_key.generate(os.urandom) for _ in range(200))]
    results = await asyncio.gather(*(world.authenticator.resolve(text) for text in texts), return_exceptions=True)
    assert [isinstance(one, NaruError) for one in results] == [False] + [True] * 200
    assert world.store.lookups <= 4


class SlowStore(KeyStore):
    """Knows what it answers before it may."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.running, self.go_on = asyncio.Event(), asyncio.Event()

    async def look_up(self, key_ids: Sequence[str], now: float) -> dict[str, StoredKey]:
        found = await super().look_up(key_ids, now)
        self.running.set()
        await self.go_on.wait()
        return found


async def test_an_answer_is_no_older_than_its_question(world: World, database: Database) -> None:
    """Who asks while a query runs is answered by a later one: what was revoked in between does not get in."""
    store = SlowStore(database)
    authenticator = world.over(store, OLD)
    first = asyncio.create_task(authenticator.resolve(world.made.text))
    await store.running.wait()
    await world.changes.change(
        world.made.key_id, lambda key: replace(key, revoke_time=1.0), lambda *_: entry(), time=world.clock.time()
    )
    second = asyncio.create_task(authenticator.resolve(world.made.text))
    await asyncio.sleep(0)
    store.go_on.set()
    assert (await first).principal.key_id == world.made.key_id
    with pytest.raises(NaruError) as failure:
        await second
    assert failure.value == invalid_api_key()


class AwayStore(KeyStore):
    """Has no database; counts how often it was asked."""

    asked = 0

    async def look_up(self, key_ids: Sequence[str], now: float) -> dict[str, StoredKey]:
        self.asked += 1
        raise unavailable("database")


async def test_an_outage_is_told_to_all_who_ask(world: World, database: Database) -> None:
    """Whoever waits for a query that fails hears why, and the next one asks again."""
    store = AwayStore(database)
    authenticator = world.over(store, OLD)
    for times in (1, 2):
        results = await asyncio.gather(
            *(authenticator.resolve(world.made.text) for _ in range(3)), return_exceptions=True
        )
        assert results == [unavailable("database")] * 3
        assert store.asked == times


@pytest.mark.parametrize("turns", range(10))
async def test_whoever_asks_as_a_query_ends_is_answered(world: World, database: Database, turns: int) -> None:
    """However many turns of the loop after it began: neither the query that ends nor the next one leaves anybody waiting."""
    authenticator = world.over(AwayStore(database), OLD)
    first = asyncio.create_task(authenticator.resolve(world.made.text))
    for _ in range(turns):
        await asyncio.sleep(0)
    second = asyncio.create_task(authenticator.resolve(world.made.text))
    done, _ = await asyncio.wait([first, second], timeout=20)
    assert done == {first, second}
    assert {type(task.exception()) for task in done} == {NaruError}


async def test_an_address_that_guesses_is_stopped_before_the_database(world: World, database: Database) -> None:
    """After too many wrong keys and tokens from one address nothing is looked up for it; services, which count, go on."""
    authenticator = world.of_all_kinds(database)

    async def reason_of(text: str) -> Reason:
        with pytest.raises(NaruError) as failure:
            await authenticator.authenticate(text, "192.0.2.1")
        return failure.value.reason

    for _ in range(2 * WRONG_KEYS_BURST):
        assert await reason_of("sk-mistyped") is Reason.INVALID_API_KEY, "costs nothing, so it is not counted"
    for _ in range(WRONG_KEYS_BURST // 2):
        for text in (api_key.generate(os.urandom), "eyJh.eyJz.x"):
            assert await reason_of(text) is Reason.INVALID_API_KEY
    before = world.store.lookups
    for text in (api_key.generate(os.urandom), "eyJh.eyJz.x", world.made.text):
        assert await reason_of(text) is Reason.RATE_LIMIT_EXCEEDED
    assert world.store.lookups == before
    assert (await authenticator.authenticate(world.made.text, "192.0.2.2")).key_id == world.made.key_id
    assert (await authenticator.resolve(world.made.text, "192.0.2.1")).principal.key_id == world.made.key_id


async def test_a_used_key_moves_to_the_new_pepper(world: World) -> None:
    """A key that is used after a new pepper came in front is under it from the next write on, and the old one can go."""
    both = world.with_peppers(NEW, OLD)
    assert await world.store.pepper_versions(world.clock.time()) == {1: 1}
    await both.resolve(world.made.text)
    await world.usage.flush()
    assert await world.store.pepper_versions(world.clock.time()) == {2: 1}
    assert (await world.with_peppers(NEW).resolve(world.made.text)).principal.key_id == world.made.key_id
    assert (await world.store.position()).sequence == 0


async def test_a_digest_that_changed_meanwhile_stays(world: World) -> None:
    """A key that was rotated between its use and the write keeps its new secret."""
    await world.with_peppers(NEW, OLD).resolve(world.made.text)
    rotated = new_secret(world.made.key_id, Peppers([OLD]), os.urandom)
    await world.changes.rotate(
        world.made.key_id,
        lambda _: None,
        rotated.digest,
        lambda *_: entry(),
        time=world.clock.time(),
        grace=0,
        mark=None,
    )
    await world.usage.flush()
    assert (await world.authenticator.resolve(rotated.text)).principal.key_id == world.made.key_id
    await world.work(world.made.text)


async def test_uses_are_written_once_a_minute(world: World) -> None:
    """Uses become one write with the last time; what other services report counts too, but neither older nor future times."""
    for _ in range(3):
        await world.authenticator.resolve(world.made.text)
        world.clock.advance(1)
    found = await world.store.get_key(world.made.key_id)
    assert found is not None
    assert found.last_used_time is None
    world.usage.reported({"nobody000000": 5.0})
    await world.usage.flush()
    used = world.clock.time() - 1
    for reported, expected in ((used - 5, used), (used + 0.5, used + 0.5), (used + 500, world.clock.time())):
        world.usage.reported({world.made.key_id: reported})
        await world.usage.flush()
        found = await world.store.get_key(world.made.key_id)
        assert found is not None
        assert found.last_used_time == expected
