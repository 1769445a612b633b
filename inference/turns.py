"""Makes requests wait until the engine has a slot for them, in the order that `inference.fair_queue` says."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from inference.fair_queue import FairQueue, Place
from inference.metrics import InferenceMetrics
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Principal

_LEAST_RETRY_AFTER = 1.0
TOO_MANY, TOO_LONG = "length", "time"
"""Why a request that waited is refused: values of the label `bound` of the metric."""


class Turn:
    """A request's slots in the engine. Made by `Turns.take`; must be closed."""

    def __init__(self, queue: FairQueue, place: Place, turns: Turns) -> None:
        self._queue = queue
        self._place = place
        self._turns = turns

    def heard(self, tokens: int, *, choice_ended: bool) -> None:
        """A choice gained so many tokens, and perhaps ended with that."""
        self._queue.generated(self._place, tokens)
        if choice_ended:
            self._queue.end_choice(self._place)
            self._turns.advance()

    def close(self) -> None:
        """Gives back what the request still has. May be called more than once."""
        self._queue.leave(self._place)
        self._turns.advance()


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """How requests wait.

    Attributes:
        patience: Seconds that a request waits at most.
        weights: Shares of tiers, by name; 1 for others.
    """

    patience: float
    weights: Mapping[str, float]


class Turns:
    """Everybody who waits for the engine.

    Args:
        queue: Who is next; nobody else changes it.
        limits: How they wait.
        clock: Measures how long.
        metrics: Where it is counted.
    """

    def __init__(self, queue: FairQueue, limits: TurnLimits, clock: Clock, metrics: InferenceMetrics) -> None:
        self._queue = queue
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._waiters: dict[Place, asyncio.Future[None]] = {}
        self._last_wait = 0.0
        self._closed: NaruError | None = None

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._queue.waiting

    async def take(self, principal: Principal, prompt_tokens: int, choices: int) -> Turn:
        """Waits for a slot. At once when one is free.

        Raises:
            NaruError: OVERLOADED when too many wait or the wait is too long; what `close` was told, once it was called.
        """
        weight = self._limits.weights.get(principal.tier, 1.0)
        place = Place(principal.workspace_id, prompt_tokens, choices, weight)
        waiter = self._waiters[place] = asyncio.get_running_loop().create_future()
        started = self._clock.monotonic()
        excess = self._queue.join(place)
        if excess is not None:
            self._refuse(excess, TOO_MANY)
        self.advance()
        if self._closed is not None:
            self._turn_away(place, self._closed)
        if not waiter.done():
            await self._wait(place, waiter)
        waiter.result()
        self._last_wait = self._clock.monotonic() - started
        self._metrics.waited_seconds.observe(self._last_wait)
        return Turn(self._queue, place, self)

    def close(self, error: NaruError) -> None:
        """Sends away all that wait, and from now on everybody who would have to."""
        self._closed = error
        for place in tuple(self._waiters):
            self._turn_away(place, error)

    def open(self) -> None:
        """Lets everybody wait again, after `close`."""
        self._closed = None

    def advance(self) -> None:
        """Lets those begin whose turn it is."""
        while (place := self._queue.begin()) is not None:
            waiter = self._waiters.pop(place)
            if waiter.done():
                # It was cancelled a moment ago, and its task has not run since.
                self._queue.leave(place)
            else:
                waiter.set_result(None)
        self._metrics.waiting.set(self._queue.waiting)

    async def _wait(self, place: Place, waiter: asyncio.Future[None]) -> None:
        timer = asyncio.get_running_loop().call_later(self._limits.patience, self._refuse, place, TOO_LONG)
        try:
            await waiter
        except asyncio.CancelledError:
            _ = self._waiters.pop(place, None)
            self._queue.leave(place)
            self.advance()
            raise
        finally:
            timer.cancel()

    def _refuse(self, place: Place, bound: str) -> None:
        self._metrics.overloaded.labels(bound).inc()
        # As long as the last one waited that was served, others will wait who come now.
        retry_after = min(max(self._last_wait, _LEAST_RETRY_AFTER), self._limits.patience)
        error = NaruError(
            Reason.OVERLOADED,
            "The model is busy with other requests. Please try again in a moment.",
            metadata={"service": "inference", "bound": bound},
            retry_after=retry_after,
        )
        self._turn_away(place, error)

    def _turn_away(self, place: Place, error: NaruError) -> None:
        waiter = self._waiters.pop(place, None)
        if waiter is None:
            return
        self._queue.leave(place)
        if not waiter.done():
            waiter.set_exception(error)
        self._metrics.waiting.set(self._queue.waiting)
