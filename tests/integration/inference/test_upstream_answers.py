"""What comes of an upstream's answers, good and bad ones: a real edge and a real service before a server that misbehaves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from naru.api.accounting.v1 import usage_event_pb2
from tests.support.edge_harness import until
from tests.support.upstream import (
    SECRET,
    USAGE,
    FakeUpstream,
    SmallNaru,
    behind,
    chunk,
    fake_upstream,
    gained,
    small_naru,
    whole,
)

MESSAGES: list[Any] = [{"role": "user", "content": "What is the weather in Seoul?"}]
TOOLS: list[Any] = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
FAILED, COMPLETED = usage_event_pb2.OUTCOME_FAILED, usage_event_pb2.OUTCOME_COMPLETED
REPORTED, ESTIMATED = usage_event_pb2.ACCURACY_REPORTED, usage_event_pb2.ACCURACY_ESTIMATED


@dataclass(frozen=True, slots=True)
class Front:
    """A Naru before an upstream."""

    naru: SmallNaru
    upstream: FakeUpstream

    async def chat(self, **fields: Any) -> Any:
        """A chat by the SDK."""
        return await self.naru.client.chat.completions.create(model="ours", messages=MESSAGES, **fields)

    async def refusal(self, **fields: Any) -> openai.APIStatusError:
        """The error that a chat is refused with, whether it is streamed or not."""
        with pytest.raises(openai.APIStatusError) as refused:
            await self.chat(**fields)
        return refused.value

    async def broken_stream(self) -> tuple[str, openai.APIError]:
        """What a stream brought before it broke, and how it broke."""
        text = ""
        with pytest.raises(openai.APIError) as broke:
            async for part in await self.chat(stream=True):
                text += (part.choices[0].delta.content or "") if part.choices else ""
        return text, broke.value

    async def billed(self, number: int = 1) -> tuple[int, int, int, int]:
        """Outcome, accuracy, prompt and completion tokens of the event of that number."""
        event = (await self.naru.events(number))[number - 1]
        return event.outcome, event.accuracy, event.usage.prompt_tokens, event.usage.completion_tokens


@asynccontextmanager
async def patient(tmp_path: Path, first_token: float, total: float) -> AsyncIterator[Front]:
    """Waits that many seconds for the first token and for the whole answer."""
    async with AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(fake_upstream())
        patience = {"upstream_first_token_timeout": first_token, "upstream_total_timeout": total}
        naru = await stack.enter_async_context(small_naru(tmp_path, behind(upstream.url, **patience)))
        yield Front(naru, upstream)


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    """As patient as a slow machine needs."""
    async with patient(tmp_path, first_token=15.0, total=30.0) as front:
        yield front


@pytest.fixture
async def impatient(tmp_path: Path) -> AsyncIterator[Front]:
    """For upstreams that never say anything."""
    async with patient(tmp_path, first_token=0.3, total=0.8) as front:
        yield front


CALLS = [
    chunk(gained(role="assistant", content="")),
    chunk(gained(reasoning_content="They want ")),
    chunk(gained(reasoning="the weather.")),
    chunk(gained(content="Let me see.")),
    chunk(gained(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather"}}])),
    chunk(gained(tool_calls=[{"index": 0, "function": {"arguments": '{"city": '}}])),
    chunk(gained(tool_calls=[{"index": 0, "function": {"arguments": '"Seoul"}'}}])),
    chunk(gained(tool_calls=[{"index": 1, "id": "call_2", "function": {"name": "time", "arguments": "{}"}}])),
    chunk(gained(finish_reason="tool_calls")),
    chunk(usage=USAGE),
]


async def test_tools_and_reasoning_streamed(front: Front) -> None:
    """Pieces of calls and of reasoning come through with index, id, name and the end that the upstream said."""
    front.upstream.stream = CALLS
    calls: dict[int, list[str]] = {}
    reasoning, text, ends, usage = "", "", [], None
    stream = await front.chat(stream=True, tools=TOOLS, stream_options={"include_usage": True})
    async for part in stream:
        usage = part.usage or usage
        for choice in part.choices:
            text += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning", None) or ""
            ends += [choice.finish_reason] if choice.finish_reason else []
            for call in choice.delta.tool_calls or ():
                known = calls.setdefault(call.index, ["", "", ""])
                for place, said in enumerate((call.id, call.function.name, call.function.arguments)):
                    known[place] += said or ""
    assert (text, reasoning, ends) == ("Let me see.", "They want the weather.", ["tool_calls"])
    assert calls == {0: ["call_1", "weather", '{"city": "Seoul"}'], 1: ["call_2", "time", "{}"]}
    assert usage.model_dump() == USAGE | {"prompt_tokens_details": usage.prompt_tokens_details.model_dump()} | {
        "completion_tokens_details": usage.completion_tokens_details.model_dump()
    }
    assert usage.prompt_tokens_details.cached_tokens == 9
    assert usage.completion_tokens_details.reasoning_tokens == 4
    assert await front.billed() == (COMPLETED, REPORTED, 31, 17)


async def test_tools_and_reasoning_whole(front: Front) -> None:
    """The same of an answer that is not streamed; a refusal of the model's is its text."""
    function = {"name": "weather", "arguments": '{"city":"Seoul"}'}
    calls = [{"id": "call_1", "type": "function", "function": function}, {"id": "call_2", "function": function}]
    front.upstream.answer = whole({"content": None, "reasoning_content": "Hm.", "tool_calls": calls})
    (choice,) = (await front.chat(tools=TOOLS)).choices
    assert [(call.id, call.function.model_dump()) for call in choice.message.tool_calls] == [
        ("call_1", function),
        ("call_2", function),
    ]
    assert choice.message.reasoning == "Hm."
    front.upstream.answer = whole({"content": None, "refusal": "I will not."}, finish_reason="content_filter")
    (choice,) = (await front.chat()).choices
    assert (choice.message.content, choice.finish_reason) == ("I will not.", "content_filter")
    response = await front.naru.client.responses.create(model="ours", input="Hello")
    assert response.output_text == "I will not."
    assert await front.billed(3) == (COMPLETED, REPORTED, 31, 17)


