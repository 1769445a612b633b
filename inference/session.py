"""Many generations over one stream of messages, free of the stream itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from inference.events import Event, Finished, GenerationOrder, Refused
from inference.generation import Generation
from inference.generations import Generations
from inference.metrics import InferenceMetrics
from inference.outbox import Outbox, OutboxLimits
from naru.errors import NaruError, invalid_argument

_LAST = (Finished, Refused)


class Session:
    """What one caller has going on. Made by `Sessions.open`, inside the running loop.

    Args:
        generations: Where its streams are started.
        limits: How much may wait to be written.
        on_stall: Called once when the caller does not read; its streams are cancelled then.
        on_close: Called once when it is closed.
    """

    def __init__(
        self,
        generations: Generations,
        limits: OutboxLimits,
        on_stall: Callable[[], object],
        on_close: Callable[[Session], None],
    ) -> None:
        self._generations = generations
        self._outbox = Outbox(limits, self._stalled)
        self._on_stall = on_stall
        self._on_close = on_close
        self._streams: dict[int, Generation] = {}
        self._ending = False
        self._closed = False
        self._failure: NaruError | None = None

    def submit(self, stream_id: int, order: GenerationOrder) -> None:
        """Begins a stream. Raises NaruError INVALID_ARGUMENT when one of that number is running."""
        if stream_id in self._streams:
            raise invalid_argument("stream_id", f"Stream {stream_id} is running already.")
        if not self._closed:
            self._streams[stream_id] = self._generations.start(order, partial(self._hear, stream_id))

    def refuse(self, stream_id: int, error: NaruError) -> None:
        """Answers a request that makes no sense."""
        self._outbox.put(stream_id, Refused(error))

    def cancel(self, stream_id: int, error: NaruError | None = None) -> None:
        """Ends a stream early, for `error` when it is not the caller's own wish. Ignored for one that is unknown or over."""
        generation = self._streams.get(stream_id)
        if generation is not None:
            generation.cancel(error)

    def announce(self) -> None:
        """Makes `take` return, so that the caller hears how busy the replica is."""
        self._outbox.poke()

    def end_when_idle(self) -> None:
        """Lets `take` return None once all streams are over and told."""
        self._ending = True
        if not self._streams:
            self._outbox.end()

    def finish(self) -> None:
        """Cancels all streams, and ends once the caller was told what came of them.

        A caller that is gone looks the same at first, so what it reserved is given back for it.
        """
        for generation in tuple(self._streams.values()):
            generation.cancel(unheard=True)
        self.end_when_idle()

    def fail(self, error: NaruError) -> None:
        """Cancels all streams; `take` raises `error`."""
        self._failure = error
        self.close()

    def close(self) -> None:
        """Cancels all streams. Nobody hears of them any more, and they are metered."""
        if self._closed:
            return
        self._closed = True
        self._outbox.close()
        for generation in tuple(self._streams.values()):
            generation.cancel(unheard=True)
        self._on_close(self)

    async def take(self) -> list[tuple[int, Event]] | None:
        """What to write next, as `Outbox.take` does. Raises NaruError when the session failed."""
        batch = await self._outbox.take()
        if self._failure is not None:
            raise self._failure
        return batch

    def _hear(self, stream_id: int, event: Event) -> None:
        self._outbox.put(stream_id, event)
        if isinstance(event, _LAST):
            self._streams.pop(stream_id, None)
            if self._ending and not self._streams:
                self._outbox.end()

    def _stalled(self) -> None:
        self.close()
        self._on_stall()


class Sessions:
    """All open sessions of this replica.

    Args:
        generations: Where their streams are started.
        metrics: Where they are counted.
        limits: How much may wait to be written to each.
    """

    def __init__(self, generations: Generations, metrics: InferenceMetrics, limits: OutboxLimits | None = None) -> None:
        self._generations = generations
        self._metrics = metrics
        self._limits = limits or OutboxLimits()
        self._open: set[Session] = set()

    def open(self, abandon: Callable[[], object]) -> Session:
        """Opens one.

        Args:
            abandon: Ends the call whose caller does not read.
        """

        def stalled() -> None:
            self._metrics.stalled_sessions.inc()
            abandon()

        session = Session(self._generations, self._limits, stalled, self._closed)
        self._open.add(session)
        self._metrics.sessions.set(len(self._open))
        return session

    def announce(self) -> None:
        """Tells every caller how busy the replica is, and whether it is about to stop."""
        for session in self._open:
            session.announce()

    def end_when_idle(self) -> None:
        """Ends every session once its streams are over and told."""
        for session in tuple(self._open):
            session.end_when_idle()

    def _closed(self, session: Session) -> None:
        self._open.discard(session)
        self._metrics.sessions.set(len(self._open))
