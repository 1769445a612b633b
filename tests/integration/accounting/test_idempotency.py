"""Idempotency keys on a real Redis: which of two requests is made, what the other is told, and what is kept."""

from __future__ import annotations

import asyncio
import base64

import pytest

from accounting.idempotency import Fate, Held, HeldState, Idempotency, KeptOutcome, Replay, held_error
from accounting.limiter.limiter import Limiter, connect
from accounting.quota import EventRef, Grant, Limit, LimitKind, Reservation
from accounting.settlement import Exact
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.metrics import Metrics
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import (
    PRINCIPAL,
    SECOND,
    START,
    WORK,
    Books,
    empty,
    in_flight,
    new_limiter,
    new_outcomes,
    new_ref,
    per_minute,
    reservation,
)
from tests.support.copies import replace

LEASE, LIFETIME, KEPT_FOR = 60 * SECOND, 3_600 * SECOND, 3_600 * SECOND
SAME, OTHER = b"\1" * 32, b"\2" * 32


def keyed(
    ref: EventRef | None = None,
    *,
    key: str = "k",
    digest: bytes = SAME,
    principal: Principal = PRINCIPAL,
    revision: int = 0,
) -> Reservation:
    """A reservation with an idempotency key."""
    made = reservation(ref, work=replace(WORK, principal=principal), idempotency=Idempotency(key, digest))
    return replace(made, revision=revision)


async def ask(limiter: Limiter, wanted: Reservation, *limits: Limit) -> Grant | Held | NaruError:
    """The answer to one reservation."""
    (taken,) = (await limiter.reserve([(wanted, limits)])).taken
    return taken.outcome


async def granted(limiter: Limiter, wanted: Reservation, *limits: Limit) -> EventRef:
    """Reserves, and asserts that it was granted."""
    outcome = await ask(limiter, wanted, *limits)
    assert isinstance(outcome, Grant), outcome
    return wanted.ref


async def tell(limiter: Limiter, ref: EventRef, fate: Fate, sealed: str = "", key: str = "k") -> bool:
    """Says what became of an event."""
    return await limiter.keep(KeptOutcome(ref.event_id, PRINCIPAL, key, fate), sealed)


def used(ref: EventRef) -> Exact:
    """What settles an attempt."""
    return Exact(ref, Evidence.FINAL, Usage(7, 3))


async def test_of_many_at_once_one_is_granted(redis_url: str) -> None:
    """A hundred requests with one key over four connections: one goes ahead, the others hear that it does."""
    limiters = [new_limiter(redis_url, now=START) for _ in range(4)]
    await limiters[0].begin_epoch("first", 0)
    wanted = [keyed() for _ in range(100)]
    outcomes = await asyncio.gather(*(ask(limiters[i % 4], one, per_minute(5)) for i, one in enumerate(wanted)))
    for limiter in limiters:
        await limiter.close()
    (winner,) = (one for one, outcome in zip(wanted, outcomes, strict=True) if isinstance(outcome, Grant))
    others = {outcome for outcome in outcomes if not isinstance(outcome, Grant)}
    assert others == {Held(winner.ref.event_id, HeldState.RUNNING)}


async def test_of_two_in_a_batch_the_first_is_granted(limiter: Limiter) -> None:
    """Items of one call are decided in order."""
    first, second = keyed(), keyed()
    verdict = await limiter.reserve([(first, ()), (second, ())])
    outcomes = [taken.outcome for taken in verdict.taken]
    assert outcomes == [Grant(START, START + LEASE), Held(first.ref.event_id, HeldState.RUNNING)]


