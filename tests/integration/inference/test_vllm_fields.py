"""What every field of a chat completion or completion does, with vLLM itself: engine, wire and the edge's rendering."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from inference.vllm_engine import VllmEngine
from naru.errors import NaruError, Reason
from tests.support.answering import answer, chunks, collected

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": CITY}}
CLOCK = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}
CHAT: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 12}
TEXT: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 3}
CALL: dict[str, Any] = {"messages": WEATHER, "temperature": 0, "max_tokens": 60, "tools": [CLOCK, TOOL]}
PROMPT_IDS = [504, 3575, 282, 4649, 314]
SHOWN = [
    message
    for city in ("Rome", "Oslo", "Cairo", "Lima", "Tokyo")
    for message in (
        {"role": "user", "content": f"What is the weather in {city}?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": city,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": json.dumps({"city": city})},
                }
            ],
        },
    )
]
"""Calls that a model can imitate."""

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="session"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

Check = Callable[[dict[str, Any]], bool]


def said(text: str) -> Check:
    """The only choice says exactly this."""
    return lambda got: text_of(got) == text


def text_of(got: dict[str, Any]) -> str:
    (choice,) = got["choices"]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def holds(check: Callable[[dict[str, Any]], object]) -> Check:
    """The only choice is as `check` wants it."""
    return lambda got: bool(check(got["choices"][0]))


WORKING: list[tuple[dict[str, Any], Check]] = [
    # What a prompt can be, and what is told of it.
    (TEXT | {"echo": True}, said("The capital of France is Paris.\n")),
    (TEXT | {"prompt": PROMPT_IDS, "echo": True}, said("The capital of France is Paris.\n")),
    (TEXT | {"echo": True, "max_tokens": 0}, said("The capital of France is")),
    (TEXT | {"echo": True, "return_token_ids": True}, said("The capital of France is Paris.\n")),
    (
        TEXT | {"echo": True, "logprobs": 1},
        holds(
            lambda choice: (
                len(choice["logprobs"]["tokens"]) == 8
                and choice["logprobs"]["token_logprobs"][0] is None
                and choice["logprobs"]["top_logprobs"][0] is None
                and set(choice["logprobs"]["top_logprobs"][1]) == {" capital", "-"}
                and choice["logprobs"]["text_offset"] == [0, 3, 11, 14, 21, 24, 30, 31]
            )
        ),
    ),
    (TEXT | {"return_token_ids": True}, holds(lambda choice: choice["prompt_token_ids"] == PROMPT_IDS)),
    (TEXT | {"return_token_ids": True}, holds(lambda choice: choice["token_ids"] == [7042, 30, 198])),
    (CHAT | {"return_token_ids": True}, lambda got: len(got["prompt_token_ids"]) == got["usage"]["prompt_tokens"]),
    (
        TEXT | {"prompt_logprobs": 1},
        holds(
            lambda choice: (
                choice["prompt_logprobs"][0] is None
                and choice["prompt_logprobs"][1]["29"]["rank"] == 1
                and choice["prompt_logprobs"][1]["3575"]["decoded_token"] == " capital"
            )
        ),
    ),
    (CHAT | {"prompt_logprobs": 0}, lambda got: len(got["prompt_logprobs"]) == 37),
    (
        TEXT | {"truncate_prompt_tokens": 2, "return_token_ids": True},
        holds(lambda choice: choice["prompt_token_ids"] == PROMPT_IDS[-2:]),
    ),
    (
        TEXT | {"truncate_prompt_tokens": 2, "truncation_side": "right", "return_token_ids": True},
        holds(lambda choice: choice["prompt_token_ids"] == PROMPT_IDS[:2]),
    ),
    (
        TEXT | {"prompt": "hello " * 1500, "truncate_prompt_tokens": -1},
        lambda got: got["usage"]["total_tokens"] == 1024,
    ),
    # How likely tokens were.
    (TEXT | {"logprobs": 0}, holds(lambda choice: list(choice["logprobs"]["top_logprobs"][0]) == [" Paris"])),
    (
        TEXT | {"logprobs": 1, "seed": 3, "temperature": 2.0, "max_tokens": 10},
        holds(
            lambda choice: all(
                token in top
                for token, top in zip(choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True)
            )
        ),
    ),
    (
        CHAT | {"logprobs": True, "top_logprobs": 0},
        holds(lambda choice: choice["logprobs"]["content"][0]["top_logprobs"] == []),
    ),
    (
        CHAT | {"logprobs": True, "logprob_token_ids": [1, 2], "max_tokens": 1},
        holds(lambda choice: len(choice["logprobs"]["content"][0]["top_logprobs"]) == 3),
    ),
    # What may be said.
    (CHAT | {"structured_outputs": {"choice": ["Rome", "Paris"]}}, said("Paris")),
    (CHAT | {"structured_outputs": {"regex": "[0-9]{3}"}}, lambda got: text_of(got).isdigit()),
    (CHAT | {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}}, lambda got: text_of(got) in ("yes", "no")),
    (CHAT | {"structured_outputs": {"json": CITY}, "max_tokens": 40}, lambda got: "city" in json.loads(text_of(got))),
    (CHAT | {"structured_outputs": {"json_object": True}}, lambda got: text_of(got).startswith("{")),
    (
        CHAT
        | {
            "structured_outputs": {
                "structural_tag": json.dumps(
                    {"type": "structural_tag", "format": {"type": "const_string", "value": "hello"}}
                )
            }
        },
        said("hello"),
    ),
    (CHAT | {"response_format": {"type": "json_object"}}, lambda got: text_of(got).startswith("{")),
    (CHAT | {"response_format": {"type": "text"}}, said("The capital of France is Paris.")),
    (CHAT | {"min_tokens": 12, "stop": ["Paris"]}, lambda got: got["usage"]["completion_tokens"] == 12),
    (CHAT | {"ignore_eos": True}, lambda got: got["usage"]["completion_tokens"] == 12),
    (CHAT | {"logit_bias": {"7042": 100}, "max_tokens": 2}, said(" Paris Paris")),
    (CHAT | {"bad_words": ["Paris"]}, lambda got: "Paris" not in text_of(got)),
    (CHAT | {"allowed_token_ids": [7042], "max_tokens": 2}, said(" Paris Paris")),
    (CHAT | {"stop_token_ids": [7042]}, holds(lambda choice: choice["stop_reason"] == 7042)),
    (CHAT | {"stop": ["France"], "include_stop_str_in_output": True}, said("The capital of France")),
    (
        TEXT | {"skip_special_tokens": False, "prompt": [1, 2], "echo": True, "max_tokens": 0},
        said("<|im_start|><|im_end|>"),
    ),
    (CHAT | {"repetition_detection": {"max_pattern_size": 2, "min_pattern_size": 1, "min_count": 3}}, lambda got: True),
    # How the conversation is told to the model.
    (
        CHAT
        | {
            "messages": [*QUESTION, {"role": "assistant", "content": "The capital of France is"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        },
        said(" Paris."),
    ),
    (
        CHAT
        | {
            "messages": [*QUESTION, {"role": "assistant", "content": "The capital of France is"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
            "echo": True,
        },
        said("The capital of France is Paris."),
    ),
    (CHAT | {"add_generation_prompt": False}, lambda got: got["usage"]["prompt_tokens"] == 33),
    (CHAT | {"chat_template_kwargs": {"enable_thinking": False}}, said("The capital of France is Paris.")),
    (CHAT | {"reasoning_effort": "low"}, said("The capital of France is Paris.")),
    (CHAT | {"max_tokens": None}, said("The capital of France is Paris.")),
    # What changes nothing in an answer.
    (
        CHAT
        | {
            "store": False,
            "metadata": {"a": "b"},
            "user": "u",
            "safety_identifier": "s",
            "prompt_cache_key": "k",
            "service_tier": "auto",
            "prediction": {"type": "content", "content": "x"},
            "modalities": ["text"],
            "verbosity": "medium",
            "function_call": "none",
        },
        said("The capital of France is Paris."),
    ),
    # Tools.
    (CALL | {"tool_choice": "none", "max_tokens": 3}, holds(lambda choice: "tool_calls" not in choice["message"])),
    # The caller named the tool itself, so that OpenAI and vLLM both say "stop".
    (CALL | {"tool_choice": NAMED}, holds(lambda choice: choice["finish_reason"] == "stop")),
]


def fits(check: Check, got: dict[str, Any] | BaseException) -> bool:
    try:
        return not isinstance(got, BaseException) and check(got)
    except (LookupError, TypeError, ValueError):
        return False


async def test_fields_do_what_they_say(engine: VllmEngine) -> None:
    """Each answer shows its field's effect. All are asked for at once: the engine is as quick with all as with a few."""
    answers = await asyncio.gather(*(answer(engine, **body) for body, _ in WORKING), return_exceptions=True)
    wrong = [(body, got) for (body, check), got in zip(WORKING, answers, strict=True) if not fits(check, got)]
    assert wrong == []


