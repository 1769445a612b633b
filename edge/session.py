"""The edge's connection to one inference replica: many requests over one stream of messages."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import count

from edge.clients import InferenceClient
from edge.convert import event_from_proto, events_from_proto, generation_to_proto
from edge.generation import GenerationRequest, ServedModel, Tokens
from edge.rounds import Rounds
from edge.streams import ReplicaStream, StreamLimits, Watcher
from naru.api.inference.v1 import inference_service_pb2 as pb
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.lifecycle import Background
from naru.logs import get_logger
from naru.message_stream import MessageStream

LARGE_INPUT_BYTES = 256 << 10
"""Inputs from here on travel by a call of their own, so that they never delay a Cancel."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
_SETTLED_SECONDS = 5.0
_MODELS_INTERVAL = 5.0
_TICK = 1.0
_CALL_MARGIN = 10.0
_PART_OF_CROWD = 10
_log = get_logger(__name__)


class ReplicaSession:
    """Implements `edge.replicas.Replica`. Keep `run` and `tick` in the background.

    Args:
        client: The replica.
        watcher: Hears of requests that broke.
        background: Owns the calls of large inputs.
        rounds: Hands on what comes.
        random: From 0 to 1, for the jitter between reconnects.
        tick_interval: Seconds between looks at slow and silent streams.
    """

    def __init__(
        self,
        client: InferenceClient,
        *,
        clock: Clock,
        watcher: Watcher,
        background: Background,
        rounds: Rounds,
        random: Callable[[], float],
        limits: StreamLimits | None = None,
        tick_interval: float = _TICK,
    ) -> None:
        self.address = client.address
        self.models: dict[str, ServedModel] = {}
        self.draining = False
        self.away = False
        self.load = 0
        self._client = client
        self._clock = clock
        self._watcher = watcher
        self._background = background
        self._random = random
        self._limits = limits or StreamLimits()
        self._tick_interval = tick_interval
        self._ids = count(1)
        self._rounds = rounds
        self._connection: _Connection | None = None
        self._streams: dict[int, ReplicaStream] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self._unread: set[ReplicaStream] = set()
        self._models_revision = 0
        self._models_changed = asyncio.Event()

    @property
    def connected(self) -> bool:
        """Whether requests can be submitted right now."""
        return self._connection is not None

    @property
    def outstanding(self) -> int:
        """Requests of this edge that the replica has not ended."""
        return len(self._streams) + len(self._calls)

    def submit(self, request: GenerationRequest) -> ReplicaStream:
        """Begins a request. Raises NaruError SERVICE_UNAVAILABLE when the replica is not connected."""
        if self._connection is None:
            raise NaruError(
                Reason.SERVICE_UNAVAILABLE,
                "The model is not available right now.",
                metadata={"service": "inference"},
                retry_after=1.0,
            )
        stream = ReplicaStream(
            next(self._ids),
            self.address,
            request,
            limits=self._limits,
            watcher=self._watcher,
            end=self._end,
            soon=self._rounds.soon,
            now=self._clock.monotonic(),
        )
        self._unread.add(stream)
        if len(request.body) >= LARGE_INPUT_BYTES:
            task = self._background.spawn("generate", self._call(stream))
            self._calls[stream.stream_id] = task
            task.add_done_callback(lambda _: self._calls.pop(stream.stream_id, None))
        else:
            self._streams[stream.stream_id] = stream
            self._connection.submit(stream)
        return stream

    async def tokenize(self, model: str, body: bytes) -> Tokens:
        """See `edge.ports.Tokenizers`."""
        return await self._client.tokenize(model, body)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """See `edge.ports.Tokenizers`."""
        return await self._client.detokenize(model, token_ids)

    async def run(self) -> None:
        """Connects, and connects again, for ever."""
        pause = _FIRST_PAUSE
        while True:
            started = self._clock.monotonic()
            try:
                self.models = await self._client.list_models()
                await self._serve()
            except NaruError as error:
                _log.debug("no session with the replica", replica=self.address, error=error.message)
            finally:
                self._disconnected()
            if self._clock.monotonic() - started > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE
            await asyncio.sleep(pause * (0.5 + self._random() / 2))
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def tick(self) -> None:
        """Looks after slow and silent streams, for ever."""
        while True:
            await asyncio.sleep(self._tick_interval)
            now = self._clock.monotonic()
            for stream in tuple(self._unread):
                stream.tick(now)

    async def _serve(self) -> None:
        over: asyncio.Future[NaruError] = asyncio.get_running_loop().create_future()
        connection = _Connection(self._deliver, partial(self._ended, over))
        self.draining = self.away = False
        self._models_revision = 0
        connection.stream = await self._client.session(connection)
        if not over.done():
            self._connection = connection
        _log.info("connected to replica", replica=self.address, models=list(self.models))
        polling = asyncio.create_task(self._poll_models())
        try:
            raise await over
        finally:
            connection.stream.close()
            polling.cancel()
            # Not `await polling`: whoever swallows its cancellation may swallow our own.
            await asyncio.wait([polling])

    def _ended(self, over: asyncio.Future[NaruError], error: NaruError) -> None:
        # At once: what is submitted from now on must not be taken for something that may have got there.
        self._disconnected()
        if not over.done():
            over.set_result(error)

    async def _poll_models(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_MODELS_INTERVAL):
                    await self._models_changed.wait()
            self._models_changed.clear()
            try:
                self.models = await self._client.list_models()
            except NaruError as error:
                # The session itself says whether the replica lives; what it served a moment ago still holds.
                _log.warning("cannot list the models of a replica", replica=self.address, error=error.message)

    def _deliver(self, message: pb.GenerateSessionResponse) -> None:
        self._rounds.message()
        now = self._clock.monotonic()
        streams = self._streams
        for stream_id, event in events_from_proto(message):
            stream = streams.get(stream_id)
            if stream is not None:
                stream.put(event, now)
                if stream.over:
                    del streams[stream_id]
        if message.HasField("load"):
            self.load = message.load.requests
            self.draining = message.load.draining
            self.away = message.load.away
            if message.load.models_revision != self._models_revision:
                self._models_revision = message.load.models_revision
                self._models_changed.set()

    def _disconnected(self) -> None:
        if self._connection is None:
            return
        self._connection = None
        self.load = 0
        lost, self._streams = self._streams, {}
        _log.warning("lost the session with the replica", replica=self.address, requests=len(lost))
        now = self._clock.time()
        for stream in lost.values():
            stream.lose(now)

    def _end(self, stream: ReplicaStream) -> None:
        self._unread.discard(stream)
        call = self._calls.get(stream.stream_id)
        if call is not None:
            call.cancel()
        elif stream.stream_id in self._streams and self._connection is not None:
            if stream.written:
                self._connection.cancel(stream.stream_id)
            else:
                del self._streams[stream.stream_id]
                self._connection.withdraw(stream)

    async def _call(self, stream: ReplicaStream) -> None:
        """Runs a request by `Generate`; leaving the call cancels it."""
        stream.written = True
        try:
            generation = generation_to_proto(stream.request)
            async with self._client.generate(generation, timeout=stream.request.timeout + _CALL_MARGIN) as messages:
                async for message in messages:
                    event = event_from_proto(message)
                    if event is not None:
                        stream.put(event, self._clock.monotonic())
        except NaruError as error:
            if error.reason not in (Reason.SERVICE_UNAVAILABLE, Reason.INTERNAL, Reason.CANCELLED):
                stream.fail(error)
        stream.lose(self._clock.time())