async def test_what_is_held_takes_nothing(limiter: Limiter) -> None:
    """A request that is not made counts for no limit, and hears where they stand."""
    limits = per_minute(5), per_minute(50, LimitKind.INPUT_TOKENS), in_flight(3)
    await granted(limiter, keyed(), *limits)
    (taken,) = (await limiter.reserve([(keyed(), limits)])).taken
    assert isinstance(taken.outcome, Held)
    assert {state.limit.kind: state.remaining for state in taken.limits} == {
        LimitKind.REQUESTS: 4,
        LimitKind.INPUT_TOKENS: 40,
        LimitKind.CONCURRENCY: 2,
    }


async def test_an_answer_that_was_lost_is_given_again(limiter: Limiter) -> None:
    """The same event gets the same grant with its key, and a better figure takes its place."""
    wanted = keyed()
    answers = {await ask(limiter, wanted) for _ in range(3)}
    assert answers == {Grant(START, START + LEASE)}
    assert isinstance(await ask(limiter, replace(wanted, revision=1)), Grant)
    assert await ask(limiter, keyed()) == Held(wanted.ref.event_id, HeldState.RUNNING)


async def test_a_retry_elsewhere_keeps_the_key(limiter: Limiter) -> None:
    """A new attempt of the same event goes ahead; the end of the attempt before says nothing about the key."""
    first = await granted(limiter, keyed())
    second = await granted(limiter, keyed(replace(first, attempt=1)))
    await limiter.settle([used(first)])
    assert await limiter.release([first]) == [False]
    limiter.now = START + 2 * LEASE
    assert await ask(limiter, keyed()) == Held(second.event_id, HeldState.RUNNING)


async def test_another_body(limiter: Limiter) -> None:
    """The key of another request is refused, whether that one runs, is answered, or was too large."""
    for fate in (None, Fate.ANSWERED, Fate.TOO_LARGE):
        key = f"k-{fate}"
        ref = await granted(limiter, keyed(key=key))
        if fate is not None:
            assert await tell(limiter, ref, fate, "sealed", key)
        assert await ask(limiter, keyed(key=key, digest=OTHER)) == Held(ref.event_id, HeldState.CONFLICT)


@pytest.mark.parametrize(
    "principal",
    [
        replace(PRINCIPAL, key_id="key-2"),
        replace(PRINCIPAL, key_id="", user_id="key-1"),
        replace(PRINCIPAL, key_id="", user_id=""),
    ],
)
async def test_keys_of_others_are_others(limiter: Limiter, principal: Principal) -> None:
    """Each API key, user and workspace has keys of its own, also when their ids are the same."""
    await granted(limiter, keyed())
    await granted(limiter, keyed(principal=principal))
    await granted(limiter, keyed(key="k2"))
    assert isinstance(await ask(limiter, keyed(principal=principal)), Held)


async def test_an_answer_is_kept_for_an_hour(limiter: Limiter, redis_url: str) -> None:
    """What was kept comes back until the hour is over; then the request may be made again."""
    ref = await granted(limiter, keyed())
    assert await tell(limiter, ref, Fate.ANSWERED, "sealed")
    await limiter.settle([used(ref)])
    limiter.now = START + KEPT_FOR - 1
    assert await ask(limiter, keyed(), per_minute(5)) == Held(ref.event_id, HeldState.ANSWERED, "sealed")
    limiter.now += 1
    await granted(limiter, keyed(digest=OTHER))
    redis = connect(redis_url)
    assert 3_500_000 < await redis.pttl(f"{{naru-3}}:o:{ref.event_id}") <= 3_600_000
    await redis.aclose()


async def test_an_answer_redis_forgot(limiter: Limiter, redis_url: str) -> None:
    """A key whose outcome is gone is neither made again nor answered."""
    ref = await granted(limiter, keyed())
    await tell(limiter, ref, Fate.ANSWERED, "sealed")
    redis = connect(redis_url)
    await redis.delete(f"{{naru-3}}:o:{ref.event_id}")
    await redis.aclose()
    held = await ask(limiter, keyed())
    assert held == Held(ref.event_id, HeldState.ANSWERED)
    assert held_error(held).reason is Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT


