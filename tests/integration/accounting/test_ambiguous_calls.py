"""Calls of which nobody knows whether they happened, through limiter, books and ledger at once.

`docs/testing.md` says where the others of their kind are tested.
"""

from __future__ import annotations

from itertools import permutations

import pytest

from accounting.quota import EventRef, Grant, LimitKind
from accounting.tables import ledger_entries, settlement_outbox
from naru.errors import NaruError, Reason
from naru.usage import Evidence
from tests.integration.accounting.harness import START, Books, new_ref, report
from tests.integration.accounting.test_costs import price, sell
from tests.integration.accounting.test_ledger_verification import verifier
from tests.support.copies import replace

UNTOUCHED = {LimitKind.REQUESTS: 100, LimitKind.TOTAL_TOKENS: 10_000, LimitKind.CONCURRENCY: 4}


async def billed(books: Books) -> int:
    """What the ledger took off the account."""
    return -sum(row.amount for row in await books.rows(ledger_entries))


async def test_a_reserve_that_timed_out(books: Books) -> None:
    """Decided, and the answer lost: asked again it is the same grant; given up, only the request stays counted, and no event."""
    ref = new_ref()
    first = await books.reserve("metered", ref=ref, output_tokens=500)
    again = await books.reserve("metered", ref=ref, output_tokens=500)
    assert isinstance(first.outcome, Grant)
    assert again.outcome == first.outcome
    assert (await books.remaining())[LimitKind.TOTAL_TOKENS] == 10_000 - 510
    await books.reservations.release([ref])
    assert await books.remaining() == UNTOUCHED | {LimitKind.REQUESTS: 99}
    books.advance(121)
    await books.sweeper.sweep()
    assert await books.total() == (0, 0, 0)


async def test_a_release_that_overtakes_its_reserve(books: Books) -> None:
    """The reservation that comes after it takes nothing, however often, and leaves nothing to sweep."""
    ref = new_ref()
    await books.reservations.release([ref])
    for seconds in (0, 30, 3_600):
        books.advance(seconds)
        late = (await books.reserve("metered", ref=ref)).outcome
        assert isinstance(late, NaruError)
        assert late.reason is Reason.FAILED_PRECONDITION
    assert await books.remaining() == UNTOUCHED
    await books.sweeper.sweep()
    assert await books.total() == (0, 0, 0)


@pytest.mark.parametrize("order", list(permutations(["edge", "journal", "lease"])), ids="-".join)
async def test_the_edge_and_the_journal_report_in_any_order(books: Books, order: tuple[str, ...]) -> None:
    """Before or after the end of the lease, whoever comes first: the journal's figures count, once."""
    await sell(books, price(START))
    ref = await books.granted("metered", output_tokens=500)
    for step in order:
        if step == "lease":
            books.advance(61)
            await books.sweeper.sweep()
        else:
            evidence, tokens = (Evidence.DELIVERED, (20, 5)) if step == "edge" else (Evidence.FINAL, (20, 9))
            await books.recorder.record([report(ref, evidence, tokens)])
    assert await books.total() == (1, 20, 9)
    assert await billed(books) == 20 + 9 * 10 + 100
    assert await books.remaining() == UNTOUCHED | {LimitKind.REQUESTS: 99, LimitKind.TOTAL_TOKENS: 10_000 - 29}
    assert await books.rows(settlement_outbox) == []
    books.advance(121)
    assert (await verifier(books).verify()).findings == ()


@pytest.mark.parametrize("late", [Evidence.ACCEPTED, Evidence.DELIVERED, Evidence.FINAL])
@pytest.mark.parametrize("settled", [False, True], ids=["while the retry runs", "after the retry"])
async def test_an_attempt_elsewhere_whose_first_attempt_reports_late(
    books: Books, late: Evidence, settled: bool
) -> None:
    """The retry alone is billed and counted, in the ledger and in the windows; what the first used is waste."""
    await books.epochs.check()
    await sell(books, price(START))
    first = await books.granted("metered", output_tokens=500)
    second = EventRef(first.event_id, 1)
    await books.granted("metered", ref=second, output_tokens=500)
    steps = [report(first, late, (20, 50)), report(second, tokens=(20, 9))]
    for one in reversed(steps) if settled else steps:
        await books.recorder.record([one])
        await books.recorder.record([replace(one)])
    books.advance(61)
    await books.sweeper.sweep()
    assert await books.total() == (1, 20, 9)
    assert await billed(books) == 20 + 9 * 10 + 100
    assert await books.remaining() == UNTOUCHED | {LimitKind.REQUESTS: 99, LimitKind.TOTAL_TOKENS: 10_000 - 29}
    books.advance(121)
    assert (await verifier(books).verify()).findings == ()
