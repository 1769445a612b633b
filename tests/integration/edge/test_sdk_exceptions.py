"""Every exception that the OpenAI and Anthropic SDKs have for what a server says, raised by a real edge; streamed and not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anthropic
import openai
import pydantic
import pytest

from naru import api_key
from naru.api.inference.v1 import generation_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Scopes
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers
from tests.support.fake_accounting import grant, refuse
from tests.support.fake_inference import MODEL, Event, accepted, capital_of_france, delta, finished, refused

INVALID, SERVER = "invalid_request_error", "server_error"
STRANGER = api_key.format_key("zzzzzzzzzzzz", "q" * 43)
NARROW = api_key.format_key("otherOTHER12", "o" * 43)
MESSAGES: Any = [{"role": "user", "content": "Hello"}]
MOST_BODY_BYTES = 10_000
LONG = "x" * MOST_BODY_BYTES


class City(pydantic.BaseModel):
    """What an answer is parsed into."""

    name: str


@dataclass(frozen=True, slots=True)
class Case:
    """What goes wrong, and what is told of it.

    Attributes:
        said: What inference refuses the request with, or accounting where `limit` says so.
        code, param: OpenAI's; Anthropic has neither.
        kind: OpenAI's `type` and Anthropic's.
        raises: OpenAI's exception and Anthropic's.
        key: Of who asks.
        model: What is asked for; "" for a body that is too large.
    """

    status: int
    kind: tuple[str, str]
    raises: tuple[type[openai.APIError], type[anthropic.APIError]]
    code: str | None = None
    param: str | None = None
    said: NaruError | None = None
    limit: bool = False
    key: str = KEY
    model: str = MODEL
    text: str = "Hello"
    anthropic_status: int = 0


def _limit(reason: Reason, **metadata: str) -> dict[str, Any]:
    return {"said": NaruError(reason, "No.", metadata=metadata), "limit": True}


_RATE: Any = (openai.RateLimitError, anthropic.RateLimitError)
_BAD: Any = (openai.BadRequestError, anthropic.BadRequestError)
_CONFLICT: Any = (openai.ConflictError, anthropic.ConflictError)
_UNKNOWN: Any = (openai.AuthenticationError, anthropic.AuthenticationError)
CASES: dict[str, Case] = {
    "a field": Case(400, (INVALID,) * 2, _BAD, None, "temperature", said=invalid_argument("temperature", "Too hot.")),
    "not supported": Case(
        400,
        (INVALID,) * 2,
        _BAD,
        "unsupported_parameter",
        "n",
        said=NaruError(Reason.NOT_SUPPORTED, "No.", metadata={"field": "n"}),
    ),
    "too long": Case(
        400,
        (INVALID,) * 2,
        _BAD,
        "context_length_exceeded",
        "messages",
        said=NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, "Too long."),
    ),
    "no key": Case(401, (INVALID, "authentication_error"), _UNKNOWN, "invalid_api_key", key="none"),
    "a stranger's key": Case(401, (INVALID, "authentication_error"), _UNKNOWN, "invalid_api_key", key=STRANGER),
    "another's endpoint": Case(
        403,
        ("permission_error",) * 2,
        (openai.PermissionDeniedError, anthropic.PermissionDeniedError),
        "permission_denied",
        key=NARROW,
    ),
    "no such model": Case(
        404,
        (INVALID, "not_found_error"),
        (openai.NotFoundError, anthropic.NotFoundError),
        "model_not_found",
        "model",
        model="none",
    ),
    "a key that is used again": Case(
        409, (INVALID, INVALID), _CONFLICT, "idempotency_key_reused", **_limit(Reason.IDEMPOTENCY_CONFLICT)
    ),
    "too large": Case(
        413,
        (INVALID, "request_too_large"),
        (openai.APIStatusError, anthropic.RequestTooLargeError),
        "payload_too_large",
        text=LONG,
    ),
    "too many": Case(
        429,
        ("requests", "rate_limit_error"),
        _RATE,
        "rate_limit_exceeded",
        **_limit(Reason.RATE_LIMIT_EXCEEDED, kind="requests"),
    ),
    "too many tokens": Case(
        429,
        ("tokens", "rate_limit_error"),
        _RATE,
        "rate_limit_exceeded",
        **_limit(Reason.RATE_LIMIT_EXCEEDED, kind="input_tokens"),
    ),
    "too many at once": Case(
        429, ("requests", "rate_limit_error"), _RATE, "rate_limit_exceeded", **_limit(Reason.CONCURRENCY_LIMIT_EXCEEDED)
    ),
    "more than the limit": Case(
        429, ("tokens", "rate_limit_error"), _RATE, "rate_limit_exceeded", **_limit(Reason.REQUEST_EXCEEDS_LIMIT)
    ),
    "no credit": Case(
        429,
        ("insufficient_quota", "rate_limit_error"),
        _RATE,
        "insufficient_quota",
        **_limit(Reason.INSUFFICIENT_QUOTA),
    ),
    "busy": Case(
        503,
        (SERVER, "overloaded_error"),
        (openai.InternalServerError, anthropic.OverloadedError),
        "overloaded",
        said=NaruError(Reason.OVERLOADED, "Busy."),
        anthropic_status=529,
    ),
    "away": Case(
        503,
        (SERVER, "api_error"),
        (openai.InternalServerError, anthropic.ServiceUnavailableError),
        "service_unavailable",
        said=NaruError(Reason.SERVICE_UNAVAILABLE, "Away."),
    ),
    "late": Case(
        504,
        (SERVER, "timeout_error"),
        (openai.InternalServerError, anthropic.DeadlineExceededError),
        "timeout",
        said=NaruError(Reason.DEADLINE_EXCEEDED, "Late."),
    ),
    "a fault": Case(
        500,
        (SERVER, "api_error"),
        (openai.InternalServerError, anthropic.InternalServerError),
        "internal_error",
        said=NaruError(Reason.INTERNAL, "A fault."),
    ),
}
Ask = Callable[[openai.AsyncOpenAI, Case], Awaitable[Any]]
OPENAI_CALLS: dict[str, Ask] = {
    "chat": lambda client, case: client.chat.completions.create(model=case.model, messages=_said(case)),
    "chat streamed": lambda client, case: client.chat.completions.create(
        model=case.model, messages=_said(case), stream=True
    ),
    "chat parsed": lambda client, case: client.chat.completions.parse(
        model=case.model, messages=_said(case), response_format=City
    ),
    "completion": lambda client, case: client.completions.create(model=case.model, prompt=case.text),
    "completion streamed": lambda client, case: client.completions.create(
        model=case.model, prompt=case.text, stream=True
    ),
    "response": lambda client, case: client.responses.create(model=case.model, input=case.text),
    "response streamed": lambda client, case: client.responses.create(model=case.model, input=case.text, stream=True),
    "response parsed": lambda client, case: client.responses.parse(model=case.model, input=case.text, text_format=City),
    "embeddings": lambda client, case: client.embeddings.create(model=case.model, input=case.text),
}


def _said(case: Case) -> Any:
    return [{"role": "user", "content": case.text}]


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path, max_body_bytes=MOST_BODY_BYTES) as harness:
        harness.auth.principals[NARROW] = replace(PRINCIPAL, scopes=Scopes(endpoints=("/v1/models",)))
        yield harness


def arrange(edge: Harness, case: Case) -> None:
    """Makes the peers say it."""
    error = case.said
    edge.accounting.decide, edge.inference.behave = grant, capital_of_france
    if error is None:
        return
    if case.limit:
        edge.accounting.decide = lambda reservation: refuse(reservation, error)
    else:
        edge.inference.behave = says([refused(error)])


def says(*steps: Sequence[Event]) -> Any:
    async def behave(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        for step in steps:
            yield step

    return behave


async def test_openais(edge: Harness) -> None:
    """Each call raises the class for its status, with OpenAI's type, code and param, before a stream begins."""
    for name, case in CASES.items():
        arrange(edge, case)
        await _openais(edge, name, case)


