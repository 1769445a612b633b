"""The whole way of an answer without the services between: engine, wire, and the edge's rendering of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from edge.convert import event_from_proto
from edge.generation import Delta
from edge.openai.answers import AnswerOptions
from edge.openai.chat import ChatAnswer, ChatStream
from edge.openai.completions import CompletionAnswer, CompletionStream
from edge.openai.requests import parse_chat, parse_completion
from inference.convert import frame_to_proto
from inference.engine import ChoiceOutput, Engine, EngineRequest, InputKind
from naru.usage import Usage

MODEL = "smollm2-135m-instruct"


async def answer(engine: Engine, **body: Any) -> dict[str, Any]:
    """The JSON that a body without `stream` is answered with; of a completion where it has a `prompt`."""
    deltas, options = await _deltas(engine, body)
    collected = (CompletionAnswer if "prompt" in body else ChatAnswer)(options)
    collected.add(deltas)
    rendered: dict[str, Any] = json.loads(collected.render(_usage(deltas, options)))
    return rendered


async def chunks(engine: Engine, heard: Callable[[], None] = lambda: None, **body: Any) -> list[dict[str, Any]]:
    """The chunks that a body is answered with as a stream; `heard` is called for each delta, when it comes."""
    deltas, options = await _deltas(engine, body | {"stream": True}, heard)
    stream = (CompletionStream if "prompt" in body else ChatStream)(options)
    data = (
        stream.start() + b"".join(stream.render([delta]) for delta in deltas) + stream.finish(_usage(deltas, options))
    )
    return [json.loads(event.removeprefix("data: ")) for event in data.decode().split("\n\n")[:-1]]


def collected(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of the only choice of a chat stream: its message, and why it ended."""
    message: dict[str, Any] = {"content": ""}
    calls: dict[int, dict[str, Any]] = {}
    reason = None
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            if delta.get("reasoning"):
                message["reasoning"] = message.get("reasoning", "") + delta["reasoning"]
            for piece in delta.get("tool_calls", ()):
                call = calls.setdefault(piece["index"], {"arguments": ""})
                assert not (set(call) & set(piece) - {"arguments"}), "an id comes once"
                call |= {name: piece[name] for name in ("id", "type") if name in piece}
                if "name" in piece["function"]:
                    assert "name" not in call, "a name comes once"
                    call["name"] = piece["function"]["name"]
                call["arguments"] += piece["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return {"message": message, "calls": [calls[index] for index in sorted(calls)], "finish_reason": reason}


async def _deltas(
    engine: Engine, body: dict[str, Any], heard: Callable[[], None] = lambda: None
) -> tuple[list[Delta], AnswerOptions]:
    body = {"model": MODEL} | body
    sent = json.dumps(body).encode()
    parsed = (parse_completion if "prompt" in body else parse_chat)(sent)
    kind = InputKind.OPENAI_COMPLETION if "prompt" in body else InputKind.OPENAI_CHAT
    prepared = await engine.prepare(EngineRequest(kind, MODEL, stream=parsed.stream, openai_json=parsed.body))
    deltas: list[Delta] = []
    failures: list[Exception] = []
    ended = asyncio.Event()
    open_choices = set(range(prepared.choices))

    def hear(output: ChoiceOutput) -> None:
        event = event_from_proto(frame_to_proto(1, output))
        assert isinstance(event, Delta)
        deltas.append(event)
        heard()
        if output.error is not None:
            failures.append(output.error)
            open_choices.clear()
        elif output.finish_reason:
            open_choices.discard(output.choice_index)
        if not open_choices:
            ended.set()

    handle = await engine.submit(prepared, hear)
    try:
        async with asyncio.timeout(180):
            await ended.wait()
    finally:
        if not ended.is_set():
            await handle.cancel()
    if failures:
        raise failures[0]
    options = AnswerOptions(
        answer_id="answer",
        created=1,
        model=MODEL,
        choices=prepared.choices,
        prompt_tokens=prepared.prompt_tokens,
        include_usage=parsed.include_usage,
        continuous_usage=parsed.continuous_usage,
        token_ids=parsed.token_ids,
        tokens_as_ids=parsed.tokens_as_ids,
    )
    return deltas, options


def _usage(deltas: list[Delta], options: AnswerOptions) -> Usage:
    generated = {delta.choice_index: delta.completion_tokens for delta in deltas}
    return Usage(prompt_tokens=options.prompt_tokens, completion_tokens=sum(generated.values()))
