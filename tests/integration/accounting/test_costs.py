"""What requests cost, and the budgets that they are paid from."""

from __future__ import annotations

from functools import partial

from accounting.catalogue.catalogue import Price
from accounting.limiter.reservations import Reservations
from accounting.limits import Budget, LimitRule
from accounting.quota import Decision, Grant, LimitKind, LimitScope, LimitWindow, Reservation
from accounting.tables import usage_corrections, usage_events
from accounting.usage.reporting import UsageQuery, UsageRow
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.metrics import Metrics
from naru.pricing import UnitPrices
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import (
    LOG,
    PRINCIPAL,
    SECOND,
    START,
    WORK,
    Books,
    empty,
    new_outcomes,
    report,
    reservation,
)
from tests.support.copies import replace

# One nano-unit for a prompt token, two for a cached one, ten for one generated, a hundred for the request.
PRICES = UnitPrices(1_000_000, 2_000_000, 10_000_000, 100)
DEARER = UnitPrices(1_000_000_000, 1_000_000_000, 1_000_000_000, 0)


def price(effective_time: int, prices: UnitPrices = PRICES, workspace_id: str = "") -> Price:
    """A price of the model that tests use."""
    return Price(
        f"price-{workspace_id}{effective_time}", WORK.served_model, workspace_id, prices, effective_time, START
    )


def _same(one: Price) -> Price:
    return one


async def sell(books: Books, *prices: Price) -> None:
    """Puts prices in force."""
    for one in prices:
        await books.catalogue_store.add_price(one.price_id, partial(_same, one))
    await books.catalogue.refresh()


async def allow(books: Books, limit: int, window: LimitWindow = LimitWindow.MONTH) -> None:
    """Gives the workspace a budget."""
    rule = LimitRule(LimitKind.COST, window, limit)
    await books.catalogue_store.add_budget(
        Budget("b", LimitScope.WORKSPACE, PRINCIPAL.workspace_id, rule), needs_tier=False
    )
    await books.catalogue.refresh()


async def left(books: Books) -> int:
    """What is left of the budget."""
    (state,) = [
        state
        for state in (await books.reservations.overview(PRINCIPAL, "", WORK.served_model)).limits
        if state.limit.kind is LimitKind.COST
    ]
    return state.remaining


async def row(books: Books) -> UsageRow:
    """All that counts."""
    (found,) = await books.reports.usage(UsageQuery(), None, 10)
    return found


async def test_a_request_is_paid_for(books: Books) -> None:
    """The most it can cost is taken before, what it did cost stays after, and the grant says what units cost."""
    await sell(books, price(START))
    await allow(books, 10_000)
    decision = await books.reserve(input_tokens=10, output_tokens=20)
    assert isinstance(decision.outcome, Grant)
    assert decision.outcome.prices == PRICES
    assert await left(books) == 10_000 - (10 * 2 + 20 * 10 + 100)
    await books.recorder.record([replace(report(decision.ref), usage=Usage(10, 3, 4))])
    cost = 6 * 1 + 4 * 2 + 3 * 10 + 100
    assert await left(books) == 10_000 - cost
    assert await row(books) == UsageRow((), 1, Usage(10, 3, 4), cost)
    (event,) = await books.rows(usage_events)
    assert event.price_id == f"price-{START}"


async def test_a_spent_budget_refuses(books: Books) -> None:
    """With the code that clients know for it."""
    await sell(books, price(START))
    await allow(books, 619)
    await books.granted(input_tokens=10, output_tokens=20)
    refused = (await books.reserve(input_tokens=10, output_tokens=20)).outcome
    assert isinstance(refused, NaruError)
    assert (refused.reason, refused.metadata) == (
        Reason.INSUFFICIENT_QUOTA,
        {"scope": "workspace", "window": "month"},
    )


async def test_money_needs_a_cap_on_what_is_generated(books: Books) -> None:
    """Where the caller set none, the tier's default is taken and sent to the engine."""
    await sell(books, price(START))
    free = (await books.reserve(output_tokens=0)).outcome
    await allow(books, 10**9)
    paid = (await books.reserve(output_tokens=0)).outcome
    assert isinstance(free, Grant)
    assert isinstance(paid, Grant)
    assert (free.output_token_cap, paid.output_token_cap) == (None, 4_096)
    before = await left(books)
    three = (await books.reserve(output_tokens=0, input_tokens=0, choices=3)).outcome
    assert isinstance(three, Grant)
    assert (three.output_token_cap, before - await left(books)) == (4_096, 3 * 4_096 * 10 + 100)


async def test_usage_is_priced_when_it_was_reserved(books: Books) -> None:
    """A price that begins in between is for later requests."""
    await sell(books, price(START), price(START + SECOND, DEARER))
    ref = await books.granted()
    books.advance(1)
    later = await books.granted()
    await books.recorder.record([replace(report(one), usage=Usage(1, 0)) for one in (ref, later)])
    assert sorted(event.cost for event in await books.rows(usage_events)) == [101, 1_000]


async def test_what_a_grant_says_it_costs_is_what_is_billed(books: Books) -> None:
    """Also where a price begins between the question and the limiter's answer, and when the same is asked again after it."""
    await sell(books, price(START), price(START + SECOND, DEARER))
    before = await books.reserve()
    assert books.limiter.now is not None
    books.limiter.now += SECOND
    after = await books.reserve()
    books.clock.advance(1)
    again = await books.reserve(ref=before.ref)
    for decision, prices in ((before, PRICES), (after, DEARER), (again, PRICES)):
        assert isinstance(decision.outcome, Grant)
        assert decision.outcome.prices == prices