async def _openais(edge: Harness, name: str, case: Case) -> None:
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=case.key, max_retries=0) as client:
        for call, ask in OPENAI_CALLS.items():
            with pytest.raises(openai.APIStatusError) as caught:
                await ask(client, case)
            error = caught.value
            assert type(error) is case.raises[0], (name, call)
            assert (error.status_code, error.type, error.code) == (case.status, case.kind[0], case.code), (name, call)
            renamed = case.param == "messages" and "response" in call
            assert error.param == ("input" if renamed else case.param), (name, call)
            assert error.request_id
            assert isinstance(error.body, dict)
            assert error.body.keys() == {"message", "type", "param", "code"}


async def test_anthropics(edge: Harness) -> None:
    """Messages, whole and streamed, raise the class for their status, with Anthropic's type."""
    for name, case in CASES.items():
        arrange(edge, case)
        await _anthropics(edge, name, case)


async def _anthropics(edge: Harness, name: str, case: Case) -> None:
    ask: dict[str, Any] = {"model": case.model, "max_tokens": 5, "messages": _said(case)}
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=case.key, max_retries=0) as client:

        async def streamed() -> None:
            async with client.messages.stream(**ask) as stream:
                await stream.get_final_message()

        for asking in (client.messages.create(**ask), client.messages.create(**ask, stream=True), streamed()):
            with pytest.raises(anthropic.APIStatusError) as caught:
                await asking
            error = caught.value
            assert type(error) is case.raises[1], name
            assert error.status_code == (case.anthropic_status or case.status)
            body: Any = error.body
            assert (body["type"], body["error"]["type"]) == ("error", case.kind[1])
            assert body["request_id"] == error.request_id


