"""Recorder, sweeper and limiter together: every reservation ends in exactly one outcome."""

from __future__ import annotations

import asyncio

import pytest

from accounting.limiter.limiter import Limiter
from accounting.quota import EventRef, Grant, LimitKind
from accounting.settlement import RecordStatus
from accounting.tables import settlement_outbox, usage_corrections, usage_events
from naru.errors import NaruError, Reason
from naru.testing.redis_server import free_port
from naru.usage import Evidence
from tests.integration.accounting.harness import SECOND, START, Books, new_limiter, new_ref, report

RECORDED, KNOWN = RecordStatus.RECORDED, RecordStatus.KNOWN
REQUESTS, TOKENS, IN_FLIGHT = LimitKind.REQUESTS, LimitKind.TOTAL_TOKENS, LimitKind.CONCURRENCY


async def test_a_final_report_settles_the_reservation(books: Books) -> None:
    """The estimate becomes exact, the place in flight is free, the outbox empty, and the event booked when it was reserved."""
    ref = await books.granted("metered", input_tokens=100, output_tokens=500)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_400, IN_FLIGHT: 3}
    books.advance(30)
    assert await books.recorder.record([report(ref)]) == (RECORDED,)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_990, IN_FLIGHT: 4}
    assert await books.rows(settlement_outbox) == []
    (row,) = await books.rows(usage_events)
    assert row.reserve_time == START
    assert await books.total() == (1, 7, 3)


async def test_a_hundred_reports_count_once(books: Books) -> None:
    """The same report again and again is known."""
    ref = await books.granted("metered")

    async def tell() -> list[tuple[RecordStatus, ...]]:
        # More at once would wait for a connection longer than a busy machine lets them.
        return [await books.recorder.record([report(ref)]) for _ in range(5)]

    answers = [one for many in await asyncio.gather(*(tell() for _ in range(20))) for one in many]
    assert sorted(status for (status,) in answers) == [KNOWN] * 99 + [RECORDED]
    assert await books.total() == (1, 7, 3)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_990, IN_FLIGHT: 4}


async def test_an_unknown_reservation_is_recorded_all_the_same(books: Books) -> None:
    """The engine worked, whatever the limiter knows of it; it is booked when the engine accepted it."""
    assert await books.recorder.record([report(new_ref())]) == (RECORDED,)
    (row,) = await books.rows(usage_events)
    assert row.reserve_time == START
    assert await books.total() == (1, 7, 3)


async def test_a_lease_nobody_reports_about(books: Books) -> None:
    """It ends as a failed request without tokens, once, and everything it held but its request count is back."""
    ref = await books.granted("metered", output_tokens=500)
    books.advance(60)
    await books.sweeper.sweep()
    await books.sweeper.sweep()
    (row,) = await books.rows(usage_events)
    assert (row.event_id, row.evidence, row.outcome, row.prompt_tokens) == (ref.event_id, 0, "failed", 0)
    assert await books.total() == (1, 0, 0)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 10_000, IN_FLIGHT: 4}
    assert await books.rows(settlement_outbox) == []
    decision = await books.reserve("metered", ref=ref)
    assert isinstance(decision.outcome, NaruError)
    assert decision.outcome.reason is Reason.FAILED_PRECONDITION


@pytest.mark.parametrize("evidence", [Evidence.ACCEPTED, Evidence.DELIVERED])
async def test_lower_evidence_settles_when_the_lease_ends(books: Books, evidence: Evidence) -> None:
    """Until then it waits, and the capacity stays taken; then it counts, also in the window."""
    ref = await books.granted("metered", output_tokens=500)
    assert await books.recorder.record([report(ref, evidence, (20, 30))]) == (RECORDED,)
    assert await books.total() == (0, 0, 0)
    assert (await books.remaining())[IN_FLIGHT] == 3
    books.advance(60)
    await books.sweeper.sweep()
    assert await books.total() == (1, 20, 30)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_950, IN_FLIGHT: 4}