async def test_an_answer_too_large(limiter: Limiter) -> None:
    """That there was one is known for an hour."""
    ref = await granted(limiter, keyed())
    assert await tell(limiter, ref, Fate.TOO_LARGE)
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.TOO_LARGE)
    limiter.now = START + KEPT_FOR
    await granted(limiter, keyed())


async def test_fates_are_told_twice(limiter: Limiter) -> None:
    """Telling again changes nothing, and a later word does not undo an answer."""
    ref = await granted(limiter, keyed())
    assert [await tell(limiter, ref, Fate.ANSWERED, sealed) for sealed in ("first", "second")] == [True, True]
    assert not await tell(limiter, ref, Fate.FAILED)
    assert not await tell(limiter, ref, Fate.TOO_LARGE)
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.ANSWERED, "first")


async def test_only_the_event_that_has_the_key_may_tell(limiter: Limiter) -> None:
    """What another event says, or one that never reserved, is not kept."""
    ref = await granted(limiter, keyed())
    assert not await tell(limiter, new_ref(), Fate.ANSWERED, "sealed")
    assert not await tell(limiter, new_ref(), Fate.FAILED)
    assert not await tell(limiter, ref, Fate.ANSWERED, "sealed", key="never")
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.RUNNING)


async def test_a_failure_frees_the_key(limiter: Limiter) -> None:
    """What failed may be made again, by another body even; what the failed one still says is not heard."""
    ref = await granted(limiter, keyed())
    assert await tell(limiter, ref, Fate.FAILED)
    second = await granted(limiter, keyed(digest=OTHER))
    assert not await tell(limiter, ref, Fate.FAILED)
    assert await limiter.release([ref]) == [True]
    assert await ask(limiter, keyed(digest=OTHER)) == Held(second.event_id, HeldState.RUNNING)


async def test_release_frees_the_key(limiter: Limiter) -> None:
    """What certainly never began may be made again; its own late reservation may not."""
    ref = await granted(limiter, keyed())
    await limiter.release([ref])
    second = await granted(limiter, keyed())
    late = await ask(limiter, keyed(ref, revision=1))
    assert isinstance(late, NaruError)
    assert late.reason is Reason.FAILED_PRECONDITION
    overtaken = new_ref()
    await limiter.release([overtaken, second])
    assert isinstance(await ask(limiter, keyed(overtaken)), NaruError)
    await granted(limiter, keyed())


async def test_a_refusal_leaves_nothing(limiter: Limiter) -> None:
    """A key that no request was made with is free, whether the first reservation was refused or a better figure."""
    small = per_minute(15, LimitKind.INPUT_TOKENS)
    assert isinstance(await ask(limiter, keyed(), per_minute(0)), NaruError)
    ref = await granted(limiter, keyed(), small)
    assert isinstance(await ask(limiter, replace(keyed(ref, revision=1), input_tokens=16), small), NaruError)
    retried = await granted(limiter, keyed())
    assert isinstance(
        await ask(limiter, keyed(replace(retried, attempt=1)), per_minute(5, LimitKind.INPUT_TOKENS)), NaruError
    )
    await granted(limiter, keyed())


async def test_a_request_nobody_spoke_for(limiter: Limiter) -> None:
    """Settled, and no word within a lease: what was answered is lost; a late word is heard all the same."""
    ref = await granted(limiter, keyed())
    limiter.now = START + 10 * SECOND
    await limiter.settle([used(ref)])
    limiter.now += LEASE - 1
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.RUNNING)
    limiter.now += 1
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.LOST)
    assert await tell(limiter, ref, Fate.ANSWERED, "sealed")
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.ANSWERED, "sealed")


