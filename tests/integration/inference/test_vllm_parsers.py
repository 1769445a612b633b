"""vLLM's own parsers of several families, fed token by token with what such models write. No engine runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inference.engine import ChoiceOutput
from inference.output_merging import merge_outputs
from inference.parser_families import ParserNames, choose_parsers
from inference.vllm_compat import Vllm, load
from inference.vllm_parsers import ChoiceParser, Parsers

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
HERMES = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "%s"}}\n</tool_call>'
PARIS, ROME = ("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Rome"})
MARKS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]"]


@pytest.fixture(scope="module")
def vllm() -> Vllm:
    """VLLM's names."""
    return load()


@pytest.fixture(scope="module")
def tokenizer(default_model: Path) -> Any:
    """The default model's tokenizer, with the marks that other families have as tokens."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(default_model))
    tokenizer.add_tokens(MARKS)
    return tokenizer


class _Renderer:
    """What of vLLM's renderer the parsers need; making a real one needs an engine."""

    def __init__(self, names: ParserNames, tokenizer: Any) -> None:
        from vllm.parser import ParserManager

        self.parser = ParserManager.get_parser(
            tool_parser_name=names.tool_calls or None,
            reasoning_parser_name=names.reasoning or None,
            enable_auto_tools=bool(names.tool_calls),
            model_name="test",
            tokenizer=tokenizer,
        )

    def effective_chat_template_kwargs(self, request: Any) -> dict[str, Any]:
        return {}


def make_parsers(vllm: Vllm, tokenizer: Any, names: ParserNames) -> Parsers:
    return Parsers(vllm, _Renderer(names, tokenizer), tokenizer, None)


def request(vllm: Vllm, **body: Any) -> Any:
    fields = {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL]} | body
    return vllm.ChatCompletionRequest.model_validate(fields)


def read(parser: ChoiceParser, tokenizer: Any, text: str, finish_reason: str = "stop") -> list[ChoiceOutput]:
    """What the parser makes of a text that comes token by token."""
    token_ids: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
    outputs = []
    for number, token_id in enumerate(token_ids):
        last = number == len(token_ids) - 1
        step = ChoiceOutput(0, tokenizer.decode([token_id]), number + 1, finish_reason=finish_reason if last else "")
        told = parser.read(step, [token_id])
        if told is not None:
            outputs.append(told)
    return outputs


def calls_of(output: ChoiceOutput) -> list[tuple[str, object]]:
    return [(call.name, json.loads(call.arguments)) for call in output.tool_calls]


@pytest.mark.parametrize(
    ("parser", "text", "content", "calls"),
    [
        ("hermes", "No tool.", "No tool.", []),
        ("hermes", HERMES % "Paris", "", [PARIS]),
        ("hermes", "Sure. " + HERMES % "Paris" + HERMES % "Rome", "Sure. ", [PARIS, ROME]),
        ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris"}}', "", [PARIS]),
        ("pythonic", "[get_weather(city='Paris'), get_weather(city='Rome')]", "", [PARIS, ROME]),
        (
            "qwen3_coder",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
            "",
            [PARIS],
        ),
    ],
)
def test_calls_are_read_from_a_stream(
    vllm: Vllm, tokenizer: Any, parser: str, text: str, content: str, calls: list[tuple[str, object]]
) -> None:
    """Each call's id and name come once, first; its pieces are JSON together; held back it is the same."""
    parsers = make_parsers(vllm, tokenizer, ParserNames(parser))
    wish = request(vllm)
    streamed = read(parsers.make(wish, [1], whole=False), tokenizer, text)
    (whole,) = read(parsers.make(wish, [1], whole=True), tokenizer, text)
    told = merge_outputs(streamed)
    assert (told.text.strip(), calls_of(told)) == (content.strip(), calls)
    assert (whole.text, calls_of(whole)) == (told.text, calls)
    assert told.finish_reason == whole.finish_reason == ("tool_calls" if calls else "stop")
    pieces = [piece for output in streamed for piece in output.tool_calls]
    for index in range(len(calls)):
        ids = [piece.id for piece in pieces if piece.index == index]
        assert ids[0]
        assert not any(ids[1:])
    assert [output.completion_tokens for output in streamed] == list(range(1, len(streamed) + 1))


def test_only_one_call_where_only_one_is_wanted(vllm: Vllm, tokenizer: Any) -> None:
    """`parallel_tool_calls: false` leaves the first."""
    parsers = make_parsers(vllm, tokenizer, ParserNames("hermes"))
    wish = request(vllm, parallel_tool_calls=False)
    told = merge_outputs(read(parsers.make(wish, [1], whole=False), tokenizer, HERMES % "Paris" + HERMES % "Rome"))
    assert calls_of(told) == [PARIS]


