"""Anthropic's Messages over HTTP, as its own SDK uses them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anthropic
import pytest

from naru.api.accounting.v1 import limit_pb2
from naru.api.inference.v1 import generation_pb2
from naru.convert import duration_to_proto, error_to_proto
from naru.errors import NaruError, Reason
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until
from tests.support.fake_accounting import grant, refuse
from tests.support.fake_inference import MODEL, Behaviour, Event, accepted, delta, finished, refused

ASK: dict[str, Any] = {
    "model": MODEL,
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
}
PATH = "/v1/messages"
TOOL = {"name": "weather", "description": "Of a city.", "input_schema": {"type": "object", "properties": {"city": {}}}}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


@pytest.fixture
async def client(edge: Harness) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=KEY, max_retries=0) as sdk:
        yield sdk


def says(*steps: Sequence[Event]) -> Behaviour:
    async def behave(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        for step in steps:
            yield step

    return behave


async def test_the_sdk_gets_a_message(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """A whole message with exact usage; what goes on to inference is the body of a chat completion."""
    sampling = {"temperature": 0.5, "top_k": 5}
    message = await client.messages.create(
        **ASK, system="Be brief.", stop_sequences=["END"], metadata={"user_id": "u1"}, extra_body=sampling
    )
    assert message.content[0].type == "text"
    assert message.content[0].text == "Paris it is."
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    # Four of the prompt's seven tokens came from the cache, and Anthropic counts those apart.
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (3, 4)
    assert message.usage.output_tokens == 3
    assert message._request_id
    generation = edge.inference.submitted[0]
    assert generation.openai.endpoint == generation_pb2.ENDPOINT_MESSAGES
    assert json.loads(generation.openai.json) == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, *ASK["messages"]],
        "max_completion_tokens": 50,
        "stop": ["END"],
        "temperature": 0.5,
        "top_k": 5,
        "user": "u1",
    }


async def test_it_is_limited_and_logged_as_chat_is(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """One reservation, one submit, one line in the request log, all of one event, under the endpoint's own name."""
    await client.beta.messages.create(**ASK)
    await until(lambda: edge.accounting.records)
    (reservation,), (record,) = edge.accounting.reserved, edge.accounting.records
    generation = edge.inference.submitted[0]
    assert reservation.event_id == record.event_id == generation.event_id
    assert (reservation.endpoint, record.endpoint) == (PATH, PATH)
    assert reservation.principal.key_id == PRINCIPAL.key_id
    assert (reservation.output_tokens, reservation.choices, record.status) == (50, 1, 200)