async def test_a_key_lives_as_long_as_its_reservation_can(limiter: Limiter, redis_url: str) -> None:
    """A request that nobody ever ends has its key for the hard lifetime, and Redis forgets it then."""
    ref = await granted(limiter, keyed())
    limiter.now = START + LIFETIME - 1
    assert await ask(limiter, keyed()) == Held(ref.event_id, HeldState.RUNNING)
    redis = connect(redis_url)
    (name,) = [name async for name in redis.scan_iter("{naru-3}:i:*")]
    assert 3_500_000 < await redis.pttl(name) <= 3_600_000
    await redis.aclose()
    limiter.now = START + LIFETIME
    await granted(limiter, keyed())


async def test_redis_does_not_know_keys_or_answers(books: Books, redis_url: str) -> None:
    """Neither the caller's key nor the answer is in Redis; both come back from it only by whose they are."""
    outcomes = new_outcomes(books.limiter, Metrics())
    wanted = keyed(key="SECRET-KEY-7")
    await granted(books.limiter, wanted)
    answer = b"MARKER " * 2_000
    assert await outcomes.keep(KeptOutcome(wanted.ref.event_id, PRINCIPAL, "SECRET-KEY-7", Fate.ANSWERED, answer))
    redis = connect(redis_url)
    names = [name async for name in redis.scan_iter("*")]
    sealed = await redis.get(f"{{naru-3}}:o:{wanted.ref.event_id}")
    hashes = [str(await redis.hgetall(name)) for name in names if await redis.type(name) == b"hash"]
    await redis.aclose()
    assert hashes
    assert not any("SECRET" in text for text in [*map(str, names), *hashes])
    assert b"MARKER" not in base64.b64decode(sealed)
    assert len(sealed) < 1_000
    (decision,) = await books.reservations.reserve([keyed(key="SECRET-KEY-7")])
    assert decision.outcome == Replay(answer)


async def test_outcomes_that_were_tampered_with(books: Books, redis_url: str) -> None:
    """One that was changed, or belongs to another event, or to a secret that is gone, is not answered with."""
    outcomes = new_outcomes(books.limiter, Metrics())
    first, second = keyed(key="a"), keyed(key="b")
    for wanted in (first, second):
        await granted(books.limiter, wanted)
        assert wanted.idempotency is not None
        kept = KeptOutcome(wanted.ref.event_id, PRINCIPAL, wanted.idempotency.key, Fate.ANSWERED, b"an answer")
        assert await outcomes.keep(kept)
    redis = connect(redis_url)
    here, there = (f"{{naru-3}}:o:{wanted.ref.event_id}" for wanted in (first, second))
    raw = base64.b64decode(await redis.get(here))
    for changed in (
        base64.b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode(),
        base64.b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode(),
        base64.b64encode(raw[:5]).decode(),
        "no base64!",
        await redis.get(there),
    ):
        await redis.set(here, changed)
        (decision,) = await books.reservations.reserve([keyed(key="a")])
        assert isinstance(decision.outcome, NaruError), changed
        assert decision.outcome.reason is Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT
    await redis.aclose()
    other = new_outcomes(books.limiter, Metrics(), "another secret, as long as the first one")
    held = await ask(books.limiter, keyed(key="b"))
    assert isinstance(held, Held)
    assert outcomes.answer(held, PRINCIPAL) == Replay(b"an answer")
    for answered in (other.answer(held, PRINCIPAL), outcomes.answer(held, replace(PRINCIPAL, key_id="key-2"))):
        assert isinstance(answered, NaruError)


async def test_keys_when_redis_was_emptied(books: Books, redis_url: str) -> None:
    """Where requests are admitted without Redis, a key that is gone is free, and its late outcome is nobody's."""
    ref = await granted(books.limiter, keyed())
    await empty(redis_url)
    outcomes = new_outcomes(books.limiter, Metrics())
    assert not await outcomes.keep(KeptOutcome(ref.event_id, PRINCIPAL, "k", Fate.ANSWERED, b"late"))
    (decision,) = await books.open_reservations.reserve([keyed()])
    assert isinstance(decision.outcome, Grant)