async def test_messages_are_asked_as_every_chat_model_understands(front: Front) -> None:
    """The newest of OpenAI's chat models know `max_completion_tokens` alone; what they say of it is said of `max_tokens`."""
    front.upstream.answer = whole({"content": "Hello"})
    ask: dict[str, Any] = {"model": "ours", "max_tokens": 50, "messages": MESSAGES}
    origin = front.naru.url.removesuffix("/v1")
    async with anthropic.AsyncAnthropic(base_url=origin, api_key=front.naru.key, max_retries=0) as client:
        await client.messages.create(**ask, system="Be brief.")
        assert front.upstream.bodies == [
            {
                "model": "theirs",
                "messages": [{"role": "system", "content": "Be brief."}, *MESSAGES],
                "max_completion_tokens": 50,
                "stream": False,
            }
        ]
        said = {"message": "max_completion_tokens is too large: 50.", "param": "max_completion_tokens"}
        front.upstream.status, front.upstream.answer = 400, {"error": said}
        with pytest.raises(anthropic.BadRequestError, match=r"'max_tokens is too large: 50\.'"):
            await client.messages.create(**ask)


async def test_what_the_upstream_is_asked(front: Front) -> None:
    """The body goes on as it came, but for the model's name, `stream_options`, and what is this service's own."""
    front.upstream.stream, front.upstream.answer = CALLS, whole({"content": "Hello"})
    fields: dict[str, Any] = {
        "tools": TOOLS,
        "seed": 12345678901234567890123,
        "user": "somebody",
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
    }
    more = {"provider": {"sort": "price"}, "usage": {"include": True}, "cache_salt": "mine"}
    await front.chat(**fields, extra_body=more)
    await (await front.chat(**fields, extra_body=more, stream=True)).close()
    front.naru.accounting.output_token_cap = 7
    await front.chat(max_tokens=9)
    await front.chat()
    expected = {"model": "theirs", "messages": MESSAGES, "provider": {"sort": "price"}, **fields}
    assert front.upstream.bodies == [
        expected | {"stream": False},
        expected | {"stream": True, "stream_options": {"include_usage": True}},
        {"model": "theirs", "messages": MESSAGES, "stream": False, "max_tokens": 7},
        {"model": "theirs", "messages": MESSAGES, "stream": False, "max_completion_tokens": 7},
    ]
    assert set(front.upstream.authorizations) == {f"Bearer {SECRET}"}
    for field in ("models", "fallbacks", "plugins", "api_base", "store", "best_of", "use_beam_search", "moderation"):
        refused = await front.refusal(extra_body={field: [True]})
        assert (refused.status_code, refused.param) == (400, field)
    assert len(front.upstream.bodies) == 4