class _Connection:
    """Implements `naru.message_stream.Listener`.

    What waits to be written goes in one message, as one of its own costs more than a request in it. But a crowd leaves in
    parts: the replica begins with the first while the others are prepared, else one of the two always waits for the other.
    """

    stream: MessageStream

    def __init__(
        self, deliver: Callable[[pb.GenerateSessionResponse], None], ended: Callable[[NaruError], None]
    ) -> None:
        self._deliver = deliver
        self._cancels: list[int] = []
        self._submits: deque[ReplicaStream] = deque()
        self._flushing = False
        self.ended = ended

    def message(self, message: bytes) -> None:
        self._deliver(pb.GenerateSessionResponse.FromString(message))

    def ready(self) -> None:
        self._flush()

    def submit(self, stream: ReplicaStream) -> None:
        self._submits.append(stream)
        if len(self._submits) >= _PART_OF_CROWD:
            self._flush()
        else:
            self._flush_soon()

    def cancel(self, stream_id: int) -> None:
        self._cancels.append(stream_id)
        self._flush_soon()

    def withdraw(self, stream: ReplicaStream) -> None:
        with suppress(ValueError):
            self._submits.remove(stream)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        while (self._cancels or self._submits) and self.stream.is_ready:
            self.stream.write(self._message().SerializeToString())

    def _message(self) -> pb.GenerateSessionRequest:
        cancels, self._cancels = self._cancels, []
        submits, size = [], 0
        # Each input is smaller than this, so that a message is at most twice as large.
        while self._submits and size < LARGE_INPUT_BYTES:
            stream = self._submits.popleft()
            size += len(stream.request.body)
            # From here on nobody can tell whether the replica has it.
            stream.written = True
            submits.append(pb.Submit(stream_id=stream.stream_id, generation=generation_to_proto(stream.request)))
        return pb.GenerateSessionRequest(
            submits=submits, cancels=[pb.Cancel(stream_id=stream_id) for stream_id in cancels]
        )