async def test_the_sdk_streams(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """The stream helper puts the same message together from Anthropic's events."""
    async with client.messages.stream(**ASK) as stream:
        texts = [text async for text in stream.text_stream]
        message = await stream.get_final_message()
    assert "".join(texts) == "Paris it is."
    assert message.content[0].type == "text"
    assert message.content[0].text == "Paris it is."
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (3, 4, 3)


async def test_the_events_are_anthropics(edge: Harness) -> None:
    """Each event has its name, its order, and the exact prompt tokens at once; no [DONE] follows."""
    async with edge.post(PATH + "?beta=true", ASK | {"stream": True}) as answer:
        assert answer.headers["Request-Id"] == answer.headers["X-Request-Id"]
        text = await answer.text()
    events = [dict(line.split(": ", 1) for line in part.split("\n")) for part in text.split("\n\n")[:-1]]
    data = [json.loads(one["data"]) for one in events]
    assert [one["event"] for one in events] == [one["type"] for one in data]
    assert [one["type"] for one in data] == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert data[0]["message"]["usage"]["input_tokens"] == 7
    assert data[0]["message"]["content"] == []
    assert data[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


@pytest.mark.parametrize(
    ("end", "reason", "sequence"),
    [
        ({"finish": "length"}, "max_tokens", None),
        ({"finish": "content_filter"}, "refusal", None),
        ({"finish": "stop", "stop_text": "END"}, "stop_sequence", "END"),
    ],
)
async def test_why_it_stopped(
    edge: Harness, client: anthropic.AsyncAnthropic, end: dict[str, Any], reason: str, sequence: str | None
) -> None:
    """The reason and the matched stop sequence, whole and streamed."""
    edge.inference.behave = says([accepted()], [delta("Paris", 1, **end), finished()])
    message = await client.messages.create(**ASK)
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)
    async with client.messages.stream(**ASK) as stream:
        message = await stream.get_final_message()
    assert (message.stop_reason, message.stop_sequence) == (reason, sequence)


async def test_tools_and_thoughts(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """Reasoning, text and two tool calls come as blocks in turn, whole and streamed alike."""
    call = generation_pb2.ToolCallDelta
    edge.inference.behave = says(
        [accepted(), delta("", 1, reasoning="Let me"), delta("", 2, reasoning=" see.")],
        [delta("I ask.", 3), delta("", 4, tool_calls=[call(index=0, id="c1", name="weather", arguments="")])],
        [delta("", 5, tool_calls=[call(index=0, arguments='{"city": '), call(index=0, arguments='"Paris"}')])],
        [delta("", 6, tool_calls=[call(index=1, id="c2", name="weather", arguments='{"city":"Rome"}')])],
        [delta("", 7, finish="tool_calls"), finished(completion_tokens=7)],
    )
    whole = await client.messages.create(**ASK, tools=[TOOL], tool_choice={"type": "any"})
    async with client.messages.stream(**ASK, tools=[TOOL]) as stream:
        streamed = await stream.get_final_message()
    for message in (whole, streamed):
        thinking, text, first, second = message.content
        assert thinking.type == "thinking"
        assert thinking.thinking == "Let me see."
        assert text.type == "text"
        assert text.text == "I ask."
        assert first.type == second.type == "tool_use"
        assert (first.id, first.name, first.input) == ("c1", "weather", {"city": "Paris"})
        assert (second.id, second.name, second.input) == ("c2", "weather", {"city": "Rome"})
        assert message.stop_reason == "tool_use"
    sent = json.loads(edge.inference.submitted[0].openai.json)
    assert sent["tools"][0]["function"]["parameters"] == TOOL["input_schema"]
    assert sent["tool_choice"] == "required"


async def test_silence_is_filled_with_pings(tmp_path: Path) -> None:
    """Anthropic's keep-alive is an event of its own."""
    heard = asyncio.Event()

    async def slow(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        await heard.wait()
        yield [delta("late", 1, finish="stop"), finished()]

    async with edge_with_peers(tmp_path, keep_alive_seconds=0.1) as edge:
        edge.inference.behave = slow
        async with edge.post(PATH, ASK | {"stream": True}) as answer:
            await answer.content.readuntil(b'event: ping\ndata: {"type":"ping"}\n\n')
            heard.set()
            text = await answer.text()
    assert '"late"' in text
    assert "keep-alive" not in text


async def test_a_stream_that_breaks(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """An error event ends it, and the SDK raises it."""
    error = NaruError(Reason.OVERLOADED, "No room.", metadata={"service": "inference"}, retry_after=1.0)
    failed = finished(outcome=generation_pb2.FINISH_OUTCOME_FAILED, error=error_to_proto(error))
    edge.inference.behave = says([accepted(), delta("Par", 1)], [failed])
    with pytest.raises(anthropic.APIStatusError) as caught:
        async with client.messages.stream(**ASK) as stream:
            await stream.get_final_message()
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["error"] == {"type": "overloaded_error", "message": "No room."}
    async with edge.post(PATH, ASK | {"stream": True}, headers={"X-Request-Id": "r1"}) as answer:
        text = await answer.text()
    assert text.endswith('"message":"No room."},"request_id":"r1"}\n\n')
    assert "event: error\n" in text


@pytest.mark.parametrize(
    ("reason", "status", "kind", "exception"),
    [
        (Reason.INVALID_ARGUMENT, 400, "invalid_request_error", anthropic.BadRequestError),
        (Reason.CONTEXT_LENGTH_EXCEEDED, 400, "invalid_request_error", anthropic.BadRequestError),
        (Reason.NOT_SUPPORTED, 400, "invalid_request_error", anthropic.BadRequestError),
        (Reason.OVERLOADED, 529, "overloaded_error", anthropic.InternalServerError),
        (Reason.SERVICE_UNAVAILABLE, 503, "api_error", anthropic.InternalServerError),
        (Reason.INTERNAL, 500, "api_error", anthropic.InternalServerError),
    ],
)
async def test_refusals_raise_what_anthropic_raises(
    edge: Harness, client: anthropic.AsyncAnthropic, reason: Reason, status: int, kind: str, exception: type[Exception]
) -> None:
    """What inference refuses has Anthropic's status, type and exception."""
    edge.inference.behave = says([refused(NaruError(reason, "No."))])
    with pytest.raises(anthropic.APIStatusError) as caught:
        await client.messages.create(**ASK)
    assert isinstance(caught.value, exception)
    assert caught.value.status_code == status
    body = caught.value.body
    assert isinstance(body, dict)
    assert (body["type"], body["error"]["type"]) == ("error", kind)
    assert body["request_id"] == caught.value.request_id


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (
            {"prompt_tokens": "2000", "context_tokens": "2048", "max_tokens": "50"},
            "input length and `max_tokens` exceed context limit: 2000 + 50 > 2048, "
            "decrease input length or `max_tokens` and try again",
        ),
        (
            {"prompt_tokens": "2060", "context_tokens": "2048", "max_tokens": "50"},
            "prompt is too long: 2060 tokens > 2048 maximum",
        ),
        ({"prompt_tokens": "2060", "context_tokens": "2048"}, "prompt is too long: 2060 tokens > 2048 maximum"),
        ({"context_tokens": "2048"}, "Too long."),
    ],
)
async def test_a_full_context(edge: Harness, figures: dict[str, str], message: str) -> None:
    """It is told in Anthropic's sentences, of which clients read by how much it is too full; in a stream's event too."""
    error = NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, "Too long.", metadata={"field": "messages", **figures})
    assert await told(edge, error) == (message, message)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("`max_completion_tokens` is odd.", "`max_tokens` is odd."),
        ("max_completion_tokens=9 is odd.", "max_tokens=9 is odd."),
        ("`messages[2].content[0].text` is odd.", "`messages` is odd."),
        ("`response_format` is odd.", "`output_config.format` is odd."),
        ("`response_format.json_schema.schema` is odd.", "`output_config.format.schema` is odd."),
        ("`reasoning_effort` is odd.", "`output_config.effort` is odd."),
        ("`tools[1].function.parameters` is odd.", "`tools.1.input_schema` is odd."),
        ("`tools[1].function.parameters.type` is odd.", "`tools.1.input_schema.type` is odd."),
        ("`tools[12].function.name` is odd.", "`tools.12.name` is odd."),
        ("`tools[0]` is odd.", "`tools.0` is odd."),
        ("`tool_choice.function.name` is odd.", "`tool_choice.name` is odd."),
        ("`tools`, `temperature` and the messages are odd.", "`tools`, `temperature` and the messages are odd."),
    ],
)
@pytest.mark.parametrize("reason", [Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED])
async def test_refusals_name_what_was_sent(edge: Harness, reason: Reason, said: str, message: str) -> None:
    """What the engine says of the chat completion is told of the body that was sent, in an answer and in a stream's event."""
    assert await told(edge, NaruError(reason, said)) == (message, message)


