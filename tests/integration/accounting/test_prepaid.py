"""Workspaces that pay in advance: the balance is a limit for all time."""

from __future__ import annotations

import asyncio
import time

import pytest

from accounting.catalogue.catalogue import credit_limit
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.store import CatalogueStore
from accounting.ledger.ledger import Account, CreditWish, Entry, EntryKind
from accounting.ledger.management import LedgerManager
from accounting.ledger.store import EntryFilter, LedgerStore
from accounting.limiter.balances import Balances
from accounting.limiter.limiter import Booked
from accounting.limits import Budget, LimitRule
from accounting.quota import Decision, Grant, LimitKind, LimitScope, LimitWindow
from naru.errors import NaruError, Reason
from naru.identity import Caller, Principal, Role, ServiceName
from naru.ids import uuid7
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import LOG, PRINCIPAL, START, WORK, Books, empty, refused, report
from tests.integration.accounting.test_costs import price, sell
from tests.support.copies import replace

OPERATOR = Caller(service=ServiceName.OPERATOR)
COST = 10 * 2 + 20 * 10 + 100
"""The most that the usual reservation can cost."""


class Till:
    """Where workspaces pay."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self.store = LedgerStore(books.database)
        self.manager = LedgerManager(
            store=self.store,
            limiter=books.limiter,
            balances=Balances(books.limiter),
            refresh=books.catalogue.refresh,
            clock=books.clock,
            new_id=uuid7,
        )

    async def pay(
        self, amount: int, kind: EntryKind = EntryKind.CREDIT, request_id: str = "", workspace_id: str = "ws-1"
    ) -> tuple[Entry, Account]:
        return await self.manager.credit(OPERATOR, workspace_id, CreditWish(kind, amount), request_id)

    async def account(self) -> Account:
        return await self.manager.balance(OPERATOR, "ws-1")

    async def left(self) -> int:
        """What the limiter lets the workspace use still."""
        overview = await self.books.reservations.overview(PRINCIPAL, "", WORK.served_model)
        (state,) = [one for one in overview.limits if one.limit.window is LimitWindow.TOTAL]
        assert state.limit.kind is LimitKind.COST
        return state.remaining

    async def use(self, tokens: int) -> None:
        """A request of so many nano-units over a hundred."""
        event = replace(report(await self.books.granted()), usage=Usage(tokens, 0))
        await self.books.recorder.record([event])


@pytest.fixture
async def till(books: Books) -> Till:
    await books.epochs.check()
    await sell(books, price(START))
    return Till(books)


async def test_a_balance_is_used_up(till: Till, books: Books) -> None:
    """By what requests cost exactly; then the refusal says that no waiting helps."""
    _, account = await till.pay(COST + 137)
    assert account == Account("ws-1", COST + 137, 0, 0)
    await till.use(37)
    assert (await till.account()).balance == await till.left() == COST
    ref = await books.granted()
    spent = (await books.reserve()).outcome
    assert isinstance(spent, NaruError)
    assert (spent.reason, spent.retry_after) == (Reason.INSUFFICIENT_QUOTA, None)
    assert spent.metadata == {"scope": "workspace", "window": "total"}
    await books.reservations.release([ref])
    assert await till.left() == COST


async def test_racing_requests_never_take_more_than_there_is(till: Till, books: Books) -> None:
    """200, 20 at once, on a balance for three, with an overdraft for two more: five get in, and all of it is paid."""
    await till.pay(3 * COST)
    await till.manager.set_overdraft("ws-1", 2 * COST + COST // 2)

    async def ask_on() -> list[Decision]:
        return [await books.reserve("unlimited") for _ in range(10)]

    # More at once would wait for a connection longer than a busy machine lets them.
    decisions = [one for many in await asyncio.gather(*(ask_on() for _ in range(20))) for one in many]
    granted = [one.ref for one in decisions if isinstance(one.outcome, Grant)]
    assert len(granted) == 5
    assert {one.outcome.reason for one in decisions if isinstance(one.outcome, NaruError)} == {
        Reason.INSUFFICIENT_QUOTA
    }
    dearest = Usage(10, 20, 10)
    await asyncio.gather(*(books.recorder.record([replace(report(ref), usage=dearest)]) for ref in granted))
    account = await till.account()
    assert account.overdraft is not None
    assert account.balance == -2 * COST >= -account.overdraft
    assert await till.left() == COST // 2


async def test_a_top_up_is_in_force_everywhere_within_a_second(till: Till, books: Books) -> None:
    """On another process, which only looks at the database."""
    other = CatalogueKeeper(CatalogueStore(books.database), {}, books.clock, LOG)
    await other.refresh()
    watching = asyncio.create_task(other.run())
    await till.pay(1)
    await asyncio.sleep(0.4)
    before = time.monotonic()
    await till.pay(999)
    async with asyncio.timeout(20):
        while [one.limit for one in other.current.limits(PRINCIPAL) if one.window is LimitWindow.TOTAL] != [1_000]:
            await asyncio.sleep(0.01)
    print(f"in force after {time.monotonic() - before:.2f} s")
    watching.cancel()
    await asyncio.wait([watching])


async def test_the_same_request_pays_once(till: Till) -> None:
    """However often and at whatever moments it comes; with other content it is refused."""
    request_id = uuid7()
    answers = await asyncio.gather(*(till.pay(500, request_id=request_id) for _ in range(10)))
    assert len({entry.entry_id for entry, _ in answers}) == 1
    assert (await till.account()).credited == 500
    for amount, kind, workspace_id in (
        (501, EntryKind.CREDIT, "ws-1"),
        (500, EntryKind.REFUND, "ws-1"),
        (500, EntryKind.CREDIT, "x"),
    ):
        error = await refused(till.pay(amount, kind, request_id, workspace_id))
        assert error.reason is Reason.ALREADY_EXISTS
    assert (await till.account()).credited == 500


async def test_arrears_have_no_bound(till: Till, books: Books) -> None:
    """Without a top-up nothing is refused; refunds and adjustments do not change that."""
    await till.use(900)
    await till.pay(10, EntryKind.REFUND)
    await till.pay(-2_000, EntryKind.ADJUSTMENT)
    await till.use(900)
    assert await till.account() == Account("ws-1", -1_990, 2_000, None)
    assert all(one.window is not LimitWindow.TOTAL for one in books.catalogue.current.limits(PRINCIPAL))


async def test_what_was_used_before_is_owed(till: Till, books: Books) -> None:
    """A workspace that begins to pay in advance pays its arrears first, and may go back to arrears."""
    await till.use(900)
    _, account = await till.pay(1_000 + COST - 1)
    assert account.balance == await till.left() == COST - 1
    assert isinstance((await books.reserve()).outcome, NaruError)
    await till.pay(1)
    await books.reservations.release([await books.granted()])
    await till.manager.set_overdraft("ws-1", None)
    await till.use(900)
    await till.use(900)
    await till.manager.set_overdraft("ws-1", 10_000)
    assert await till.left() == (await till.account()).balance + 10_000


async def test_debits_are_remembered_through_arrears(till: Till, books: Books, redis_url: str) -> None:
    """Redis was lost meanwhile: whoever pays in advance again has at once no more than the balance."""
    await till.pay(1_000)
    await till.pay(-400, EntryKind.ADJUSTMENT)
    await till.manager.set_overdraft("ws-1", None)
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    await books.epochs.check()
    await till.manager.set_overdraft("ws-1", 0)
    assert await till.left() == (await till.account()).balance == 600


async def test_debits_stop_at_the_overdraft(till: Till) -> None:
    """Also when several come at once."""
    await till.pay(1_000)
    await till.manager.set_overdraft("ws-1", 500)
    answers = await asyncio.gather(*(till.pay(-400, EntryKind.ADJUSTMENT) for _ in range(5)), return_exceptions=True)
    errors = [answer for answer in answers if isinstance(answer, NaruError)]
    assert [error.reason for error in errors] == [Reason.FAILED_PRECONDITION] * 2
    assert (await till.account()).balance == -200
    assert await till.left() == 300


@pytest.mark.parametrize(
    ("kind", "amount", "field"),
    [
        (EntryKind.CREDIT, 0, "credit.amount"),
        (EntryKind.CREDIT, -5, "credit.amount"),
        (EntryKind.REFUND, -5, "credit.amount"),
        (EntryKind.CREDIT, 9 * 10**15 + 1, "credit.amount"),
        (EntryKind.ADJUSTMENT, 0, "credit.amount"),
        (EntryKind.ADJUSTMENT, -9 * 10**15 - 1, "credit.amount"),
        (EntryKind.USAGE, 5, "credit.kind"),
    ],
)
async def test_amounts_that_cannot_be(till: Till, kind: EntryKind, amount: int, field: str) -> None:
    """They are refused by name."""
    error = await refused(till.pay(amount, kind))
    assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": field})


async def test_much_money_is_counted_exactly(till: Till, books: Books) -> None:
    """Far above what doubles hold: to the nano-unit."""
    for _ in range(3):
        await till.pay(9 * 10**15)
    await till.pay(COST)
    used = credit_limit("ws-1", 0)
    await books.limiter.load([Booked(used, 0, 3 * 9 * 10**15 + 1)])
    assert await till.left() == COST - 1
    assert isinstance((await books.reserve()).outcome, NaruError)
    await till.pay(1)
    await books.granted()
    assert await till.left() == 0


async def test_a_lost_redis_forgets_no_money(till: Till, books: Books, redis_url: str) -> None:
    """What was used comes back from the ledger, corrections that the limiter never heard of included."""
    await till.pay(10_000)
    await till.use(900)
    ref = await books.granted()
    await books.recorder.record([report(ref, Evidence.DELIVERED, (7, 3))])
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    await books.epochs.check()
    await books.sweeper.sweep()
    books.advance(61)
    await books.sweeper.sweep()
    books.advance(11)
    await books.sweeper.sweep()
    assert (await till.account()).balance == 10_000 - 1_000 - 137
    assert await till.left() == 10_000 - 1_000 - 137
    await books.recorder.record([report(ref, Evidence.FINAL, (7, 5))])
    books.advance(11)
    await books.sweeper.sweep()
    assert await till.left() == (await till.account()).balance == 10_000 - 1_000 - 157


async def test_a_lifetime_budget_counts_what_was_used_before(books: Books, redis_url: str) -> None:
    """Of any kind, once the sweeper has looked; it comes back after a loss of Redis."""
    await books.epochs.check()
    for _ in range(2):
        await books.recorder.record([report(await books.granted())])
    rule = LimitRule(LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 100)
    budget = Budget("b", LimitScope.KEY, "key-1", rule)
    await books.catalogue_store.add_budget(budget, needs_tier=False)
    await books.catalogue.refresh()
    await books.sweeper.sweep()
    assert (await books.remaining("free"))[LimitKind.TOTAL_TOKENS] == 80
    await books.recorder.record([report(await books.granted())])
    assert (await books.remaining("free"))[LimitKind.TOTAL_TOKENS] == 70
    books.advance(40 * 86_400)
    await empty(redis_url)
    await books.epochs.check()
    books.advance(90)
    await books.epochs.check()
    assert (await books.remaining("free"))[LimitKind.TOTAL_TOKENS] == 70


async def test_a_lifetime_budget_learns_of_what_comes_late(books: Books) -> None:
    """The limiter has forgotten the request: within a minute the budget counts what was reported of it all the same."""
    await books.epochs.check()
    rule = LimitRule(LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 100_000)
    await books.catalogue_store.add_budget(Budget("b", LimitScope.KEY, "key-1", rule), needs_tier=False)
    await books.catalogue.refresh()
    ref = await books.granted()
    await books.sweeper.sweep()
    books.advance(61)
    await books.sweeper.sweep()
    assert (await books.remaining("free"))[LimitKind.TOTAL_TOKENS] == 100_000
    assert await books.limiter.redis.delete(f"{{naru-3}}:r:{ref.event_id}:0") == 1
    await books.recorder.record([report(ref, tokens=(300, 100))])
    for _ in range(6):
        books.advance(11)
        await books.sweeper.sweep()
    assert (await books.remaining("free"))[LimitKind.TOTAL_TOKENS] == 100_000 - 400


async def test_entries_are_listed_page_by_page(till: Till) -> None:
    """Those booked last first, narrowed by kind, time and event, for those who may see them."""
    await till.pay(10_000)
    till.books.advance(1)
    await till.use(5)
    till.books.advance(1)
    await till.pay(30, EntryKind.REFUND)
    seen, token = [], ""
    while True:
        page = await till.manager.list_page(OPERATOR, EntryFilter("ws-1"), size=1, token=token)
        seen += page.rows
        token = page.next_page_token
        if not token:
            break
    assert [(entry.kind, entry.amount) for entry in seen] == [
        (EntryKind.REFUND, 30),
        (EntryKind.USAGE, -105),
        (EntryKind.CREDIT, 10_000),
    ]
    assert seen[0].caller == "service:operator"

    async def found(**fields: object) -> list[Entry]:
        which = replace(EntryFilter("ws-1"), **fields)  # type: ignore[arg-type] # names of its own fields
        return list((await till.manager.list_page(OPERATOR, which, size=10, token="")).rows)

    assert await found(kinds=(EntryKind.USAGE, EntryKind.REFUND)) == seen[:2]
    assert await found(event_id=seen[1].event_id) == [seen[1]]
    assert await found(start_time=START + 1_000_000, end_time=START + 2_000_000) == [seen[1]]
    mine = Caller(principal=Principal("ws-1", Role.WORKSPACE_ADMIN, key_id="k"))
    assert (await till.manager.list_page(mine, EntryFilter(""), size=10, token="")).rows == tuple(seen)
    theirs = Caller(principal=Principal("ws-2", Role.WORKSPACE_ADMIN, key_id="k"))
    for call in (
        till.manager.list_page(theirs, EntryFilter("ws-1"), size=10, token=""),
        till.manager.balance(theirs, "ws-1"),
    ):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED
    assert (await till.manager.balance(theirs, "")) == Account("ws-2")