REFUSED: list[tuple[dict[str, Any], str]] = [
    (TEXT | {"max_tokens": 0}, "max_tokens"),
    (TEXT | {"suffix": "!"}, "suffix"),
    (TEXT | {"best_of": 2}, "best_of"),
    (TEXT | {"prompt_logprobs": 99}, "prompt_logprobs"),
    (TEXT | {"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    (TEXT | {"prompt": PROMPT_IDS * 100, "n": 64, "prompt_logprobs": 20}, "prompt_logprobs"),
    (TEXT | {"prompt": PROMPT_IDS * 100, "n": 64, "echo": True, "logprobs": 20}, "logprobs"),
    (TEXT | {"logprobs": 21}, "logprobs"),
    (CHAT | {"vllm_xargs": {"kv_transfer_params": "x"}}, "vllm_xargs.kv_transfer_params"),
    (CHAT | {"allowed_token_ids": list(range(1025))}, "allowed_token_ids"),
    (CHAT | {"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias"),
    (CHAT | {"stop_token_ids": list(range(129)), "min_tokens": 1}, "stop_token_ids"),
    (CHAT | {"top_logprobs": 2}, "top_logprobs"),
    (CHAT | {"use_beam_search": True}, "use_beam_search"),
    (CHAT | {"length_penalty": 2.0}, "length_penalty"),
    (CHAT | {"bad_words": [""]}, "bad_words"),
    (CHAT | {"bad_words": ["Paris " * 600, "Rome " * 600]}, "bad_words"),
    (CHAT | {"structured_outputs": {"regex": "["}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {"grammar": "root ::= nothing"}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {"choice": []}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {"regex": "a", "nope": 1}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {"json": "{"}}, "structured_outputs"),
    (CHAT | {"structured_outputs": {"json": {"const": 2**63}}}, "structured_outputs"),
    (CHAT | {"response_format": {"type": "json_schema"}}, "response_format"),
    (
        CHAT | {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format.json_schema.schema",
    ),
    (CHAT | {"reasoning_effort": "bogus"}, "reasoning_effort"),
    (CHAT | {"thinking_token_budget": 3}, "thinking_token_budget"),
    (CHAT | {"documents": [{"title": "a", "text": "b"}]}, "documents"),
    (CHAT | {"continue_final_message": True}, "continue_final_message"),
    (CHAT | {"store": True}, "store"),
    (CHAT | {"metadata": {"a": 1}}, "metadata"),
    (CHAT | {"user": 3}, "user"),
    (CHAT | {"service_tier": "flex"}, "service_tier"),
    (CHAT | {"verbosity": "low"}, "verbosity"),
    (CHAT | {"web_search_options": {}}, "web_search_options"),
    (CHAT | {"moderation": {"model": "omni-moderation-latest"}}, "moderation"),
    (CHAT | {"audio": {"voice": "x", "format": "wav"}}, "audio"),
    (CHAT | {"modalities": ["audio"]}, "modalities"),
    (CHAT | {"functions": [{"name": "f"}]}, "functions"),
    (CHAT | {"function_call": "auto"}, "function_call"),
    (CHAT | {"tools": []}, "tools"),
    (CHAT | {"tools": "x"}, "tools"),
    (CHAT | {"tool_choice": "auto"}, "tool_choice"),
    (CALL | {"tool_choice": "sometimes"}, "tool_choice"),
    (CALL | {"tool_choice": {"type": "function", "function": {"name": "nope"}}}, "tool_choice"),
    (CALL | {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    (
        CALL
        | {
            "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {"type": "nope"}}}],
            "tool_choice": "required",
        },
        "tools",
    ),
]


@pytest.mark.parametrize(("body", "field"), REFUSED)
async def test_a_field_that_cannot_be_is_refused_by_name(engine: VllmEngine, body: dict[str, Any], field: str) -> None:
    """It is a 400 that names the field, before anything is generated."""
    before = engine.counters()
    with pytest.raises(NaruError) as caught:
        await answer(engine, **body)
    assert caught.value.reason in (Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED)
    assert caught.value.metadata["field"] == field
    assert engine.counters() == before


STREAMED: list[dict[str, Any]] = [
    CHAT,
    CHAT | {"structured_outputs": {"json": CITY}, "max_tokens": 40},
    CHAT
    | {
        "messages": [*QUESTION, {"role": "assistant", "content": "It is"}],
        "add_generation_prompt": False,
        "echo": True,
    },
    CALL | {"tool_choice": "required"},
    CALL | {"tool_choice": "required", "parallel_tool_calls": False},
    CALL | {"tool_choice": NAMED},
    CALL | {"tool_choice": "auto"},
    CALL | {"tool_choice": "none"},
    CALL | {"tool_choice": "required", "max_tokens": 20},
    CALL | {"messages": SHOWN + WEATHER, "tools": [TOOL]},
]


async def test_streams_say_what_whole_answers_say(engine: VllmEngine) -> None:
    """Content, calls and reason of a stream's chunks, put together, are those of the same request unstreamed."""
    wholes, streams = await asyncio.gather(
        asyncio.gather(*(answer(engine, **body) for body in STREAMED)),
        asyncio.gather(*(chunks(engine, **body) for body in STREAMED)),
    )
    for body, whole, stream in zip(STREAMED, wholes, streams, strict=True):
        (choice,) = whole["choices"]
        message = choice["message"]
        calls = [call["function"] for call in message.get("tool_calls", ())]
        streamed = collected(stream)
        told = [{"name": call["name"], "arguments": call["arguments"]} for call in streamed["calls"]]
        assert (streamed["message"]["content"], told) == (message["content"] or "", calls), body
        assert streamed["finish_reason"] == choice["finish_reason"], body


async def test_a_forced_call_keeps_to_its_schema(engine: VllmEngine) -> None:
    """The tool that may be called is called, with arguments of its schema and an id of its own."""
    body = CALL | {"tools": [TOOL]}
    for got in await asyncio.gather(*(answer(engine, **body, tool_choice=choice) for choice in ("required", NAMED))):
        message = got["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert (message["content"], call["type"], call["function"]["name"]) == (None, "function", "get_weather")
        assert call["id"]
        arguments = json.loads(call["function"]["arguments"])
        assert list(arguments) == ["city"]
        assert 0 < len(arguments["city"]) <= 20


async def test_every_choice_calls_for_itself(engine: VllmEngine) -> None:
    """With n choices each has its own call and id."""
    choices = (await answer(engine, **CALL, tool_choice="required", n=3))["choices"]
    ids = {choice["message"]["tool_calls"][0]["id"] for choice in choices}
    assert len(ids) == 3
    assert {choice["finish_reason"] for choice in choices} == {"tool_calls"}


async def test_a_model_may_call_by_itself(engine: VllmEngine) -> None:
    """Having seen it done, even this small model calls the tool when it is left to choose."""
    choice = (await answer(engine, **CALL | {"messages": SHOWN + WEATHER, "tools": [TOOL]}))["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    assert choice["finish_reason"] == "tool_calls"


async def test_a_schema_keeps_order_and_large_integers(engine: VllmEngine) -> None:
    """Keys come in the schema's order; integers past what a float holds come digit by digit."""
    schema = {
        "type": "object",
        "properties": {"z": {"const": 9_007_199_254_740_993}, "a": {"enum": [-(2**62) - 1]}},
        "required": ["z", "a"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    said_text = text_of(await answer(engine, **CHAT | {"response_format": shape, "max_tokens": 80}))
    assert list(json.loads(said_text).items()) == [("z", 9_007_199_254_740_993), ("a", -(2**62) - 1)]


async def test_compiling_a_schema_delays_nobody_on_the_loop(engine: VllmEngine) -> None:
    """While a large schema is compiled the event loop stands still for much less than that takes."""
    properties = {f"field_{i}": {"enum": [f"value {i} {j}" for j in range(40)]} for i in range(60)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    longest, running = 0.0, True

    async def watch() -> None:
        nonlocal longest
        while running:
            # What this process did meanwhile, whichever thread kept the interpreter: time in which it did not run is no delay.
            before = time.process_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.process_time() - before)

    watching, began = asyncio.create_task(watch()), time.monotonic()
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    await answer(engine, **CHAT | {"response_format": shape, "max_tokens": 1})
    took, running = time.monotonic() - began, False
    await watching
    print(f"the loop stood still for {longest * 1e3:.0f} ms at most, of {took * 1e3:.0f} ms")
    assert longest < took / 2
