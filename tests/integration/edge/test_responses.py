"""OpenAI's Responses over HTTP, as its own SDK uses them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.responses import Response
from pydantic import TypeAdapter

from naru.api.inference.v1 import generation_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError, Reason, unavailable
from tests.support.edge_harness import KEY, Harness, edge_with_peers
from tests.support.fake_inference import MODEL, Behaviour, Event, accepted, delta, finished, refused

ASK: dict[str, Any] = {"model": MODEL, "input": "What is the capital of France?"}
PATH = "/v1/responses"
RESPONSE: TypeAdapter[Response] = TypeAdapter(Response)
CITY = {"type": "object", "properties": {"z": {}, "city": {}}}
WEATHER = {"type": "function", "name": "weather", "parameters": CITY, "strict": False}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


@pytest.fixture
async def client(edge: Harness) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=edge.url + "/v1", api_key=KEY, max_retries=0) as sdk:
        yield sdk


def says(*steps: Sequence[Event]) -> Behaviour:
    async def behave(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        for step in steps:
            yield step

    return behave


async def test_the_sdk_gets_a_response(edge: Harness, client: openai.AsyncOpenAI) -> None:
    """A whole response with exact usage and all that the SDK's type needs; inference gets the body of a chat completion."""
    raw = await client.responses.with_raw_response.create(
        **ASK, instructions="Be brief.", max_output_tokens=50, temperature=0.5, metadata={"a": "b"}, store=True
    )
    # The SDK itself makes its objects of anything.
    response = RESPONSE.validate_json(raw.content)
    assert response.output_text == "Paris it is."
    assert (response.status, response.model, response.instructions) == ("completed", MODEL, "Be brief.")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (7, 3, 10)
    assert response.usage.input_tokens_details.cache_write_tokens == 0
    assert response.metadata == {"a": "b"}
    generation, reservation = edge.inference.submitted[0], edge.accounting.reserved[0]
    assert generation.openai.endpoint == generation_pb2.ENDPOINT_RESPONSES
    assert (reservation.endpoint, reservation.output_tokens) == (PATH, 50)
    assert json.loads(generation.openai.json) == {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ASK["input"]}],
        "max_completion_tokens": 50,
        "temperature": 0.5,
    }


async def test_the_sdk_streams(edge: Harness, client: openai.AsyncOpenAI) -> None:
    """The events come in OpenAI's order, numbered; the helper puts the same response together; no [DONE] follows."""
    async with client.responses.stream(**ASK) as stream:
        events = [event async for event in stream]
        response = await stream.get_final_response()
    assert response.output_text == "Paris it is."
    assert [event.type for event in events if event.type != "response.output_text.delta"] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    async with edge.post(PATH, ASK | {"stream": True}) as answer:
        assert "[DONE]" not in await answer.text()


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_incomplete(edge: Harness, client: openai.AsyncOpenAI, finish: str, reason: str) -> None:
    """An answer that reaches its limit, or that an upstream's filter ended, says so, whole and streamed."""
    edge.inference.behave = says([accepted()], [delta("Par", 1, finish=finish), finished()])
    whole = await client.responses.create(**ASK, max_output_tokens=1)
    async with client.responses.stream(**ASK, max_output_tokens=1) as stream:
        events = [event async for event in stream]
    last = events[-1]
    assert last.type == "response.incomplete"
    for response in (whole, last.response):
        assert response.status == "incomplete"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == reason
        assert response.output[0].status == "incomplete"  # type: ignore[union-attr] # a message


async def test_tools_and_thoughts(edge: Harness, client: openai.AsyncOpenAI) -> None:
    """Reasoning, text and calls are items in turn; the next request brings them back as messages."""
    call = generation_pb2.ToolCallDelta
    edge.inference.behave = says(
        [accepted(), delta("", 1, reasoning="Let me see.")],
        [delta("I ask.", 2), delta("", 3, tool_calls=[call(index=0, id="c1", name="weather")])],
        [delta("", 4, tool_calls=[call(index=0, arguments='{"city":"Paris"}')])],
        [delta("", 5, finish="tool_calls"), finished()],
    )
    whole = await client.responses.create(**ASK, tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    async with client.responses.stream(**ASK, tools=[WEATHER]) as stream:
        streamed = await stream.get_final_response()
    for response in (whole, streamed):
        thought, message, made = response.output
        assert thought.type == "reasoning"
        assert message.type == "message"
        assert response.output_text == "I ask."
        assert made.type == "function_call"
        assert (made.call_id, made.name, made.arguments) == ("c1", "weather", '{"city":"Paris"}')
    sent = json.loads(edge.inference.submitted[0].openai.json)
    assert sent["tools"] == [{"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": False}}]
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "weather"}}
    results = [{"type": "function_call_output", "call_id": "c1", "output": "Rain."}]
    await client.responses.create(
        model=MODEL,
        input=[{"role": "user", "content": "Rain?"}, *(one.model_dump() for one in whole.output), *results],
    )
    assert json.loads(edge.inference.submitted[-1].openai.json)["messages"] == [
        {"role": "user", "content": "Rain?"},
        {
            "role": "assistant",
            "content": "I ask.",
            "reasoning": "Let me see.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Paris"}'}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Rain."},
    ]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
