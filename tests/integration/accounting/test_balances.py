"""Money taken off accounts while requests run, and counters that were off: no balance falls lower than it may."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from accounting.catalogue.catalogue import credit_limit
from accounting.ledger.ledger import EntryKind
from accounting.limiter.balances import Balances
from accounting.limits import Budget, LimitRule
from accounting.quota import Grant, LimitKind, LimitScope, LimitWindow
from naru.errors import NaruError, Reason
from naru.ids import uuid7
from naru.usage import Evidence
from tests.integration.accounting.harness import PRINCIPAL, START, WORK, Books, empty, new_limiter, refused, report
from tests.integration.accounting.test_prepaid import COST, Till, till

__all__ = ["till"]  # a fixture

DEBIT = EntryKind.ADJUSTMENT


async def swept(books: Books, times: int = 2) -> None:
    """Lets the sweeper reconcile."""
    for _ in range(times):
        books.advance(11)
        await books.sweeper.sweep()


async def test_a_debit_leaves_what_running_requests_may_use(till: Till, books: Books) -> None:
    """Money that is reserved cannot be taken off; what is free can, to the nano-unit."""
    await till.pay(3 * COST)
    running = await books.granted()
    error = await refused(till.pay(-2 * COST - 1, DEBIT))
    assert error.reason is Reason.FAILED_PRECONDITION
    assert (await till.account()).balance == 3 * COST
    assert await till.left() == 2 * COST
    await till.pay(-2 * COST, DEBIT)
    assert await till.left() == 0
    assert (await till.account()).balance == COST
    assert isinstance((await books.reserve()).outcome, NaruError)
    await books.reservations.release([running])
    assert await till.left() == (await till.account()).balance == COST


async def test_a_debit_is_not_spent_from_a_budget(till: Till, books: Books) -> None:
    """A budget for all time over the same workspace counts what was used, and money taken off its account is not."""
    await till.pay(100_000)
    rule = LimitRule(LimitKind.COST, LimitWindow.TOTAL, 60_000)
    await books.catalogue_store.add_budget(Budget("b", LimitScope.WORKSPACE, "ws-1", rule), needs_tier=False)
    await books.catalogue.refresh()
    await till.use(900)
    await till.pay(-50_000, DEBIT)
    await swept(books)
    overview = await books.reservations.overview(PRINCIPAL, "", WORK.served_model)
    ever = {one.limit.credit: one.remaining for one in overview.limits if one.limit.window is LimitWindow.TOTAL}
    assert ever == {True: 100_000 - 1_000 - 50_000, False: 60_000 - 1_000}


async def test_an_overdraft_is_lowered_only_as_far_as_it_is_free(till: Till, books: Books) -> None:
    """Running requests were promised it; raised again, all of it can be used again."""
    await till.pay(1)
    await till.manager.set_overdraft("ws-1", 2 * COST)
    await books.granted()
    error = await refused(till.manager.set_overdraft("ws-1", COST - 2))
    assert error.reason is Reason.FAILED_PRECONDITION
    account = await till.manager.set_overdraft("ws-1", COST - 1)
    assert (account.overdraft, account.balance) == (COST - 1, 1)
    assert await till.left() == 0
    await till.manager.set_overdraft("ws-1", 3 * COST)
    assert await till.left() == 2 * COST + 1


async def test_debits_and_requests_race(till: Till, books: Books) -> None:
    """On money for ten, in any order: every nano-unit goes to one of them, and the balance ends at its floor."""
    await till.pay(10 * COST)
    work = [books.reserve("unlimited") for _ in range(20)] + [till.pay(-COST, DEBIT) for _ in range(20)]
    answers = await asyncio.gather(*work, return_exceptions=True)
    debits = sum(isinstance(answer, tuple) for answer in answers)
    granted = sum(isinstance(getattr(answer, "outcome", None), Grant) for answer in answers)
    assert debits + granted == 10
    assert (await till.account()).balance == (10 - debits) * COST
    assert await till.left() == 0


async def test_the_same_debit_is_taken_once(till: Till) -> None:
    """However often it is asked for."""
    await till.pay(1_000)
    request_id = uuid7()
    answers = await asyncio.gather(*(till.pay(-400, DEBIT, request_id) for _ in range(8)))
    assert len({entry.entry_id for entry, _ in answers}) == 1
    assert await till.left() == (await till.account()).balance == 600


async def test_debits_survive_a_lost_redis_and_wait_for_its_recovery(till: Till, books: Books, redis_url: str) -> None:
    """Nobody knows what is reserved meanwhile, so nothing is taken off."""
    await till.pay(1_000)
    await till.pay(-300, DEBIT)
    await empty(redis_url)
    assert (await refused(till.pay(-1, DEBIT))).reason is Reason.SERVICE_UNAVAILABLE
    await books.epochs.check()
    assert (await refused(till.pay(-1, DEBIT))).reason is Reason.SERVICE_UNAVAILABLE
    books.advance(90)
    await books.epochs.check()
    assert await till.left() == (await till.account()).balance == 700
    await till.pay(-1, DEBIT)
    assert await till.left() == 699


async def test_a_correction_that_comes_too_late_for_the_limiter_counts(till: Till, books: Books) -> None:
    """Downwards and upwards, also while other requests run: the limiter has forgotten the reservation, the ledger has not."""
    await till.pay(100_000)
    dear, cheap = await books.granted(), await books.granted()
    await books.recorder.record([report(dear, Evidence.DELIVERED, (7, 300)), report(cheap, Evidence.DELIVERED, (7, 3))])
    books.advance(61)
    await books.sweeper.sweep()
    before = await till.left()
    assert before == (await till.account()).balance
    await _forget(books, dear.event_id, cheap.event_id)
    await books.granted()
    await books.recorder.record([report(dear, Evidence.FINAL, (7, 3)), report(cheap, Evidence.FINAL, (7, 4))])
    await swept(books)
    assert (await till.account()).balance == before + 297 * 10 - 10
    assert await till.left() == (await till.account()).balance - COST


async def test_a_debit_that_was_counted_and_not_posted_is_given_back(till: Till, books: Books) -> None:
    """Its transaction failed after the limiter had agreed."""
    await till.pay(1_000)
    limit = credit_limit("ws-1", 1_000)
    assert await Balances(books.limiter).take(limit, 400)
    assert await till.left() == 600
    await swept(books)
    assert await till.left() == 1_000


class Lossy:
    """Carries what is said to Redis and back; hangs up in place of the answer to what has a word in it, so many times."""

    def __init__(self, port: int, word: bytes, times: int) -> None:
        self._port, self._word, self._times = port, word, times
        self.heard = 0

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._port)
        while said := await reader.read(1 << 16):
            inner_writer.write(said)
            answer = await inner_reader.read(1 << 16)
            if self._word in said:
                self.heard += 1
                if self.heard <= self._times:
                    break
            writer.write(answer)
        writer.close()
        inner_writer.close()


@asynccontextmanager
async def lossy(redis_url: str, word: bytes, times: int = 1) -> AsyncIterator[tuple[Lossy, Balances]]:
    """Such a connection, and who works over it."""
    url = urlsplit(redis_url)
    assert url.port is not None
    relay = Lossy(url.port, word, times)
    server = await asyncio.start_server(relay.carry, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    limiter = new_limiter(url._replace(netloc=f"127.0.0.1:{port}").geturl(), now=START)
    yield relay, Balances(limiter)
    await limiter.redis.aclose()
    server.close()


async def test_a_debit_whose_answer_was_lost_is_counted_once(till: Till, books: Books, redis_url: str) -> None:
    """Whoever asked is told that nobody knows; what was counted is given back later, as it was not posted."""
    await till.pay(1_000)
    limit = credit_limit("ws-1", 1_000)
    async with lossy(redis_url, b"INCRBY") as (relay, balances):
        assert (await refused(balances.take(limit, 400))).reason is Reason.SERVICE_UNAVAILABLE
        assert relay.heard == 1
    assert await till.left() == 600
    await swept(books)
    assert await till.left() == 1_000


async def test_a_correction_whose_connection_breaks_is_left_for_later(till: Till, redis_url: str) -> None:
    """Redis goes away between looking and changing: nothing is changed, and nothing fails."""
    await till.pay(1_000)
    limit = credit_limit("ws-1", 1_000)
    async with lossy(redis_url, b"GET") as (relay, balances):
        assert await balances.correct(limit, 300) == 0
        assert relay.heard == 1
    assert await till.left() == 1_000


async def test_what_is_counted_right_stays(till: Till, books: Books) -> None:
    """With requests that run, that were settled, and that are reported but not settled."""
    await till.pay(100_000)
    await till.use(900)
    await books.granted()
    await books.recorder.record([report(await books.granted(), Evidence.DELIVERED)])
    left = await till.left()
    await swept(books, 3)
    assert await till.left() == left == 100_000 - 1_000 - 2 * COST


async def _forget(books: Books, *event_ids: str) -> None:
    """What Redis does with a reservation an hour after it was closed."""
    for event_id in event_ids:
        assert await books.limiter.redis.delete(f"{{naru-3}}:r:{event_id}:0") == 1
