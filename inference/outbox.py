"""What waits to be written to one caller.

One engine step calls `put` many times within one turn of the loop; the writer wakes once after it and takes all of it as
one batch. Steps that come in quick succession share a batch: see `OutboxLimits.pause_seconds`. While the writer is busy,
outputs of the same choice gather and are merged, so that a slow network makes messages larger instead of more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inference.engine import ChoiceOutput, PromptOutput, TokenCandidate, TokenLogprob
from inference.events import Accepted, Event
from inference.output_merging import merge_outputs, split_output

_FRAME_BYTES = 96
_LAST, _FIRST = -2, -1
_MOST_APART = 32
"""Outputs of a choice that leave together as they are, for clients that count on a token at a time; more are merged."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """How much may wait.

    Attributes:
        message_bytes: Most bytes of a batch; a receiver takes 4 MiB, of which some is left to the message around it.
        buffer_bytes: Most bytes that may wait before the caller counts as stalled.
        stall_seconds: How long a batch may take to be written before the caller counts as stalled.
        pause_seconds: How long after a batch with further tokens of some choice the next such one waits, and how long an
            acceptance waits for the first token; first tokens, ends and the like leave at once, and take along what waits. An
            engine whose steps take longer makes nobody wait; where they do not, every batch costs all who hear of it more than
            what is in it.
    """

    message_bytes: int = 4 * 1024 * 1024 - 64 * 1024
    buffer_bytes: int = 64 * 1024 * 1024
    stall_seconds: float = 30.0
    pause_seconds: float = 0.002


class Outbox:
    """Collects events of many streams for one writer. Made inside the running loop.

    Args:
        limits: How much may wait.
        on_stall: Called once when the caller does not read; nothing is collected from then on.
    """

    def __init__(self, limits: OutboxLimits, on_stall: Callable[[], None]) -> None:
        self._limits = limits
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._pending: dict[tuple[int, int], list[Event]] = {}
        self._bytes = 0
        self._armed = False
        self._due = False
        self._poked = False
        self._further = False
        self._next_batch = 0.0
        self._late: asyncio.TimerHandle | None = None
        self._ending = False
        self._closed = False
        self._waiter: asyncio.Future[None] | None = None
        self._writing_since: float | None = None
        self._check = self._loop.call_later(limits.stall_seconds / 4, self._look_at_writer)

    @property
    def waiting_bytes(self) -> int:
        """About how much waits."""
        return self._bytes

    def put(self, stream_id: int, event: Event) -> None:
        """Adds an event. Ignored when the outbox is closed."""
        if self._closed:
            return
        size = size_of(event)
        if size > self._limits.message_bytes and isinstance(event, ChoiceOutput):
            for piece in split_output(event, -(-size // (self._limits.message_bytes // 4))):
                self._add(stream_id, piece, size_of(piece))
        else:
            self._add(stream_id, event, size)
        if isinstance(event, ChoiceOutput) and event.completion_tokens > 1 and not event.finish_reason:
            # A first output of several tokens passes for a further one, and waits where those do.
            if not self._further:
                self._further = True
                self._arm_at(self._next_batch)
        elif isinstance(event, Accepted):
            self._arm_at(self._loop.time() + self._limits.pause_seconds)
        else:
            self._arm()
        if self._bytes > self._limits.buffer_bytes:
            self._stall()

    def poke(self) -> None:
        """Makes the next `take` return even if nothing waits."""
        self._poked = True
        self._arm()

    def end(self) -> None:
        """Lets `take` return None once nothing waits any more."""
        self._ending = True
        self._arm()

    def close(self) -> None:
        """Drops what waits, and lets `take` return None."""
        self._closed = self._ending = True
        self._check.cancel()
        self._stop_waiting()
        self._pending.clear()
        self._bytes = 0
        self._wake()

    async def take(self) -> list[tuple[int, Event]] | None:
        """What to write next, at most `message_bytes`, each stream's events in order. None: it is over.

        The caller has written the batch when it calls again.
        """
        self._writing_since = None
        while not (self._poked or (self._due and self._pending)):
            if self._ending and not self._pending:
                self._check.cancel()
                return None
            self._waiter = self._loop.create_future()
            await self._waiter
        self._stop_waiting()
        batch = self._take_all() if self._bytes <= self._limits.message_bytes else self._take_some()
        self._poked, self._due = False, bool(self._pending)
        self._writing_since = self._loop.time()
        if self._further:
            self._further = False
            self._next_batch = self._writing_since + self._limits.pause_seconds
        return batch

    def _add(self, stream_id: int, event: Event, size: int) -> None:
        self._bytes += size
        if isinstance(event, ChoiceOutput):
            key = stream_id, event.choice_index
        else:
            key = stream_id, _FIRST if isinstance(event, Accepted) else _LAST
        waiting = self._pending.get(key)
        if waiting is None:
            self._pending[key] = [event]
        else:
            waiting.append(event)

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            self._loop.call_soon(self._flush)

    def _arm_at(self, when: float) -> None:
        if self._armed:
            return
        if self._loop.time() >= when:
            self._arm()
        elif self._late is None:
            self._late = self._loop.call_at(when, self._flush)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _flush(self) -> None:
        self._armed = False
        self._due = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take_all(self) -> list[tuple[int, Event]]:
        pending, self._pending, self._bytes = self._pending, {}, 0
        return [(stream_id, event) for (stream_id, _), waiting in pending.items() for event in _leaving(waiting)]

    def _take_some(self) -> list[tuple[int, Event]]:
        batch: list[tuple[int, Event]] = []
        room = self._limits.message_bytes
        for key in tuple(self._pending):
            waiting, count = self._pending[key], 0
            for event in waiting:
                size = size_of(event)
                if size > room and (batch or count):
                    break
                room -= size
                self._bytes -= size
                count += 1
            if count:
                batch += [(key[0], event) for event in _leaving(waiting[:count])]
            if count < len(waiting):
                self._pending[key] = waiting[count:]
                break
            del self._pending[key]
        return batch

    def _look_at_writer(self) -> None:
        since = self._writing_since
        if since is not None and self._loop.time() - since >= self._limits.stall_seconds:
            self._stall()
        elif not self._closed:
            self._check = self._loop.call_later(self._limits.stall_seconds / 4, self._look_at_writer)

    def _stall(self) -> None:
        if not self._closed:
            self.close()
            self._on_stall()


def size_of(event: Event) -> int:
    """At most how many bytes an event takes in a message."""
    if isinstance(event, ChoiceOutput):
        size = _FRAME_BYTES + _text(event.text) + 5 * len(event.token_ids)
        if event.stop_text:
            size += _text(event.stop_text)
        if event.embedding:
            size += len(event.embedding)
        if event.logprobs:
            size += sum(map(_logprob, event.logprobs))
        if event.reasoning or event.tool_calls or event.prompt is not None:
            size += _parsed(event)
        return size
    if isinstance(event, Accepted):
        return _FRAME_BYTES + _text(event.event_id) + _text(event.request_id) + _text(event.model)
    error = event.error
    return 2 * _FRAME_BYTES + (0 if error is None else _text(error.message) + 4 * len(repr(error.metadata)))


def _leaving(events: list[Event]) -> list[Event]:
    return events if len(events) <= _MOST_APART else [merge(events)]


def merge(events: Sequence[Event]) -> Event:
    """One event for all outputs of one choice that waited together."""
    last = events[-1]
    if len(events) == 1 or not isinstance(last, ChoiceOutput):
        return last
    return merge_outputs([event for event in events if isinstance(event, ChoiceOutput)])


def _parsed(output: ChoiceOutput) -> int:
    size = _text(output.reasoning) + (0 if output.prompt is None else _prompt(output.prompt))
    return size + sum(32 + _text(call.id) + _text(call.name) + _text(call.arguments) for call in output.tool_calls)


def _prompt(prompt: PromptOutput) -> int:
    return 8 + 5 * len(prompt.token_ids) + sum(map(_logprob, prompt.logprobs))


def _logprob(item: TokenLogprob) -> int:
    return 8 + _candidate(item.chosen) + sum(map(_candidate, item.top))


def _text(text: str) -> int:
    return len(text) if text.isascii() else 4 * len(text)


def _candidate(candidate: TokenCandidate) -> int:
    return 30 + _text(candidate.token)