async def told(edge: Harness, error: NaruError) -> tuple[str, str]:
    """How an error of inference is told as an answer, and in a stream."""
    edge.inference.behave = says([refused(error)])
    async with edge.post(PATH, ASK) as answer:
        shown = (await answer.json())["error"]["message"]
    failed = finished(outcome=generation_pb2.FINISH_OUTCOME_FAILED, error=error_to_proto(error))
    edge.inference.behave = says([accepted(), delta("Par", 1)], [failed])
    async with edge.post(PATH, ASK | {"stream": True}) as answer:
        event = json.loads((await answer.text()).rpartition("data: ")[2])
    return shown, event["error"]["message"]


async def test_unknown_fields_keep_their_names(edge: Harness) -> None:
    """Also those that a chat completion has, which are not the client's word for another one."""
    for field in ("max_completion_tokens", "response_format"):
        async with edge.post(PATH, ASK | {field: 5}) as answer:
            assert (await answer.json())["error"]["message"] == f"Unknown parameter: '{field}'."


@pytest.mark.parametrize("most", [0, 2**31])
async def test_an_impossible_max_tokens_is_called_so(edge: Harness, most: int) -> None:
    async with edge.post(PATH, ASK | {"max_tokens": most}) as answer:
        assert answer.status == 400
        message = (await answer.json())["error"]["message"]
    assert "max_tokens" in message
    assert "max_completion_tokens" not in message


