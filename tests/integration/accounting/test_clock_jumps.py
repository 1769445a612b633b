"""Clocks that jump a month ahead and back: the machine's own and that of Redis. What is billed stays what was used, and when."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from accounting.catalogue.prices import PriceManager, PriceWish
from accounting.limiter.limiter import Limiter
from accounting.quota import EventRef, Grant, LimitKind
from accounting.tables import ledger_entries, usage_events
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.identity import Caller, ServiceName
from naru.ids import uuid7
from naru.testing.clock import FakeClock
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import SECOND, START, WORK, Books, report
from tests.integration.accounting.test_costs import DEARER, PRICES, allow, left, price, sell
from tests.integration.accounting.test_ledger_verification import verifier
from tests.support.copies import replace

DAY = 86_400
MONTH = 30 * DAY
# One for each prompt token, ten for each generated one, a hundred for the request.
COST = 7 + 3 * 10 + 100
EXACT = Usage(7, 3)
# Enough for what has to be reserved by the prices of the wrong day.
BUDGET = 1_000_000


class WallClock(FakeClock):
    """A clock whose date can be set; what counts seconds goes on."""

    def __init__(self) -> None:
        super().__init__(START / SECOND)
        self.wrong_by = 0.0

    def time(self) -> float:
        return super().time() + self.wrong_by


@dataclass
class Machine:
    """An accounting on a machine whose clock can be wrong; Redis has a clock of its own."""

    books: Books
    clock: WallClock

    async def day_in_seconds(self) -> None:
        """Everything that is done from time to time, once."""
        await self.books.sweeper.sweep()
        await self.books.catalogue.refresh()

    async def settle(self, ref: EventRef) -> None:
        """The exact report of a request."""
        await self.books.recorder.record([replace(report(ref), usage=EXACT)])


@pytest.fixture
async def machine(database: Database, limiter: Limiter) -> Machine:
    """Its prices rise in twenty days."""
    clock = WallClock()
    books = Books(database, limiter, clock)
    await books.epochs.check()
    await sell(books, price(START), price(START + 20 * DAY * SECOND, DEARER))
    books.advance(61)
    return Machine(books, clock)


async def booked_at(books: Books, table: sa.Table) -> set[int]:
    """The times that everything in a table is booked at."""
    column = "reserve_time" if table is usage_events else "booked_time"
    return {getattr(row, column) for row in await books.rows(table)}


@pytest.mark.parametrize("jump", [MONTH, -MONTH, 400 * DAY])
async def test_our_own_clock_jumps_and_comes_back(machine: Machine, jump: float) -> None:
    """Redis's time decides: no lease ends early, no window moves, and each is billed by the price of when it was reserved."""
    books = machine.books
    await allow(books, BUDGET)
    now = books.limiter.now
    assert now is not None
    before, waiting = await books.granted("metered"), await books.granted("metered")
    await books.recorder.record([report(waiting, Evidence.DELIVERED, (7, 1))])
    machine.clock.wrong_by = jump
    for _ in range(3):
        await machine.day_in_seconds()
    assert await books.total() == (0, 0, 0)
    assert (await books.remaining())[LimitKind.CONCURRENCY] == 2
    assert all(await books.reservations.renew([before, waiting]))
    meanwhile = await books.granted("metered")
    await machine.settle(before)
    machine.clock.wrong_by = 0.0
    await machine.day_in_seconds()
    await machine.settle(waiting)
    await machine.settle(meanwhile)
    assert await books.total() == (3, 21, 9)
    assert await booked_at(books, usage_events) == await booked_at(books, ledger_entries) == {now}
    assert await left(books) == BUDGET - 3 * COST
    assert await books.remaining() == {
        LimitKind.REQUESTS: 97,
        LimitKind.TOTAL_TOKENS: 9_970,
        LimitKind.CONCURRENCY: 4,
        LimitKind.COST: BUDGET - 3 * COST,
    }
    books.advance(121)
    assert (await verifier(books).verify()).findings == ()


async def test_a_price_is_set_while_redis_is_ahead(machine: Machine) -> None:
    """It begins after whatever was reserved by then, for which the price of its grant stays."""
    books = machine.books
    assert books.limiter.now is not None
    books.limiter.now += 10 * SECOND
    decision = await books.reserve("metered")
    assert isinstance(decision.outcome, Grant)
    assert decision.outcome.prices == PRICES
    prices = PriceManager(
        store=books.catalogue_store,
        refresh=books.catalogue.refresh,
        clock=machine.clock,
        limiter_time=books.limiter.time,
        new_id=uuid7,
    )
    dearer = await prices.create(Caller(service=ServiceName.OPERATOR), PriceWish(WORK.served_model, DEARER))
    await machine.settle(decision.ref)
    books.limiter.now = dearer.effective_time
    await machine.settle(await books.granted("metered"))
    assert {event.cost for event in await books.rows(usage_events)} == {COST, DEARER.cost(EXACT)}


async def test_the_clock_of_redis_jumps_and_comes_back(machine: Machine) -> None:
    """Leases end too early, which the exact reports put right; back again, time stands still rather than go back."""
    books = machine.books
    now = books.limiter.now
    assert now is not None
    running = [await books.granted("metered") for _ in range(4)]
    books.limiter.now = now + MONTH * SECOND
    await machine.day_in_seconds()
    assert await books.total() == (4, 0, 0)
    # Nobody knows that they still run, and a month later the windows are empty.
    later = [await books.granted("free") for _ in range(4)]
    await books.reservations.release(later)
    books.limiter.now = now + SECOND
    for ref in running:
        await machine.settle(ref)
    assert await books.total() == (4, 28, 12)
    assert await booked_at(books, usage_events) == await booked_at(books, ledger_entries) == {now}
    # Those of the wrong time count on: within a minute of it there were four, and there will be no more than ten.
    for _ in range(6):
        await books.reservations.release([await books.granted("free")])
    refused = (await books.reserve("free")).outcome
    assert isinstance(refused, NaruError)
    assert refused.reason is Reason.RATE_LIMIT_EXCEEDED
    books.limiter.now = now + (MONTH + 61) * SECOND
    assert isinstance((await books.reserve("free")).outcome, Grant)
    assert (await verifier(books).verify()).findings == ()
