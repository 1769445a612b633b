"""Requests that run while Redis loses everything hold again what they held, exactly, and end as they would have."""

from __future__ import annotations

from accounting.quota import EventRef, LimitKind, Renewal, RunningRequest
from accounting.settlement import UsageEvent
from naru.errors import NaruError, Reason
from tests.integration.accounting.harness import (
    PRINCIPAL,
    SECOND,
    START,
    WORK,
    Books,
    empty,
    new_ref,
    report,
    reservation,
)
from tests.support.copies import replace

METERED_WORK = replace(WORK, principal=replace(PRINCIPAL, tier="metered"))


def running(ref: EventRef, since: int = START) -> RunningRequest:
    """A request of the metered tier that holds 10 and 20 tokens."""
    return RunningRequest(reservation(ref, work=METERED_WORK), since)


def ended(ref: EventRef, tokens: tuple[int, int] = (7, 3)) -> UsageEvent:
    """Its report."""
    return replace(report(ref, tokens=tokens), work=METERED_WORK)


async def loss(books: Books, redis_url: str) -> None:
    """Redis loses everything, and somebody notices."""
    await empty(redis_url)
    await books.epochs.check()


async def recovered(books: Books) -> None:
    """The recovery is over."""
    books.advance(90)
    await books.epochs.check()


async def left(books: Books) -> tuple[int, int, int]:
    """What is left of 100 requests, 10,000 tokens and 4 places."""
    found = await books.remaining()
    return found[LimitKind.REQUESTS], found[LimitKind.TOTAL_TOKENS], found[LimitKind.CONCURRENCY]


async def test_what_runs_counts_again_and_ends_exactly(books: Books, redis_url: str) -> None:
    """Places, tokens and requests; the same said twice, by whoever, changes nothing; the books are those of no loss."""
    await books.epochs.check()
    before = await books.granted("metered")
    await books.recorder.record([ended(before, (100, 50))])
    refs = [await books.granted("metered") for _ in range(4)]
    await loss(books, redis_url)
    assert await books.reservations.renew(refs) == [Renewal(None, unknown=True)] * 4
    for _ in range(2):
        leases = await books.restorer.restore([running(ref) for ref in refs])
        assert [lease.lease_expire_time for lease in leases] == [START + 60 * SECOND] * 4
    books.advance(50)
    await books.restorer.restore([running(ref) for ref in refs])
    await recovered(books)
    assert await left(books) == (95, 10_000 - 150 - 4 * 30, 0)
    decision = await books.reserve("metered")
    assert isinstance(decision.outcome, NaruError)
    assert decision.outcome.reason is Reason.CONCURRENCY_LIMIT_EXCEEDED
    await books.recorder.record([ended(ref, (10, 5)) for ref in refs])
    assert await left(books) == (95, 10_000 - 150 - 4 * 15, 4)
    assert await books.total() == (5, 140, 70)


async def test_what_ends_during_the_recovery_counts_once(books: Books, redis_url: str) -> None:
    """Restored before its report or not, in SQL or in the limiter: in exactly one of them."""
    await books.epochs.check()
    restored, unknown, going_on = [await books.granted("metered") for _ in range(3)]
    await loss(books, redis_url)
    await books.restorer.restore([running(restored), running(going_on)])
    books.advance(30)
    await books.recorder.record([ended(restored, (10, 5)), ended(unknown, (200, 1))])
    await books.reservations.renew([going_on])
    books.advance(30)
    await books.reservations.renew([going_on])
    await recovered(books)
    assert await left(books) == (97, 10_000 - 15 - 201 - 30, 3)
    await books.recorder.deliver_outbox()
    await books.epochs.reconcile()
    assert await left(books) == (97, 10_000 - 15 - 201 - 30, 3)


async def test_what_was_restored_in_a_later_minute_counts_once(books: Books, redis_url: str) -> None:
    """The limiter has it in the minute in which it was restored, SQL in that of its reservation; also after a restart."""
    await books.epochs.check()
    ref = await books.granted("metered")
    await loss(books, redis_url)
    books.advance(61)
    await books.restorer.restore([running(ref)])
    await books.recorder.record([ended(ref, (10, 5))])
    books.advance(29)
    for replica in (books, Books(books.database, books.limiter, books.clock)):
        await replica.epochs.check()
        await replica.epochs.reconcile()
        assert await left(books) == (99, 10_000 - 15, 4)


async def test_what_is_reserved_anew_in_a_later_minute_counts_once(books: Books) -> None:
    """A limiter that was never emptied has it in the later minute, too, and one that restarts looks at SQL."""
    await books.epochs.check()
    ref = await books.granted("metered")
    books.advance(61)
    await books.granted("metered", ref=ref, revision=1, input_tokens=30)
    await books.recorder.record([ended(ref, (10, 5))])
    other = Books(books.database, books.limiter, books.clock)
    await other.epochs.check()
    await other.epochs.reconcile()
    assert await left(books) == (99, 10_000 - 15, 4)


async def test_what_has_ended_does_not_come_back(books: Books, redis_url: str) -> None:
    """Reported while Redis was away, and restored by a call that was on its way: it holds nothing, and counts once."""
    await books.epochs.check()
    ref, released = [await books.granted("metered") for _ in range(2)]
    await empty(redis_url)
    await books.recorder.record([ended(ref, (10, 5))])
    await books.epochs.check()
    await books.reservations.release([released])
    assert await books.restorer.restore([running(ref), running(released)]) == [Renewal(None)] * 2
    await books.recorder.deliver_outbox()
    await recovered(books)
    assert await left(books) == (99, 10_000 - 15, 4)


async def test_a_report_that_overtakes_is_told_at_once(books: Books, redis_url: str) -> None:
    """It found nothing to settle, since the request was restored a moment later: its place is free all the same."""
    await books.epochs.check()
    ref = await books.granted("metered")
    await loss(books, redis_url)

    class Overtaken(type(books.reservations)):  # type: ignore[misc]  # the class of whatever the harness made
        def __init__(self) -> None:
            """Has what the other has."""

        async def restore(self, asked: object) -> list[Renewal]:
            await books.recorder.record([ended(ref, (10, 5))])
            return await books.reservations.restore([running(ref)])

    late = type(books.restorer)(Overtaken(), books.recovery_store, books.recorder)
    await late.restore([running(ref)])
    await recovered(books)
    assert await left(books) == (99, 10_000 - 15, 4)


async def test_a_retry_holds_for_its_event(books: Books, redis_url: str) -> None:
    """Whichever attempt is restored first, the event is one request with one place, and the last attempt's figures."""
    await books.epochs.check()
    first, second = new_ref(), new_ref()
    await loss(books, redis_url)
    for order in ((first, replace(first, attempt=1)), (replace(second, attempt=1), second)):
        await books.restorer.restore([running(ref) for ref in order])
    await recovered(books)
    assert await left(books) == (98, 10_000 - 2 * 30, 2)


async def test_a_lifetime_goes_on(books: Books, redis_url: str) -> None:
    """It begins at the reservation: what is older is not restored, and usage is booked at its own time."""
    await books.epochs.check()
    await loss(books, redis_url)
    old, young = new_ref(), new_ref()
    leases = await books.restorer.restore(
        [running(old, START - 3_600 * SECOND), running(young, START - 3_590 * SECOND)]
    )
    assert [lease.lease_expire_time for lease in leases] == [None, START + 10 * SECOND]
    (known,) = await books.limiter.look_up([young])
    assert (known.running, known.reserve_time) == (True, START - 3_590 * SECOND)
