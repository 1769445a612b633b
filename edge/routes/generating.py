"""How a request that generates is answered, as a stream or whole; the same for every endpoint that does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp import web

from edge import outcomes, sse
from edge.attempts import Generation, Replayed
from edge.exchange import EXCHANGE, Exchange
from edge.gateway import Gateway, check_endpoint
from edge.generation import Delta, Endpoint
from edge.metrics import EdgeMetrics
from edge.openai.answers import AnswerOptions, AnswerStream, WholeAnswer
from edge.openai.requests import OpenAiRequest
from edge.ports import Call
from edge.routes.access import Access
from edge.routes.answer_writer import AnswerWriter, StreamedAnswer
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.interceptors import internal_error
from naru.money import format_money
from naru.tracing import current_traceparent

_LAST_WORDS_SECONDS = 1.0
_STREAM_HEADERS = {"Content-Type": sse.CONTENT_TYPE, "X-Accel-Buffering": "no"}
_WHOLE_HEADERS = {"Content-Type": "application/json"}


class Slots:
    """How many requests may generate at the same time in this process."""

    def __init__(self, most: int) -> None:
        self._free = most

    @contextmanager
    def take(self) -> Iterator[None]:
        """Holds a slot inside the block. Raises NaruError OVERLOADED when there is none."""
        if self._free <= 0:
            raise NaruError(
                Reason.OVERLOADED,
                "The server is busy. Please try again in a moment.",
                metadata={"service": "edge"},
                retry_after=1.0,
            )
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1


@dataclass(frozen=True, slots=True)
class Shape:
    """How an endpoint's requests and answers look; `stream` is None where no request can ask for a stream."""

    endpoint: Endpoint
    parse: Callable[..., OpenAiRequest]
    answer_id: Callable[[str], str]
    stream: Callable[[AnswerOptions], AnswerStream] | None
    whole: Callable[[AnswerOptions], WholeAnswer]


