"""Reservations in advance: who makes many requests of a kind finds the next one's capacity taken already.

Accounting takes spares only while there is plenty left of every limit, and counts them in the second in which it takes them; a
request may use one within that second alone, so it counts as if it had been asked for itself. What no request used by then is
given back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import msgspec

from edge.accounts import EventRef, LimitKind, LimitState, Reservation, ReserveResult
from naru.clock import Clock
from naru.errors import NaruError
from naru.identity import Principal
from naru.lifecycle import Background

_MOST = 256
"""At a time, which is what accounting allows."""
_PARTS_OF_SECOND = 8
"""Spares are for an eighth of what is expected in a second."""
_LEAST = 2
_SWEEP_SECONDS = 0.25
_IDLE_SECONDS = 2.0
_ALMOST_OVER_SECONDS = 0.03


class Spare(NamedTuple):
    """A reservation that was made in advance, and what was decided on it."""

    reservation: Reservation
    result: ReserveResult


class _Ready(NamedTuple):
    event: EventRef
    until: float
    result: ReserveResult


class _Supply:
    """Spares of one kind, and how many requests of the kind there are."""

    __slots__ = ("before", "count", "filling", "input_tokens", "pause", "principal", "ready", "second")

    def __init__(self, principal: Principal, input_tokens: int, now: float) -> None:
        # Held, so that no other has its identity.
        self.principal = principal
        self.input_tokens = input_tokens
        self.ready: deque[_Ready] = deque()
        self.filling = False
        # Where limits are short, until when nothing is asked for.
        self.pause = 0.0
        self.second, self.count, self.before = now, 0, 0

    def note(self, now: float) -> None:
        """Counts a request."""
        elapsed = now - self.second
        if elapsed >= 1.0:
            self.second, self.count, self.before = now, 0, self.count if elapsed < _IDLE_SECONDS else 0
        self.count += 1

    def wanted(self, now: float, left: float) -> int:
        """How many to reserve now, where `left` seconds are left of the second; 0: none."""
        if self.filling or now < self.pause:
            return 0
        part = min(max(self.before, self.count) * min(left, 1 / _PARTS_OF_SECOND), _MOST)
        return int(part) if part >= _LEAST and len(self.ready) * 2 <= part else 0


class Spares:
    """Keeps spares of those kinds of requests of which there are many.

    Args:
        ask: Reserves.
        unused: Gives a spare back; does not wait.
        background: Owns what is asked in advance.
        new_event_id: Makes the UUIDv7 of a request.
    """

    def __init__(
        self,
        *,
        ask: Callable[[Reservation], Awaitable[ReserveResult]],
        unused: Callable[[EventRef], None],
        clock: Clock,
        background: Background,
        new_event_id: Callable[[], str],
    ) -> None:
        self._ask = ask
        self._unused = unused
        self._clock = clock
        self._background = background
        self._new_event_id = new_event_id
        self._supplies: dict[tuple[object, ...], _Supply] = {}
        # When a second of the limiter's clock does, as far as anything was heard of it.
        self._second_ends: float | None = None
        self._sweep: asyncio.TimerHandle | None = None

    def take(self, wanted: Reservation) -> Spare | None:
        """A spare that does for a request's first reservation, None when there is none; sees to it that there are more."""
        now = self._clock.monotonic()
        supply = self._supply_of(wanted, now)
        supply.note(now)
        self._drop_old(supply, now)
        found = supply.ready.popleft() if supply.ready else None
        number = supply.wanted(now, self._left_of_second(now))
        if number:
            supply.filling = True
            _ = self._background.spawn("spares", self._fill(supply, wanted, number))
        if found is None:
            return None
        reservation = msgspec.structs.replace(wanted, event_id=found.event.event_id, input_tokens=supply.input_tokens)
        return Spare(reservation, found.result)

    def close(self) -> None:
        """Gives all of them back."""
        if self._sweep is not None:
            self._sweep.cancel()
        for supply in self._supplies.values():
            self._drop_old(supply, float("inf"))
        self._supplies.clear()

    def _supply_of(self, wanted: Reservation, now: float) -> _Supply:
        # Prompts up to the next power of two are of a kind.
        bits = wanted.input_tokens.bit_length()
        kind = (
            id(wanted.principal),
            wanted.client_address,
            wanted.requested_model,
            wanted.served_model,
            wanted.endpoint,
            bits,
            wanted.output_tokens,
            wanted.choices,
        )
        supply = self._supplies.get(kind)
        if supply is None:
            supply = self._supplies[kind] = _Supply(wanted.principal, (1 << bits) - 1, now)
            if self._sweep is None:
                self._sweep = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._swept)
        return supply

    def _left_of_second(self, now: float) -> float:
        left = 1.0 if self._second_ends is None else (self._second_ends - now) % 1.0
        return left if left > _ALMOST_OVER_SECONDS else 0.0

    def _drop_old(self, supply: _Supply, now: float) -> None:
        while supply.ready and supply.ready[0].until <= now:
            self._unused(supply.ready.popleft().event)

    def _swept(self) -> None:
        now = self._clock.monotonic()
        for kind, supply in tuple(self._supplies.items()):
            self._drop_old(supply, now)
            if now - supply.second >= _IDLE_SECONDS and not supply.ready and not supply.filling:
                del self._supplies[kind]
        again = asyncio.get_running_loop().call_later(_SWEEP_SECONDS, self._swept) if self._supplies else None
        self._sweep = again

    async def _fill(self, supply: _Supply, like: Reservation, number: int) -> None:
        events = tuple(EventRef(self._new_event_id(), 0) for _ in range(number))
        asked = self._clock.monotonic()
        try:
            result = await self._ask(
                msgspec.structs.replace(
                    like,
                    event_id=events[0].event_id,
                    input_tokens=supply.input_tokens,
                    request_id="",
                    spare_event_ids=tuple(event.event_id for event in events),
                )
            )
        except NaruError:
            # Requests ask for themselves then, and hear why. What was asked may have been done all the same.
            for event in events:
                self._unused(event)
            return
        finally:
            supply.filling = False
        # It was decided after it was asked for, so that second ends later than this.
        until = self._second_ends = asked + 1.0 - result.reserve_time % 1.0
        if result.spares < number:
            supply.pause = until
        takes = _amounts(like, supply.input_tokens, result)
        for taken, event in enumerate(events[: result.spares], 1):
            limits = tuple(_lowered(state, taken * takes.get(state.kind, 0)) for state in result.limits)
            supply.ready.append(_Ready(event, until, msgspec.structs.replace(result, limits=limits)))


def _amounts(like: Reservation, input_tokens: int, result: ReserveResult) -> dict[LimitKind, int]:
    output_tokens = like.output_tokens or (result.output_token_cap or 0) * like.choices
    return {
        LimitKind.REQUESTS: 1,
        LimitKind.INPUT_TOKENS: input_tokens,
        LimitKind.OUTPUT_TOKENS: output_tokens,
        LimitKind.TOTAL_TOKENS: input_tokens + output_tokens,
    }


def _lowered(state: LimitState, amount: int) -> LimitState:
    return msgspec.structs.replace(state, remaining=max(state.remaining - amount, 0))