async def test_no_more_is_generated_than_was_reserved(front: Front) -> None:
    """The most tokens have one name, by which they were reserved; more candidates than choices are refused."""
    front.upstream.answer = whole({"content": "Hello"})
    await front.chat(max_tokens=9_000, max_completion_tokens=5)
    await front.chat(extra_body={"best_of": 1, "use_beam_search": False})
    sent, asked = front.upstream.bodies
    assert ("max_tokens" in sent, sent["max_completion_tokens"], asked["best_of"]) == (False, 5, 1)
    for fields in ({"best_of": 2}, {"best_of": 3, "n": 2}, {"best_of": 1, "n": 2}):
        assert (await front.refusal(extra_body=fields)).param == "best_of"
    assert len(front.upstream.bodies) == 2


@pytest.mark.behaviour
@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (400, {"message": f"No `top_q`, {SECRET}, Bearer abc.", "param": "top_q"}, (400, None)),
        (400, {"message": "Too long", "code": "context_length_exceeded"}, (400, "context_length_exceeded")),
        (401, {"message": f"Incorrect API key provided: {SECRET}"}, (503, "service_unavailable")),
        (402, {"message": "Insufficient credits of org-abcdefgh"}, (503, "service_unavailable")),
        (404, {"message": "No such model theirs"}, (503, "service_unavailable")),
        (429, {"message": "Slow down", "code": "rate_limit_exceeded"}, (503, "overloaded")),
        (429, {"message": "Pay first", "code": "insufficient_quota"}, (503, "service_unavailable")),
        (500, {"message": f"Traceback: key={SECRET}"}, (503, "service_unavailable")),
        (529, None, (503, "overloaded")),
    ],
)
async def test_errors_of_the_upstream(
    front: Front,
    status: int,
    error: object,
    expected: tuple[int, str | None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Each becomes one of ours, streamed or not, is not billed, and shows the key to nobody."""
    front.upstream.status, front.upstream.answer = status, {"error": error}
    front.upstream.headers = {"Retry-After": "7"}
    for stream in (False, True):
        refused = await front.refusal(stream=stream)
        assert (refused.status_code, refused.code) == expected
        assert refused.response.headers.get("retry-after") == (None if status == 400 else "7")
        said = refused.response.text + "".join(capfd.readouterr())
        assert SECRET not in said
        assert "abcdefgh" not in said
        assert "Bearer abc" not in said
    await until(lambda: len(front.naru.accounting.released) == 2)
    assert not front.naru.accounting.events
    if status == 400 and expected[1] is None:
        assert refused.param == "top_q"
        assert "top_q" in refused.message


@pytest.mark.parametrize("late", [5.0, b": working\n\n"])
async def test_a_late_first_token(impatient: Front, late: float | bytes) -> None:
    """A stream that does not begin is a 504, comments or not, and the request is ended at the upstream."""
    impatient.upstream.stream = [late, 5.0, *CALLS]
    refused = await impatient.refusal(stream=True)
    assert (refused.status_code, refused.code) == (504, "timeout")
    await until(lambda: impatient.upstream.hung_up == 1)
    assert not impatient.naru.accounting.events


@pytest.mark.behaviour
async def test_a_late_answer(impatient: Front) -> None:
    """A whole answer has the total time, and then it is a 504."""
    impatient.upstream.answer = 5.0
    refused = await impatient.refusal()
    assert (refused.status_code, refused.code) == (504, "timeout")
    await until(lambda: impatient.upstream.open == 0)


BEGUN = [chunk(gained(role="assistant", content="")), chunk(gained(content="One ")), chunk(gained(content="two "))]


@pytest.mark.behaviour
@pytest.mark.parametrize(
    ("events", "done"),
    [
        pytest.param(BEGUN, None, id="cut"),
        pytest.param(BEGUN, True, id="ended early"),
        pytest.param([*BEGUN, b"data: {nonsense\n\n"], True, id="no JSON"),
        pytest.param([*BEGUN, chunk(gained(index=3, content="?"))], True, id="no such choice"),
        pytest.param([*BEGUN, *[b"data: " + b"?" * 65_536] * 1_000], True, id="no end of an event"),
        pytest.param([*BEGUN, {"error": {"message": f"died {SECRET}", "code": 502}}], True, id="error"),
    ],
)
async def test_a_stream_that_breaks(front: Front, events: list[Any], done: bool | None) -> None:
    """What came is delivered, then an error event; it is billed as a failure, by an estimate."""
    front.upstream.stream, front.upstream.done = events, done
    await broken(front, "service_unavailable")


@pytest.mark.behaviour
async def test_a_stream_that_falls_silent(tmp_path: Path) -> None:
    """The same, once the whole time is over."""
    async with patient(tmp_path, first_token=15.0, total=4.0) as front:
        front.upstream.stream, front.upstream.done = [*BEGUN, 20.0], True
        await broken(front, "timeout")


async def broken(front: Front, code: str) -> None:
    """Asserts that what came was delivered and billed, and then the error."""
    text, error = await front.broken_stream()
    assert (text, error.code) == ("One two ", code)
    assert SECRET not in error.message
    outcome, accuracy, prompt_tokens, completion_tokens = await front.billed()
    assert (outcome, accuracy, completion_tokens) == (FAILED, ESTIMATED, 2)
    assert prompt_tokens > 31
    await until(lambda: front.upstream.open == 0)


@pytest.mark.behaviour
@pytest.mark.parametrize(
    "events",
    [
        pytest.param([{"error": {"message": "No.", "type": "invalid_request_error", "param": "n"}}], id="error"),
        pytest.param([b"data: nonsense\n\n"], id="no JSON"),
        pytest.param([b"data: [1]\n\n"], id="no object"),
        pytest.param([], id="nothing"),
    ],
)
async def test_a_stream_that_never_begins(front: Front, events: list[Any]) -> None:
    """An error instead of the first chunk is one of the whole request, with a status; it is not billed."""
    front.upstream.stream = events
    refused = await front.refusal(stream=True)
    assert refused.status_code == (400 if events and isinstance(events[0], dict) else 503)
    await until(lambda: len(front.naru.accounting.released) == 1)
    assert not front.naru.accounting.events


@pytest.mark.behaviour
@pytest.mark.parametrize("answer", ["nonsense", "[]", '{"choices": [{"message": 3}]}', '{"choices": []}'])
async def test_an_answer_that_is_none(front: Front, answer: str) -> None:
    """What is no completion is a 503, and is not billed."""
    front.upstream.answer = answer
    assert (await front.refusal()).status_code == 503
    assert not front.naru.accounting.events


@pytest.mark.behaviour
@pytest.mark.parametrize("usage", [None, {"prompt_tokens": -1, "completion_tokens": 5}, {"prompt_tokens": "31"}])
async def test_no_usage(front: Front, usage: object) -> None:
    """Without a usage that makes sense the request is billed by an estimate, which says that it is one."""
    front.upstream.stream = [*BEGUN, chunk(gained(finish_reason="stop"), usage=usage)]
    told = None
    async for part in await front.chat(stream=True, stream_options={"include_usage": True}):
        told = part.usage or told
    outcome, accuracy, prompt_tokens, completion_tokens = await front.billed()
    assert (outcome, accuracy, completion_tokens) == (COMPLETED, ESTIMATED, 2)
    assert (told.prompt_tokens, told.completion_tokens) == (prompt_tokens, completion_tokens)


async def test_fewer_choices_than_asked(front: Front) -> None:
    """An upstream that passes over `n` makes an error, and what it reports is billed all the same."""
    front.upstream.stream = [chunk(gained(content="One", finish_reason="stop")), chunk(usage=USAGE)]
    front.upstream.answer = whole({"content": "One"})
    with pytest.raises(openai.APIError, match="ended its answer early"):
        async for _ in await front.chat(stream=True, n=2):
            pass
    assert (await front.refusal(n=2)).status_code == 503
    assert await front.billed() == await front.billed(2) == (FAILED, REPORTED, 31, 17)
