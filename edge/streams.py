"""One request at one replica: a bounded buffer between the session's reader and the request's handler."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from edge.generation import Accepted, BrokenGeneration, Delta, Event, GenerationRequest, Refused, SessionLost
from naru.errors import NaruError, Reason

_EVENT_BYTES = 64
"""About what an event costs besides its text."""
_LOGPROB_BYTES = 256


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How long and how much a stream may wait for its reader.

    Attributes:
        buffer_bytes: Most that waits for a reader who is busy elsewhere.
        stall: Seconds after which something that waits to be read, or a reader that does not come back, ends the stream.
        keep_alive: Seconds of silence after which `receive` returns nothing.
    """

    buffer_bytes: int = 1 << 20
    stall: float = 30.0
    keep_alive: float = 15.0


class Watcher(Protocol):
    """Hears of what happens to requests whether or not a handler still waits for them."""

    def broken(self, broken: BrokenGeneration) -> None:
        """A request that was accepted lost its replica."""

    def refused(self, request: GenerationRequest) -> None:
        """A request that its handler had given up was refused: nothing was generated."""


class ReplicaStream:
    """Implements `edge.generation.GenerationStream`.

    Args:
        replica: The replica's address.
        request: What was asked.
        limits: How patient to be with the reader.
        watcher: Hears of broken and late-refused requests.
        end: Called once, by `close`.
        soon: Calls something in the next round (`edge.rounds`).
    """

    __slots__ = (
        "_abandoned",
        "_accepted",
        "_away_since",
        "_end",
        "_events",
        "_failure",
        "_interrupted",
        "_last_event",
        "_limits",
        "_over",
        "_size",
        "_soon",
        "_take",
        "_tokens",
        "_waiter",
        "_waiting_since",
        "_watcher",
        "replica",
        "request",
        "stream_id",
        "written",
    )

    def __init__(
        self,
        stream_id: int,
        replica: str,
        request: GenerationRequest,
        *,
        limits: StreamLimits,
        watcher: Watcher,
        end: Callable[[ReplicaStream], None],
        soon: Callable[[Callable[[], None]], object],
        now: float,
    ) -> None:
        self.stream_id = stream_id
        self.replica = replica
        self.request = request
        self.written = False
        self._limits = limits
        self._watcher = watcher
        self._end = end
        self._soon = soon
        self._events: list[Event] = []
        self._size = 0
        self._tokens: dict[int, int] = {}
        self._accepted: Accepted | None = None
        self._failure: Exception | None = None
        self._take: Callable[[Sequence[Event]], bool] | None = None
        self._waiter: asyncio.Future[bool] | None = None
        self._waiting_since = self._last_event = now
        self._away_since: float | None = None
        self._over = self._abandoned = False
        self._interrupted: Callable[[NaruError], None] | None = None

    def on_interrupt(self, interrupted: Callable[[NaruError], None]) -> None:
        """Sets what to call when the stream is cut because nobody reads it."""
        self._interrupted = interrupted

    async def receive(self) -> Sequence[Event]:
        """All that came since the last call; see `GenerationStream.receive`."""
        self._away_since = None
        if not self._events and self._failure is None:
            await self._wait()
        return self._taken()

    async def forward(self, take: Callable[[Sequence[Event]], bool]) -> None:
        """Hands on what comes; see `GenerationStream.forward`."""
        events = await self.receive()
        while take(events):
            if not self._events and self._failure is None:
                self._take = take
                if not await self._wait():
                    return
            events = self._taken()

    async def _wait(self) -> bool:
        """Until there is something to know; False when it was handed on and no more is wanted."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            return await self._waiter
        finally:
            self._take = self._waiter = None

    def _taken(self) -> Sequence[Event]:
        events = self._events
        if not events and self._failure is not None:
            raise self._failure
        self._events = []
        self._size = 0
        return events

    def _hand_on(self) -> None:
        """What came in this turn of the loop goes to whoever forwards it: no task of theirs is woken for it."""
        waiter = self._waiter
        if self._take is None or waiter is None or waiter.done() or not self._events:
            return
        try:
            if not self._take(self._taken()):
                waiter.set_result(False)
        except Exception as error:  # noqa: BLE001 -- it belongs to whoever forwards
            waiter.set_exception(error)

    def close(self) -> None:
        """Nobody reads it any more: ends the request at the replica if it is not over. Must be called, once or more."""
        if not self._abandoned:
            self._abandoned = True
            self._events = []
            # Whoever it belongs to holds the stream too: a ring that only the garbage collector would find.
            self._interrupted = None
            self._end(self)

    def put(self, event: Event, now: float) -> None:
        """Takes what the replica said. `now`: monotonic seconds."""
        if isinstance(event, Delta):
            self._tokens[event.choice_index] = event.completion_tokens
            self._size += len(event.text) + len(event.reasoning) + len(event.embedding) + _EVENT_BYTES
            if event.tool_calls:
                self._size += sum(len(call.arguments) for call in event.tool_calls)
            if event.logprobs:
                self._size += _LOGPROB_BYTES * sum(1 + len(logprob.top) for logprob in event.logprobs)
        elif isinstance(event, Accepted):
            self._accepted = event
        else:
            self._over = True
            if self._abandoned and isinstance(event, Refused):
                self._watcher.refused(self.request)
        if self._abandoned:
            return
        first = not self._events
        self._events.append(event)
        self._last_event = now
        if first:
            self._waiting_since = now
        if self._take is not None:
            if first:
                self._soon(self._hand_on)
        elif self._size > self._limits.buffer_bytes and self._waiter is None:
            self._cut()
        else:
            self._wake()

    def lose(self, wall_time: float) -> None:
        """The connection broke. `wall_time`: seconds since the Unix epoch."""
        if self._over:
            return
        self._over = True
        self._failure = self._failure or SessionLost(written=self.written)
        if self._accepted is not None:
            completion_tokens = sum(self._tokens.values())
            self._watcher.broken(BrokenGeneration(self.request, self._accepted, completion_tokens, wall_time))
        self._wake()

    @property
    def over(self) -> bool:
        """Whether the replica has nothing more to say."""
        return self._over

    def fail(self, error: NaruError) -> None:
        """The replica ended the request with an error outside of the stream's own events."""
        if not self._over:
            self._over = True
            self._failure = error
            self._wake()

    def tick(self, now: float) -> None:
        """Called about once a second: cuts a stream that is not read, and wakes one that is silent."""
        if self._waiter is not None:
            if now - self._last_event >= self._limits.keep_alive:
                self._last_event = now
                self._wake()
            return
        if self._away_since is None:
            # It took the last of what came and is still handing it on.
            self._away_since = now
        since = self._waiting_since if self._events else self._away_since
        if now - since >= self._limits.stall:
            self._cut()

    def _cut(self) -> None:
        error = NaruError(Reason.CANCELLED, "The answer was not read fast enough, so the request was cancelled.")
        interrupted = self._interrupted
        self.close()
        self._failure = error
        self._wake()
        if interrupted is not None:
            interrupted(error)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(True)