class GeneratingRoute:
    """Answers one endpoint; all such routes share `slots`."""

    def __init__(
        self,
        shape: Shape,
        *,
        access: Access,
        gateway: Gateway,
        slots: Slots,
        clock: Clock,
        metrics: EdgeMetrics,
    ) -> None:
        self._shape = shape
        self._access = access
        self._gateway = gateway
        self._slots = slots
        self._clock = clock
        self._metrics = metrics

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """As OpenAI does: streams when the body says so."""
        return await self._answer(request, stream=None)

    async def answer_streaming(self, request: web.Request) -> web.StreamResponse:
        """Streams unless the body says not to."""
        return await self._answer(request, stream=True)

    async def _answer(self, request: web.Request, *, stream: bool | None) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        principal = await self._access.authenticate(request)
        check_endpoint(principal, self._shape.endpoint)
        key = outcomes.read_key(request.headers.getall(outcomes.HEADER, ()))
        with self._slots.take():
            body = await self._access.read_body(request)
            parsed = self._shape.parse(body, stream=stream)
            exchange.requested_model = parsed.model
            exchange.stream = parsed.stream
            call = Call(
                request_id=exchange.request_id,
                principal=principal,
                client_address=exchange.client_address,
                endpoint=self._shape.endpoint,
                requested_model=parsed.model,
                stream=parsed.stream,
                input_tokens=parsed.input_tokens,
                output_tokens=parsed.output_tokens,
                choices=parsed.choices,
                traceparent=current_traceparent(),
                body=parsed.body,
                idempotency=outcomes.identify(key, self._shape.endpoint, body, stream=parsed.stream) if key else None,
                credential=exchange.credential,
            )
            try:
                if self._shape.stream is not None and parsed.stream:
                    return await self._stream(request, call, parsed, self._shape.stream)
                return await self._whole(exchange, call, parsed)
            except Replayed as replayed:
                return _replay(replayed.outcome)

    async def _whole(self, exchange: Exchange, call: Call, parsed: OpenAiRequest) -> web.Response:
        async with self._gateway.generate(call, exchange.progress) as generation:
            answer = self._shape.whole(self._options(exchange, generation, parsed))
            while not await generation.forward(_collecting(answer)):
                pass
            body = answer.render(exchange.progress.usage, _shown_cost(exchange, parsed))
            recording = outcomes.Recording(wanted=call.idempotency is not None)
            recording.add(body)
            generation.keep(recording.encode(exchange.request_id, _WHOLE_HEADERS))
        cost = exchange.progress.cost
        headers = {} if cost is None else {"X-Naru-Cost": format_money(cost)}
        return web.Response(body=body, headers=_WHOLE_HEADERS | headers)

    async def _stream(
        self, request: web.Request, call: Call, parsed: OpenAiRequest, render: Callable[[AnswerOptions], AnswerStream]
    ) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        response = StreamedAnswer(headers=_STREAM_HEADERS)
        answer: AnswerStream | None = None
        ended = False
        try:
            async with self._gateway.generate(call, exchange.progress) as generation:
                exchange.status = 200
                await response.prepare(request)
                recording = outcomes.Recording(wanted=call.idempotency is not None)
                answer = render(self._options(exchange, generation, parsed))
                writer = AnswerWriter(
                    request,
                    response,
                    exchange=exchange,
                    answer=answer,
                    recording=recording,
                    on_first=lambda: self._note_first(exchange),
                )
                await writer.begin()
                while not await generation.forward(writer.take):
                    await writer.drain()
                end = (
                    answer.finish(exchange.progress.usage, _shown_cost(exchange, parsed)) + exchange.dialect.last_event
                )
                writer.note(end)
                generation.keep(recording.encode(exchange.request_id, _STREAM_HEADERS))
                ended = True
                # Here it waits no longer for a client that does not read than anything else that is written.
                await response.write_eof(end)
        except (ConnectionError, Replayed):
            raise
        except Exception as cause:
            # Once the answer began nobody else can answer: whatever broke it, the stream itself has to say so.
            if not response.prepared:
                exchange.status = 0
                raise
            error = cause if isinstance(cause, NaruError) else internal_error(cause, exchange.endpoint)
            exchange.reason = error.reason
            if ended:
                # All of it is written, and only was not read in time: another ending would be the next answer's first bytes.
                _hang_up(request)
            else:
                await _break_off(request, response, error, numbered=0 if answer is None else answer.numbered)
        return response

    def _note_first(self, exchange: Exchange) -> None:
        exchange.first_byte = self._clock.monotonic() - exchange.started
        self._metrics.first.labels(exchange.endpoint).observe(exchange.first_byte)

    def _options(self, exchange: Exchange, generation: Generation, parsed: OpenAiRequest) -> AnswerOptions:
        return AnswerOptions(
            answer_id=self._shape.answer_id(exchange.progress.event_id),
            created=int(exchange.start_time),
            model=generation.model,
            choices=generation.accepted.choices,
            prompt_tokens=generation.accepted.prompt_tokens,
            include_usage=parsed.include_usage,
            continuous_usage=parsed.continuous_usage,
            token_ids=parsed.token_ids,
            tokens_as_ids=parsed.tokens_as_ids,
            repeated=parsed.repeated,
        )


def _collecting(answer: WholeAnswer) -> Callable[[Sequence[Delta]], bool]:
    """Always has room."""

    def take(deltas: Sequence[Delta]) -> bool:
        answer.add(deltas)
        return True

    return take


def _shown_cost(exchange: Exchange, parsed: OpenAiRequest) -> int | None:
    """What `usage.cost` says, in nano-units; None when nobody asked, or nobody knows. What has no price costs nothing."""
    return (exchange.progress.cost or 0) if parsed.include_cost and exchange.progress.decided else None


def _replay(outcome: bytes) -> web.Response:
    """The answer that was given before, in one burst if it was a stream."""
    answer = outcomes.decode(outcome)
    headers = {"X-Naru-Replayed": "true", "X-Naru-Original-Request-Id": answer.request_id}
    return web.Response(body=answer.body, headers=answer.headers | headers)


async def _break_off(request: web.Request, response: web.StreamResponse, error: NaruError, *, numbered: int) -> None:
    """Ends a stream that broke with an error event; a client that does not even read that is hung up on."""
    exchange = request[EXCHANGE]
    try:
        async with asyncio.timeout(_LAST_WORDS_SECONDS):
            await response.write(exchange.dialect.error_event(error, exchange.request_id, numbered))
            await response.write_eof()
    except (TimeoutError, ConnectionError):
        _hang_up(request)


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