async def test_the_truth_that_comes_late_corrects(books: Books) -> None:
    """Every rank after the lease has ended changes what counts, in the ledger and in the window it was taken in."""
    ref = await books.granted("metered", output_tokens=500)
    books.advance(60)
    await books.sweeper.sweep()
    for evidence, tokens in ((Evidence.ACCEPTED, (20, 0)), (Evidence.DELIVERED, (20, 5)), (Evidence.FINAL, (20, 9))):
        books.advance(60)
        assert await books.recorder.record([report(ref, evidence, tokens)]) == (RECORDED,)
        assert await books.total() == (1, *tokens)
        assert (await books.remaining())[TOKENS] == 10_000 - sum(tokens)
    assert await books.recorder.record([report(ref, Evidence.DELIVERED, (99, 99))]) == (KNOWN,)
    corrections = await books.rows(usage_corrections)
    assert sum(row.completion_tokens for row in corrections) == 9
    assert {row.reserve_time for row in corrections} == {START}


async def test_a_released_reservation_makes_no_event(books: Books) -> None:
    """Work that never began is in no sum."""
    ref = await books.granted("metered")
    await books.reservations.release([ref])
    books.advance(3_600)
    await books.sweeper.sweep()
    assert await books.rows(usage_events) == []


async def test_a_renewed_lease_goes_on(books: Books) -> None:
    """The sweeper leaves requests alone whose lease is renewed, also when something is known of them already."""
    ref = await books.granted("metered")
    await books.recorder.record([report(ref, Evidence.DELIVERED)])
    for _ in range(5):
        books.advance(40)
        assert (await books.reservations.renew([ref]))[0].lease_expire_time is not None
        await books.sweeper.sweep()
    assert await books.total() == (0, 0, 0)
    assert (await books.remaining())[IN_FLIGHT] == 3


async def test_the_sweeper_waits_a_lease_after_its_start(books: Books, limiter: Limiter) -> None:
    """Leases that ended while nobody could renew them may still be."""
    ref = await books.granted("metered")
    books.advance(100)
    restarted = Books(books.database, limiter, books.clock)
    await restarted.sweeper.sweep()
    assert await books.rows(usage_events) == []
    assert (await books.reservations.renew([ref]))[0].lease_expire_time is not None
    books.advance(59)
    await restarted.sweeper.sweep()
    assert await books.rows(usage_events) == []
    books.advance(1)
    await restarted.sweeper.sweep()
    assert len(await books.rows(usage_events)) == 1


async def test_several_sweepers_at_once(books: Books, limiter: Limiter) -> None:
    """Each lease is settled once, whichever replica gets it."""
    refs = [await books.granted("unlimited") for _ in range(20)]
    others = [Books(books.database, limiter, books.clock) for _ in range(3)]
    books.advance(60)
    await asyncio.gather(books.sweeper.sweep(), *(other.sweeper.sweep() for other in others))
    assert {row.event_id for row in await books.rows(usage_events)} == {ref.event_id for ref in refs}
    assert await books.total() == (20, 0, 0)


async def test_reports_whose_reservation_is_gone_settle_after_a_lease(books: Books) -> None:
    """Nobody will say that their lease has ended."""
    await books.recorder.record([report(new_ref(), Evidence.ACCEPTED, (20, 0))])
    books.advance(59)
    await books.sweeper.sweep()
    assert await books.total() == (0, 0, 0)
    books.advance(2)
    await books.sweeper.sweep()
    assert await books.total() == (1, 20, 0)


async def test_a_sweeper_that_dies_is_followed_by_another(books: Books, limiter: Limiter) -> None:
    """A lease that was claimed and not settled is claimed again."""
    await books.granted("metered")
    books.advance(60)
    assert len(await limiter.claim_expired(10, 30)) == 1
    await books.sweeper.sweep()
    assert await books.rows(usage_events) == []
    books.advance(30)
    await books.sweeper.sweep()
    assert await books.total() == (1, 0, 0)