async def test_evidence_that_comes_late_is_priced_as_what_was_booked(books: Books) -> None:
    """The limiter has forgotten when it was reserved; its row has not."""
    await sell(books, price(START), price(START + SECOND, DEARER))
    ref = await books.granted()
    await books.recorder.record([report(ref, Evidence.DELIVERED)])
    assert await books.limiter.redis.delete(f"{{naru-3}}:r:{ref.event_id}:0") == 1
    late = replace(report(ref), usage=Usage(1, 0), accept_time=START + 2 * SECOND)
    await books.recorder.record([late])
    (event,) = await books.rows(usage_events)
    assert (event.reserve_time, event.cost, event.price_id) == (START, 101, f"price-{START}")


async def test_a_budget_counts_what_was_used_before_it_was_made(books: Books) -> None:
    """Of its period, as after a loss of Redis; once the sweeper has looked."""
    await books.epochs.check()
    await sell(books, price(START))
    for _ in range(2):
        await books.recorder.record([replace(report(await books.granted()), usage=Usage(10, 3, 4))])
    await allow(books, 10_000)
    books.advance(11)
    await books.sweeper.sweep()
    assert await left(books) == 10_000 - 2 * (6 * 1 + 4 * 2 + 3 * 10 + 100)


async def test_a_workspace_has_a_price_of_its_own(books: Books) -> None:
    """Nobody else has it."""
    await sell(books, price(START), price(START, DEARER, "ws-2"))
    theirs = replace(WORK, principal=Principal("ws-2", key_id="key-2"))
    mine = await books.granted()
    (decision,) = await books.reservations.reserve([reservation(work=theirs)])
    events = [report(mine), replace(report(decision.ref), work=theirs)]
    await books.recorder.record([replace(event, usage=Usage(1, 0)) for event in events])
    assert sorted(event.cost for event in await books.rows(usage_events)) == [101, 1_000]


async def test_better_evidence_corrects_the_cost(books: Books) -> None:
    """In the record, in the corrections, and in the budget."""
    await sell(books, price(START))
    await allow(books, 10_000)
    ref = await books.granted()
    await books.recorder.record([report(ref, Evidence.DELIVERED, (7, 3))])
    books.advance(60)
    await books.sweeper.sweep()
    assert ((await row(books)).cost, await left(books)) == (137, 10_000 - 137)
    await books.recorder.record([report(ref, Evidence.FINAL, (7, 5))])
    assert ((await row(books)).cost, await left(books)) == (157, 10_000 - 157)
    (correction,) = await books.rows(usage_corrections)
    assert (correction.completion_tokens, correction.cost) == (2, 20)


async def test_what_nobody_reported_costs_nothing(books: Books) -> None:
    """Not even the request, and it is not called unpriced."""
    await sell(books, price(START))
    await allow(books, 10_000)
    await books.granted()
    books.advance(60)
    await books.sweeper.sweep()
    assert await row(books) == UsageRow((), 1, Usage())
    assert await left(books) == 10_000


async def test_a_retry_elsewhere_is_paid_for_once(books: Books) -> None:
    """The attempt that bills is the last; the one before it is waste, whenever it reports."""
    await sell(books, price(START))
    await allow(books, 10_000)
    first = await books.granted()
    second = await books.granted(ref=replace(first, attempt=1))
    await books.recorder.record([replace(report(second), usage=Usage(1, 0))])
    await books.recorder.record([replace(report(first), usage=Usage(1_000, 0))])
    assert ((await row(books)).cost, await left(books)) == (101, 10_000 - 101)


async def test_models_without_a_price(books: Books) -> None:
    """They cost nothing, visibly, or are refused, as the operator wants."""
    await books.recorder.record([report(await books.granted())])
    assert (await row(books)).unpriced_requests == 1
    strict = Reservations(
        limiter=books.limiter,
        catalogue=books.catalogue,
        outcomes=new_outcomes(books.limiter, Metrics()),
        clock=books.clock,
        logger=LOG,
        metrics=Metrics(),
        lease_seconds=60,
        admit_when_lost=False,
        refuse_unpriced=True,
    )
    await sell(books, price(START))
    other: Reservation = reservation(work=replace(WORK, served_model="another"))
    decisions: list[Decision] = await strict.reserve([other, reservation()])
    refused, granted = (decision.outcome for decision in decisions)
    assert isinstance(refused, NaruError)
    assert (refused.reason, refused.metadata) == (Reason.FAILED_PRECONDITION, {"model": "another"})
    assert isinstance(granted, Grant)


async def test_calendar_windows_come_back_from_sql(books: Books, redis_url: str) -> None:
    """A month's budget does not begin anew when Redis is emptied."""
    await sell(books, price(START))
    await allow(books, 10_000)
    await books.epochs.check()
    await books.recorder.record([report(await books.granted(), tokens=(7, 3))])
    books.advance(5 * 86_400)
    await books.recorder.record([report(await books.granted(), tokens=(7, 3))])
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    await books.epochs.check()
    assert await left(books) == 10_000 - 2 * 137