async def test_who_may_ask(edge: Harness) -> None:
    """A bad key, an unknown model and a wrong path raise what Anthropic raises, in its shape; either header brings a key."""
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key="sk-naru-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            await stranger.messages.create(**ASK)
    assert caught.value.body["error"]["type"] == "authentication_error"  # type: ignore[index] # an object, see above
    async with anthropic.AsyncAnthropic(base_url=edge.url, auth_token=KEY, max_retries=0) as bearer:
        assert (await bearer.messages.create(**ASK)).stop_reason == "end_turn"
        with pytest.raises(anthropic.NotFoundError):
            await bearer.messages.create(**ASK | {"model": "claude"})
    async with edge.get(PATH) as answer:
        assert answer.status == 405
        assert (await answer.json())["error"]["type"] == "invalid_request_error"
    async with edge.post(PATH + "/batches", {}) as answer:
        assert answer.status == 404
        assert (await answer.json())["type"] == "error"


async def test_a_spent_limit(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """It raises RateLimitError, with when to come back and where the limits stand in Anthropic's headers."""
    limit = limit_pb2.LimitState(
        scope=limit_pb2.LIMIT_SCOPE_KEY,
        kind=limit_pb2.LIMIT_KIND_INPUT_TOKENS,
        window=limit_pb2.LIMIT_WINDOW_MINUTE,
        limit=1000,
        remaining=0,
        reset_delay=duration_to_proto(11.2),
    )
    error = NaruError(Reason.RATE_LIMIT_EXCEEDED, "Too many.", metadata={"kind": "input_tokens"}, retry_after=11.2)
    edge.accounting.decide = lambda reservation: refuse(reservation, error, (limit,))
    with pytest.raises(anthropic.RateLimitError) as caught:
        await client.messages.create(**ASK)
    headers = caught.value.response.headers
    assert headers["retry-after"] == "12"
    assert headers["anthropic-ratelimit-input-tokens-limit"] == "1000"
    assert headers["anthropic-ratelimit-tokens-remaining"] == "0"
    assert headers["anthropic-ratelimit-tokens-reset"].endswith("Z")
    edge.accounting.decide = grant


async def test_an_idempotency_key(edge: Harness) -> None:
    """Its fate is told with the answer as it was given."""
    answers = []
    for stream in (False, True):
        async with edge.post(PATH, ASK | {"stream": stream}, headers={"Idempotency-Key": f"k{stream}"}) as answer:
            answers.append(await answer.read())
    await until(lambda: len(edge.accounting.kept) == 2)
    assert all(body in kept.outcome for body, kept in zip(answers, edge.accounting.kept, strict=True))


async def test_models_for_anthropics_clients(edge: Harness, client: anthropic.AsyncAnthropic) -> None:
    """The SDK lists the models that the key may use, and one that there is not raises NotFoundError."""
    assert [model.id async for model in await client.models.list()] == [MODEL]
    model = await client.models.retrieve(MODEL)
    assert (model.display_name, model.max_input_tokens, model.created_at.year) == (MODEL, 2048, 2027)
    with pytest.raises(anthropic.NotFoundError) as caught:
        await client.models.retrieve("none")
    assert caught.value.body["error"]["type"] == "not_found_error"  # type: ignore[index] # an object, see above