async def test_a_lease_of_an_event_that_settled_before_is_closed(books: Books) -> None:
    """A reservation that was made after its own final report does not stay for ever."""
    ref = new_ref()
    await books.recorder.record([report(ref)])
    await books.granted("metered", ref=ref)
    books.advance(60)
    await books.sweeper.sweep()
    assert (await books.remaining())[IN_FLIGHT] == 4
    books.advance(60)
    assert await books.limiter.claim_expired(10, 30) == []
    assert await books.total() == (1, 7, 3)


async def test_usage_is_recorded_while_redis_is_away(books: Books) -> None:
    """The limiter is told when it is back: the outbox remembers."""
    ref = await books.granted("metered", output_tokens=500)
    away = new_limiter(f"redis://127.0.0.1:{free_port()}/0", now=START)
    cut_off = Books(books.database, away, books.clock)
    assert await cut_off.recorder.record([report(ref)]) == (RECORDED,)
    books.advance(2)
    await cut_off.sweeper.sweep()
    assert cut_off.metrics.registry.get_sample_value("naru_settlements_waiting") == 1
    await away.close()
    assert await books.total() == (1, 7, 3)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_490, IN_FLIGHT: 3}
    await books.sweeper.sweep()
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_990, IN_FLIGHT: 4}
    assert await books.rows(settlement_outbox) == []
    await books.sweeper.sweep()
    assert books.metrics.registry.get_sample_value("naru_settlements_waiting") == 0


async def test_the_default_output_is_taken_and_sent_as_a_cap(books: Books) -> None:
    """Where a limit on tokens applies and the caller set none; nowhere else."""
    decision = await books.reserve("metered", output_tokens=0)
    assert isinstance(decision.outcome, Grant)
    assert decision.outcome.output_token_cap == 4_096
    assert (await books.remaining())[TOKENS] == 10_000 - 10 - 4_096
    for tier, output in (("metered", 5), ("free", 0), ("unlimited", 0)):
        outcome = (await books.reserve(tier, output_tokens=output)).outcome
        assert isinstance(outcome, Grant)
        assert outcome.output_token_cap is None


async def test_a_free_key_gets_ten_requests_a_minute(books: Books) -> None:
    """The eleventh is told when to come back."""
    for _ in range(10):
        await books.reservations.release([await books.granted()])
    outcome = (await books.reserve()).outcome
    assert isinstance(outcome, NaruError)
    assert (outcome.reason, outcome.retry_after) == (Reason.RATE_LIMIT_EXCEEDED, 61.0)
    books.advance(61)
    await books.granted()


async def test_attempts_have_an_outcome_each(books: Books) -> None:
    """A retry elsewhere bills; the attempt that broke is kept as waste."""
    first = await books.granted("metered")
    second = EventRef(first.event_id, 1)
    await books.granted("metered", ref=second)
    await books.recorder.record([report(second, tokens=(7, 9))])
    books.advance(60)
    await books.sweeper.sweep()
    assert len(await books.rows(usage_events)) == 2
    assert await books.total() == (1, 7, 9)
    assert await books.remaining() == {REQUESTS: 99, TOKENS: 9_984, IN_FLIGHT: 4}


async def test_reservations_while_redis_is_away(books: Books) -> None:
    """Refused by the closed policy, admitted by the open one."""
    away = new_limiter(f"redis://127.0.0.1:{free_port()}/0")
    cut_off = Books(books.database, away, books.clock)
    with pytest.raises(NaruError) as failure:
        await cut_off.reserve()
    assert failure.value.reason is Reason.SERVICE_UNAVAILABLE
    books.reservations = cut_off.open_reservations
    outcome = (await books.reserve()).outcome
    assert outcome == Grant(START, START + 60 * SECOND)
    await away.close()