@pytest.mark.parametrize(("reason", "ended"), [("length", "length"), ("abort", "abort"), ("stop", "tool_calls")])
def test_a_call_that_is_cut_off_says_so(vllm: Vllm, tokenizer: Any, reason: str, ended: str) -> None:
    """Only a choice that stopped by itself ends with its calls."""
    parsers = make_parsers(vllm, tokenizer, ParserNames("hermes"))
    told = merge_outputs(read(parsers.make(request(vllm), [1], whole=False), tokenizer, HERMES % "Paris", reason))
    assert told.finish_reason == ended


def test_reasoning_is_apart_and_counted(vllm: Vllm, tokenizer: Any) -> None:
    """What is thought is no content; its tokens are told at the end; hidden it leaves nothing that could tell it."""
    parsers = make_parsers(vllm, tokenizer, ParserNames("hermes", "deepseek_r1"))
    text = "<think>Paris is asked for.</think>Let me look. " + HERMES % "Paris"
    streamed = read(parsers.make(request(vllm), [1], whole=False), tokenizer, text)
    told = merge_outputs(streamed)
    assert told.reasoning == "Paris is asked for."
    assert told.text.strip() == "Let me look."
    assert calls_of(told) == [PARIS]
    thought = tokenizer.encode("Paris is asked for.", add_special_tokens=False)
    assert len(thought) <= streamed[-1].reasoning_tokens <= len(thought) + 2
    hidden = parsers.make(request(vllm, include_reasoning=False), [1], whole=True)
    hidden_output = hidden.read(ChoiceOutput(0, text, 9, finish_reason="stop", token_ids=(1,)), tokenizer.encode(text))
    assert hidden_output is not None
    assert (hidden_output.reasoning, hidden_output.token_ids) == ("", ())


def test_without_tools_nothing_is_read(vllm: Vllm, tokenizer: Any) -> None:
    """A request without tools, or that wants none called, costs no parser; one for a model that thinks always does."""
    parsers = make_parsers(vllm, tokenizer, ParserNames("hermes"))
    plain = vllm.ChatCompletionRequest.model_validate({"messages": [{"role": "user", "content": "x"}]})
    assert not parsers.wanted(plain)
    assert not parsers.wanted(request(vllm, tool_choice="none"))
    assert parsers.wanted(request(vllm))
    assert make_parsers(vllm, tokenizer, ParserNames("", "deepseek_r1")).wanted(plain)


def test_every_family_names_parsers_that_vllm_has() -> None:
    """The table speaks of nothing that the installed vLLM does not know."""
    from vllm.parser import ParserManager

    from inference.parser_families import _FAMILIES

    for pattern, names in _FAMILIES:
        if names.tool_calls:
            assert ParserManager.get_tool_parser(names.tool_calls, True, pattern)
        if names.reasoning:
            assert ParserManager.get_reasoning_parser(names.reasoning)


def test_merging_is_what_a_client_does(vllm: Vllm, tokenizer: Any) -> None:
    """Merged pieces of two calls that come in turns are two calls."""
    first = ChoiceOutput(0, "a", 1)
    parts = [
        replace(first, tool_calls=(replace_call(0, "x", "f", "{"),)),
        replace(first, tool_calls=(replace_call(1, "y", "g", "["), replace_call(0, arguments="}"))),
        replace(first, tool_calls=(replace_call(1, arguments="]"),)),
    ]
    assert [(call.id, call.name, call.arguments) for call in merge_outputs(parts).tool_calls] == [
        ("x", "f", "{}"),
        ("y", "g", "[]"),
    ]


def replace_call(index: int, call_id: str = "", name: str = "", arguments: str = "") -> Any:
    from inference.engine import ToolCallDelta

    return ToolCallDelta(index, call_id, name, arguments)


@pytest.mark.parametrize(
    ("model", "tool_calls", "reasoning", "chosen"),
    [
        ("/models/smollm2-135m-instruct", "", "", ParserNames("hermes")),
        ("Qwen/Qwen3-8B", "", "", ParserNames("hermes", "qwen3")),
        ("Qwen/Qwen3-4B-Instruct-2507", "", "", ParserNames("hermes")),
        ("meta-llama/Llama-3.1-8B-Instruct", "", "", ParserNames("llama3_json")),
        ("deepseek-ai/DeepSeek-R1", "", "", ParserNames("deepseek_v3", "deepseek_r1")),
        ("nobody/knows", "", "", ParserNames()),
        ("nobody/knows", "xlam", "", ParserNames("xlam")),
        ("Qwen/Qwen3-8B", "none", "none", ParserNames()),
    ],
)
def test_parsers_are_chosen_by_name(model: str, tool_calls: str, reasoning: str, chosen: ParserNames) -> None:
    """The operator's word first, then the model's family."""
    assert choose_parsers(model, tool_calls, reasoning) == chosen
