"""An engine that is somebody else's: any OpenAI-compatible endpoint, such as OpenRouter, OpenAI, or another vLLM.

Nobody here counts tokens. What a request used is what the upstream reports, and an estimate where it reports nothing, as for
an answer that was cut short.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from inference.engine import (
    EngineCounters,
    EngineHandle,
    EngineRequest,
    PreparedRequest,
    ServedModel,
    Sink,
    Tokens,
)
from inference.openai_body import not_supported
from inference.upstream_answer import UpstreamAnswer
from inference.upstream_body import UpstreamCall, make_call
from inference.upstream_client import UpstreamClient
from inference.upstream_errors import AWAY, LATE
from inference.upstream_health import UpstreamHealth
from inference.upstream_settings import UpstreamEngineConfig
from naru.errors import NaruError, Reason, unavailable
from naru.logs import Logger
from naru.usage import Accuracy

_PROBE_TIMEOUT = 10.0
_SOON_SECONDS = 5.0
"""Until the next look at an upstream that did not answer."""
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window")
"""What vLLM, OpenRouter and Groq call it in their lists of models."""


class UpstreamEngine:
    """Keeps the promise of `inference.engine.Engine` with an upstream; see the module.

    Args:
        config: Where it is, and what it serves.
        logger: Where it reports.
    """

    def __init__(self, config: UpstreamEngineConfig, logger: Logger) -> None:
        self._config = config
        self._logger = logger
        self._health = UpstreamHealth(logger)
        self._client: UpstreamClient | None = None
        self._running: set[UpstreamHandle] = set()
        self._prober: asyncio.Task[None] | None = None
        self._create_time = 0.0
        self._models: tuple[ServedModel, ...] = ()

    async def start(self) -> None:
        """See `Engine.start`. An upstream that is away does not keep the service from starting."""
        self._client = UpstreamClient(self._config, self._health, self._logger)
        self._create_time = time.time()
        self._learn({})
        await self._probe(self._client)
        self._prober = asyncio.get_running_loop().create_task(self._keep_probing(self._client))

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """See `Engine.prepare`. The prompt's tokens are an estimate."""
        self._running_client()
        call = make_call(request, self._config.models[request.model or self._models[0].name])
        if self._health.away:
            raise unavailable("inference", AWAY)
        return PreparedRequest(call.prompt_tokens, call.choices, call, accuracy=Accuracy.ESTIMATED)

    async def submit(self, prepared: PreparedRequest, sink: Sink) -> EngineHandle:
        """See `Engine.submit`. Whether the upstream takes it, `EngineHandle.taken` tells."""
        call, client = prepared.payload, self._running_client()
        if not isinstance(call, UpstreamCall):
            raise TypeError("The request was prepared by another engine.")
        handle = UpstreamHandle(call, UpstreamAnswer(call, sink), self._config, self._logger, self._running.discard)
        self._running.add(handle)
        handle.begin(client.chunks(call))
        return handle

    async def tokenize(self, request: EngineRequest, *, strings: bool) -> Tokens:
        """See `Engine.tokenize`. Always raises NaruError NOT_SUPPORTED."""
        raise not_supported("model", "Tokens are not known of this model, which an upstream serves.")

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Engine.detokenize`. Always raises NaruError NOT_SUPPORTED."""
        raise not_supported("model", "Tokens are not known of this model, which an upstream serves.")

    def models(self) -> tuple[ServedModel, ...]:
        """See `Engine.models`."""
        return self._models

    def control(self) -> None:
        """See `Engine.control`. The engine is elsewhere."""

    def counters(self) -> EngineCounters:
        """See `Engine.counters`. Nothing is counted here."""
        return EngineCounters()

    def slots(self) -> int:
        """See `Engine.slots`. How busy the upstream is, it knows itself; NARU_INFERENCE_MAX_RUNNING bounds what it is asked."""
        return sys.maxsize

    def unfinished_requests(self) -> int:
        """See `Engine.unfinished_requests`."""
        return sum(handle.open_choices for handle in self._running)

    def healthy(self) -> bool:
        """See `Engine.healthy`. An upstream that is away may come back, so this is only about the engine itself."""
        return self._prober is not None and not self._prober.done()

    def available(self) -> bool:
        """See `Engine.available`."""
        return not self._health.away

    async def responsive(self, timeout: float) -> bool:
        """See `Engine.responsive`. A request that hangs ends by its own time limits."""
        return self.healthy()

    async def shutdown(self, timeout: float) -> None:
        """See `Engine.shutdown`. What still runs is cancelled."""
        prober, self._prober = self._prober, None
        if prober is not None:
            prober.cancel()
            await asyncio.wait([prober])
        for handle in tuple(self._running):
            await handle.cancel()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def _running_client(self) -> UpstreamClient:
        if self._client is None:
            raise unavailable("inference", "The engine is not running.")
        return self._client

    async def _keep_probing(self, client: UpstreamClient) -> None:
        while True:
            soon = self._health.uncertain
            await asyncio.sleep(min(self._config.probe_seconds, _SOON_SECONDS) if soon else self._config.probe_seconds)
            await self._probe(client)

    async def _probe(self, client: UpstreamClient) -> None:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT):
                self._learn(await client.models())
        except TimeoutError:
            self._health.missed()
        except NaruError as error:
            # Not every upstream has such a list: what answers is there.
            self._logger.debug("upstream lists no models", reason=error.reason)
        except Exception as fault:  # noqa: BLE001 -- the next probe may do better, and without any the engine would count as dead
            self._logger.error("upstream could not be probed", fault=type(fault).__name__)  # noqa: TRY400

    def _learn(self, listed: Mapping[str, Mapping[str, Any]]) -> None:
        """Takes the context lengths that the upstream tells; those it told before stay."""
        known = {model.name: model.context_tokens for model in self._models}
        self._models = tuple(
            ServedModel(
                name=ours,
                owned_by="upstream",
                context_tokens=_context_tokens(listed.get(theirs, {}))
                or known.get(ours)
                or self._config.context_tokens,
                create_time=self._create_time,
            )
            for ours, theirs in self._config.models.items()
        )


class UpstreamHandle:
    """A request at the upstream.

    Args:
        call: What is asked.
        answer: Hears what comes.
        config: How patient to be.
        logger: Where faults are told.
        on_over: Called once when nothing more comes.
    """

    def __init__(
        self,
        call: UpstreamCall,
        answer: UpstreamAnswer,
        config: UpstreamEngineConfig,
        logger: Logger,
        on_over: Callable[[UpstreamHandle], None],
    ) -> None:
        self._call = call
        self._answer = answer
        self._config = config
        self._logger = logger
        self._on_over = on_over
        self._taken = asyncio.Event()
        self._refusal: NaruError | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def open_choices(self) -> int:
        """Choices of which nobody was told the end."""
        return self._answer.open_choices

    def begin(self, chunks: AsyncGenerator[object, None]) -> None:
        """Reads the answer from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(chunks))
        self._task.add_done_callback(lambda _: self._on_over(self))

    async def taken(self) -> None:
        """See `EngineHandle.taken`. When the first chunk has come, or the whole answer."""
        await self._taken.wait()
        if self._refusal is not None:
            raise self._refusal

    async def cancel(self) -> None:
        """See `EngineHandle.cancel`. Closes the connection, by which the upstream knows."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self._answer.abort()
        self._taken.set()

    def abandon(self) -> None:
        """See `EngineHandle.abandon`."""
        self._answer.mute()

    async def _run(self, chunks: AsyncGenerator[object, None]) -> None:
        try:
            async with aclosing(chunks):
                await self._hear(chunks)
        except NaruError as error:
            self._fail(error)
        except Exception as fault:  # noqa: BLE001 -- it must end this request only, and the caller must hear
            # Not its text, which may hold what was asked or answered.
            self._logger.error("upstream answer not read", fault=type(fault).__name__)  # noqa: TRY400
            self._fail(NaruError(Reason.INTERNAL, "The model's answer could not be read."))

    async def _hear(self, chunks: AsyncGenerator[object, None]) -> None:
        answer, loop = self._answer, asyncio.get_running_loop()
        deadline = loop.time() + self._config.total_timeout
        told = False
        patience = self._config.first_token_timeout if self._call.stream else self._config.total_timeout
        while True:
            if answer.ended and not told:
                # Once: whoever goes on sending would else never be done.
                told, deadline = True, min(deadline, loop.time() + self._config.usage_patience)
            until = min(deadline, loop.time() + patience)
            try:
                async with asyncio.timeout_at(until):
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                break
            except TimeoutError:
                if answer.ended:
                    break
                raise NaruError(Reason.DEADLINE_EXCEEDED, LATE) from None
            answer.take(chunk)
            if self._call.stream or answer.any_ended:
                self._taken.set()
        answer.end()
        self._taken.set()

    def _fail(self, error: NaruError) -> None:
        if self._taken.is_set():
            self._answer.fail(error)
        else:
            self._refusal = error
            self._answer.mute()
            self._taken.set()


def _context_tokens(model: Mapping[str, Any]) -> int:
    """Most tokens of prompt and output together; 0 when the upstream does not say."""
    told = (model.get(field) for field in _CONTEXT_FIELDS)
    return next((value for value in told if isinstance(value, int) and value > 0), 0)
