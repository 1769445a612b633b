"""Which requests find their capacity taken already, and what becomes of what nobody used."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from edge.accounts import EventRef, LimitKind, LimitScope, LimitState, LimitWindow, Reservation, ReserveResult
from edge.spares import Spare, Spares
from naru.errors import unavailable
from naru.identity import Principal
from naru.ids import uuid7
from naru.lifecycle import Background
from naru.testing.clock import FakeClock
from tests.support.copies import replace

START = 1_800_000_000.05
PRINCIPAL = Principal("ws-1", key_id="key-1")
LIMITS = tuple(
    LimitState(LimitScope.KEY, kind, LimitWindow.MINUTE, 1_000_000, 900_000, 60.0)
    for kind in (LimitKind.REQUESTS, LimitKind.INPUT_TOKENS, LimitKind.OUTPUT_TOKENS, LimitKind.TOTAL_TOKENS)
)


def wanted(**fields: object) -> Reservation:
    """What a request wants of 9 tokens at most 20 more."""
    made = Reservation(
        uuid7(), 0, 0, PRINCIPAL, "192.0.2.1", "m", "m", "/v1/chat/completions", 9, 20, 1, f"req_{uuid7()}"
    )
    return replace(made, **fields)


class Accounting:
    """Grants as many spares as it is told to, by a clock that runs with the edge's."""

    def __init__(self) -> None:
        self.clock = FakeClock(START)
        self.background = Background(lambda name, error: pytest.fail(f"{name}: {error}"))
        self.asked: list[Reservation] = []
        self.unused: list[EventRef] = []
        self.most = 256
        self.answer: Callable[[Reservation], Awaitable[ReserveResult]] = self.grant
        self.spares = Spares(
            ask=self.ask,
            unused=self.unused.append,
            clock=self.clock,
            background=self.background,
            new_event_id=uuid7,
        )

    async def ask(self, reservation: Reservation) -> ReserveResult:
        self.asked.append(reservation)
        return await self.answer(reservation)

    async def grant(self, reservation: Reservation) -> ReserveResult:
        """As many as it may, now."""
        spares = min(len(reservation.spare_event_ids), self.most)
        return ReserveResult(limits=LIMITS, reserve_time=self.clock.time(), spares=spares, output_token_cap=7)

    async def take(self, count: int, seconds: float = 0.0, **fields: object) -> list[Spare | None]:
        """What so many requests get that come evenly within so many seconds."""
        taken = []
        for _ in range(count):
            taken.append(self.spares.take(wanted(**fields)))
            self.clock.advance(seconds / count)
            for _ in range(3):
                await asyncio.sleep(0)
        return taken


@pytest.fixture
async def accounting() -> AsyncIterator[Accounting]:
    """One whose seconds begin with the test."""
    made = Accounting()
    yield made
    made.spares.close()
    await made.background.close()


async def test_a_few_requests_a_second_reserve_for_themselves(accounting: Accounting) -> None:
    """13 a second are too few for anything to be taken in advance."""
    assert await accounting.take(52, 4.0) == [None] * 52
    assert accounting.asked == []


async def test_many_requests_find_their_capacity_taken(accounting: Accounting) -> None:
    """Of 200 a second nearly all do; each has an event of its own, in figures that do for it, and its own request id."""
    await accounting.take(200, 1.0)
    found = [spare for spare in await accounting.take(200, 1.0, request_id="r") if spare is not None]
    assert len(found) > 180
    events = {spare.reservation.event_id for spare in found}
    assert len(events) == len(found)
    for spare in found:
        assert spare.reservation == wanted(event_id=spare.reservation.event_id, request_id="r", input_tokens=15)
        assert spare.result.output_token_cap == 7
    assert events <= {event_id for one in accounting.asked for event_id in one.spare_event_ids}
    assert all(one.event_id == one.spare_event_ids[0] and one.request_id == "" for one in accounting.asked)


async def test_each_says_what_is_left_after_it(accounting: Accounting) -> None:
    """As if it had been reserved after those that were taken with it."""
    spares = [spare for spare in await accounting.take(60) if spare is not None]
    first, second = spares[0].result.limits, spares[1].result.limits
    assert [state.remaining for state in first] == [899_999, 899_985, 899_980, 899_965]
    assert [state.remaining for state in second] == [899_998, 899_970, 899_960, 899_930]