async def test_nobody_answers(edge: Harness) -> None:
    """A server that is not there, and one that takes too long."""

    async def silent(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        await asyncio.Event().wait()
        yield []

    edge.inference.behave = silent
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        async with (
            openai.AsyncOpenAI(base_url=f"{nobody}/v1", api_key=KEY, max_retries=0) as lost,
            anthropic.AsyncAnthropic(base_url=nobody, api_key=KEY, max_retries=0) as lost_too,
        ):
            for ask in OPENAI_CALLS.values():
                with pytest.raises(openai.APIConnectionError):
                    await ask(lost, CASES["a field"])
            with pytest.raises(anthropic.APIConnectionError):
                await lost_too.messages.create(model=MODEL, max_tokens=5, messages=MESSAGES)
    async with (
        openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=KEY, max_retries=0, timeout=0.1) as hasty,
        anthropic.AsyncAnthropic(base_url=edge.url, api_key=KEY, max_retries=0, timeout=0.1) as hasty_too,
    ):
        for ask in OPENAI_CALLS.values():
            with pytest.raises(openai.APITimeoutError):
                await ask(hasty, CASES["a field"])
        with pytest.raises(anthropic.APITimeoutError):
            await hasty_too.messages.create(model=MODEL, max_tokens=5, messages=MESSAGES)


async def test_streams_that_break(edge: Harness) -> None:
    """After the answer began, both SDKs raise what the stream's last event says."""
    error = NaruError(Reason.SERVICE_UNAVAILABLE, "Gone.", metadata={"service": "inference"})
    failed = finished(outcome=generation_pb2.FINISH_OUTCOME_FAILED, error=error_to_proto(error))
    edge.inference.behave = says([accepted(), delta("Par", 1)], [failed])
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=KEY, max_retries=0) as client:
        for call in ("chat streamed", "completion streamed"):
            with pytest.raises(openai.APIError) as caught:
                _ = [chunk async for chunk in await OPENAI_CALLS[call](client, CASES["away"])]
            assert (caught.value.message, caught.value.code, caught.value.type) == (
                "Gone.",
                "service_unavailable",
                SERVER,
            )
        # The SDK hands this API's `error` event on as it is.
        events = [event async for event in await OPENAI_CALLS["response streamed"](client, CASES["away"])]
        last = events[-1]
        assert (last.type, last.message, last.code, last.param) == ("error", "Gone.", "service_unavailable", None)
        assert [event.sequence_number for event in events] == list(range(len(events)))
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(anthropic.APIStatusError) as broke:
            async with client.messages.stream(model=MODEL, max_tokens=5, messages=MESSAGES) as stream:
                await stream.get_final_message()
        body: Any = broke.value.body
        assert body["error"] == {"type": "api_error", "message": "Gone."}


async def test_structured_output(edge: Harness) -> None:
    """`parse` brings the object, of a chat, its stream, and a response; what was cut off raises LengthFinishReasonError."""
    edge.inference.behave = says([accepted(), delta('{"name": ', 3)], [delta('"Paris"}', 6, finish="stop"), finished()])
    async with openai.AsyncOpenAI(base_url=f"{edge.url}/v1", api_key=KEY, max_retries=0) as client:
        chat = await client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=City)
        assert chat.choices[0].message.parsed == City(name="Paris")
        async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, response_format=City) as stream:
            streamed = await stream.get_final_completion()
        assert streamed.choices[0].message.parsed == City(name="Paris")
        response = await client.responses.parse(model=MODEL, input="Hello", text_format=City)
        assert response.output_parsed == City(name="Paris")
        edge.inference.behave = says([accepted(), delta('{"name": ', 3, finish="length"), finished()])
        with pytest.raises(openai.LengthFinishReasonError) as cut:
            await client.chat.completions.parse(model=MODEL, messages=MESSAGES, response_format=City)
        assert cut.value.completion.choices[0].finish_reason == "length"
        with pytest.raises(openai.LengthFinishReasonError):
            async with client.chat.completions.stream(model=MODEL, messages=MESSAGES, response_format=City) as stream:
                await stream.get_final_completion()
        cut_response = await client.responses.create(model=MODEL, input="Hello")
        assert cut_response.status == "incomplete"
        assert cut_response.incomplete_details is not None
        assert cut_response.incomplete_details.reason == "max_output_tokens"