async def test_what_is_refused(edge: Harness, fields: dict[str, Any], param: str) -> None:
    """What needs state or cannot be done is a 400 that names the field; nothing is reserved."""
    async with edge.post(PATH, ASK | fields) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param
    assert edge.accounting.reserved == []


@pytest.mark.parametrize(
    ("field", "said", "param", "message"),
    [
        (
            "messages",
            "However, your messages resulted in 9 tokens. Please reduce the length of the messages.",
            "input",
            "However, your input resulted in 9 tokens. Please reduce the length of the input.",
        ),
        ("messages[2].role", "`messages[2].role` is odd.", "input", "`input` is odd."),
        ("max_tokens", "max_tokens=5 is odd.", "max_output_tokens", "max_output_tokens=5 is odd."),
        ("reasoning_effort", "`reasoning_effort` is odd.", "reasoning.effort", "`reasoning.effort` is odd."),
        (
            "response_format.json_schema.schema",
            "'response_format.json_schema.schema' is odd.",
            "text.format.schema",
            "'text.format.schema' is odd.",
        ),
        (
            "tools[0].function.parameters",
            "`tools[0].function.parameters` is odd.",
            "tools[0].parameters",
            "`tools[0].parameters` is odd.",
        ),
    ],
)
@pytest.mark.parametrize("reason", [Reason.INVALID_ARGUMENT, Reason.CONTEXT_LENGTH_EXCEEDED])
async def test_refusals_name_what_was_sent(
    edge: Harness, reason: Reason, field: str, said: str, param: str, message: str
) -> None:
    """What the engine says of the chat completion is told of the body that was sent, in an answer and in a stream's event."""
    error = NaruError(reason, said, metadata={"field": field})
    edge.inference.behave = says([refused(error)])
    async with edge.post(PATH, ASK) as answer:
        shown = (await answer.json())["error"]
    assert (shown["param"], shown["message"]) == (param, message)
    failed = finished(outcome=generation_pb2.FINISH_OUTCOME_FAILED, error=error_to_proto(error))
    edge.inference.behave = says([accepted(), delta("Par", 1)], [failed])
    async with edge.post(PATH, ASK | {"stream": True}) as answer:
        event = json.loads((await answer.text()).rpartition("data: ")[2])
    assert (event["param"], event["message"]) == (param, message)


async def test_other_errors_keep_their_words(edge: Harness) -> None:
    """Without a field, too long an input is still its; a field of chat completions alone is unknown by its own name."""
    edge.inference.behave = says([refused(NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, "Too long."))])
    refusals: list[tuple[dict[str, Any], str, str]] = [
        ({}, "input", "Too long."),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "Unknown parameter: 'max_completion_tokens'."),
        ({"max_output_tokens": 2**31}, "max_output_tokens", f"Invalid value for 'max_output_tokens': {2**31}. "),
    ]
    for fields, param, message in refusals:
        async with edge.post(PATH, ASK | fields) as answer:
            shown = (await answer.json())["error"]
        assert shown["param"] == param
        assert shown["message"].startswith(message)


async def test_structured_output(edge: Harness, client: openai.AsyncOpenAI) -> None:
    """The format becomes the chat completion's, the schema's keys in their order, and the answer repeats it."""
    wanted = {"type": "json_schema", "name": "city", "schema": CITY, "strict": True}
    response = await client.responses.create(**ASK, text={"format": wanted})  # type: ignore[arg-type] # as documented
    raw = edge.inference.submitted[0].openai.json.decode()
    assert json.loads(raw)["response_format"]["json_schema"] == {"name": "city", "schema": CITY, "strict": True}
    assert raw.index('"z"') < raw.index('"city":{}')
    assert response.text is not None
    assert response.text.format is not None
    assert response.text.format.type == "json_schema"


async def test_a_stream_that_breaks(edge: Harness) -> None:
    """An error event ends it."""
    failed = finished(
        outcome=generation_pb2.FINISH_OUTCOME_FAILED, error=error_to_proto(unavailable("inference", "Gone."))
    )
    edge.inference.behave = says([accepted(), delta("Par", 1)], [failed])
    async with edge.post(PATH, ASK | {"stream": True}) as answer:
        text = await answer.text()
    assert text.endswith(
        'event: error\ndata: {"type":"error","sequence_number":5,"code":"service_unavailable","message":"Gone.","param":null}\n\n'
    )