async def test_none_is_used_after_its_second(accounting: Accounting) -> None:
    """It counts in the second in which it was taken, so what is left then is given back, and nobody gets it."""
    await accounting.take(200, 0.5)
    accounting.clock.advance(0.449)
    last = accounting.spares.take(wanted())
    assert last is not None
    taken = {event_id for one in accounting.asked for event_id in one.spare_event_ids}
    accounting.clock.advance(0.002)
    asked = len(accounting.asked)
    assert accounting.spares.take(wanted()) is None
    assert accounting.unused
    assert {event.event_id for event in accounting.unused} < taken
    assert len({event.event_id for event in accounting.unused}) == len(accounting.unused)
    assert last.reservation.event not in accounting.unused
    await asyncio.sleep(0)
    assert len(accounting.asked) == asked + 1


async def test_what_nobody_comes_for_is_given_back(accounting: Accounting) -> None:
    """Also when no request comes any more."""
    spares = await accounting.take(100)
    taken = {event_id for one in accounting.asked for event_id in one.spare_event_ids}
    used = {spare.reservation.event_id for spare in spares if spare is not None}
    accounting.clock.advance(1.0)
    async with asyncio.timeout(10):
        while {event.event_id for event in accounting.unused} != taken - used:
            await asyncio.sleep(0.01)
    assert taken - used


async def test_an_answer_that_comes_late_is_of_no_use(accounting: Accounting) -> None:
    """What was decided in a second that is over by now is given back."""
    release = asyncio.Event()

    async def late(reservation: Reservation) -> ReserveResult:
        granted = await accounting.grant(reservation)
        await release.wait()
        return granted

    accounting.answer = late
    assert await accounting.take(40) == [None] * 40
    asked = accounting.asked[0].spare_event_ids
    accounting.clock.advance(1.2)
    release.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert await accounting.take(1) == [None]
    assert tuple(event.event_id for event in accounting.unused) == asked


async def test_requests_of_other_kinds_have_their_own(accounting: Accounting) -> None:
    """Another caller, address, model, endpoint, length of the answer, number of choices, or a longer prompt."""
    await accounting.take(100)
    assert accounting.spares.take(wanted()) is not None
    assert accounting.spares.take(wanted(input_tokens=15)) is not None
    others: list[dict[str, object]] = [
        {"principal": Principal("ws-1", key_id="key-2")},
        {"client_address": "192.0.2.2"},
        {"requested_model": "alias"},
        {"served_model": "n"},
        {"endpoint": "/v1/completions"},
        {"output_tokens": 21},
        {"choices": 2},
        {"input_tokens": 16},
    ]
    assert [accounting.spares.take(wanted(**fields)) for fields in others] == [None] * len(others)


async def test_where_limits_are_short_it_does_not_insist(accounting: Accounting) -> None:
    """It gets fewer than it asked for once a second, and uses those."""
    accounting.most = 1
    spares = await accounting.take(100, 0.9)
    assert sum(spare is not None for spare in spares) == 1
    assert len(accounting.asked) == 1
    await accounting.take(50, 0.5)
    assert len(accounting.asked) == 2


async def test_what_may_have_been_taken_is_given_back(accounting: Accounting) -> None:
    """Where nobody answers, requests ask for themselves, and what was asked in advance may have been done all the same."""

    async def away(reservation: Reservation) -> ReserveResult:
        raise unavailable("accounting")

    accounting.answer = away
    assert await accounting.take(40) == [None] * 40
    asked = [event_id for one in accounting.asked for event_id in one.spare_event_ids]
    assert [event.event_id for event in accounting.unused] == asked
    assert asked


async def test_the_end_gives_all_back(accounting: Accounting) -> None:
    """A stop leaves nothing behind."""
    spares = await accounting.take(100)
    used = {spare.reservation.event_id for spare in spares if spare is not None}
    accounting.spares.close()
    taken = {event_id for one in accounting.asked for event_id in one.spare_event_ids}
    assert {event.event_id for event in accounting.unused} == taken - used
