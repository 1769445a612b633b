"""The fields that the APIs know, each with values that are right and values that nearly are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONG = "word " * 2_000
_TURN = {"role": "user", "content": "Hello"}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
_CALLED = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "strict": True, "parameters": _SCHEMA}}
_IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/a.png"}}
_NUMBERS = (-1, 2.5, 1e308, 10**400, "1", True, [1])
_COUNTS = (0, -1, 2**31 - 1, 2**31, 2**63, 2**64, 10**400, 1.0, "8", True)
_FLAGS = (0, "true", [])


@dataclass(frozen=True, slots=True)
class Field:
    """Values of a field. A body without one that is needed is wrong."""

    right: tuple[Any, ...]
    near: tuple[Any, ...] = ()
    needed: bool = False


def _flag() -> Field:
    return Field((True, False, None), _FLAGS)


def _number(*right: float) -> Field:
    return Field((*right, None), _NUMBERS)


def _count(*right: int) -> Field:
    return Field((*right, None), _COUNTS)


_CONVERSATIONS = Field(
    (
        [_TURN],
        [{"role": "system", "content": "Be brief."}, _TURN],
        [{"role": "developer", "content": "Be brief.", "name": "me"}, _TURN],
        [{"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there"}]}],
        [_TURN, {"role": "assistant", "content": None, "tool_calls": [_CALLED]}],
        [
            _TURN,
            {"role": "assistant", "content": None, "tool_calls": [_CALLED]},
            {"role": "tool", "tool_call_id": "c1", "content": "it is"},
        ],
        [_TURN, {"role": "assistant", "content": "I do", "refusal": None, "reasoning": "why"}, _TURN],
        [{"role": "user", "content": "\u0000\u202e🙂 나루"}],
    ),
    (
        [],
        [{}],
        {},
        "Hello",
        [_TURN, None],
        [{"role": "wizard", "content": "x"}],
        [{"role": "user"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": {}}],
        [{"role": "user", "content": [_IMAGE]}],
        [{"role": "user", "content": [{"type": "text"}]}],
        [{"role": "user", "content": [{"type": "text", "text": None}]}],
        [{"role": "user", "content": ["text"]}],
        [{"role": "user", "content": "half \ud800"}],
        [{"role": "user", "content": LONG}],
        [{"role": "tool", "content": "it is"}],
        [{"role": "assistant", "content": None, "tool_calls": [{}]}],
        [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [_CALLED | {"function": {"name": "f", "arguments": "{"}}],
            }
        ],
        [_TURN] * 300,
    ),
    needed=True,
)
_SHAPES = Field(
    (
        None,
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}},
    ),
    (
        {},
        "json",
        {"type": "json"},
        {"type": "json_schema"},
        {"type": "json_schema", "json_schema": {"name": "x"}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": 2**70}}},
    ),
)
_STRUCTURES = Field(
    (None, {"regex": "[0-9]{2}"}, {"choice": ["a", "b"]}, {"grammar": 'root ::= "a"'}, {"json": _SCHEMA}),
    (
        {},
        {"regex": "["},
        {"regex": ""},
        {"choice": []},
        {"regex": "a", "choice": ["a"]},
        {"grammar": "root ::="},
        [],
        "a",
    ),
)
_SAMPLING: dict[str, Field] = {
    "stream": _flag(),
    "stream_options": Field(
        (None, {"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}),
        ({}, [], {"include_usage": 1}),
    ),
    "usage": Field(({"include": True}, {"include": False}, None), (True, [], {"include": "yes"})),
    "n": _count(1, 2, 3),
    "max_tokens": _count(1, 2, 20),
    "min_tokens": _count(0, 1, 2),
    "temperature": _number(0, 0.7, 2),
    "top_p": _number(0.1, 1),
    "top_k": _count(-1, 0, 1, 40),
    "min_p": _number(0, 0.5),
    "presence_penalty": _number(-2, 0, 2),
    "frequency_penalty": _number(-2, 0, 2),
    "repetition_penalty": _number(0.5, 1, 1.3),
    "seed": _count(0, 7, -7),
    "stop": Field((None, "ferry", ["ferry", "river"], [" "]), ("", [], [""], ["a"] * 5, [1], {}, LONG)),
    "stop_token_ids": Field((None, [1], [1, 2]), ([-1], ["1"], [2**40], list(range(2_000)), 1)),
    "logit_bias": Field(
        (None, {"1": 5}, {"1": -100}), ({"x": 1}, {"-1": 1}, {"1": "a"}, {"1": 1e300}, [], {"99999999999": 1})
    ),
    "bad_words": Field((None, ["ferry"]), ([""], "ferry", [1])),
    "allowed_token_ids": Field((None, [1, 2]), ([], [-1], [2**40], "1")),
    "ignore_eos": _flag(),
    "skip_special_tokens": _flag(),
    "include_stop_str_in_output": _flag(),
    "return_token_ids": _flag(),
    "return_tokens_as_token_ids": _flag(),
    "truncate_prompt_tokens": _count(-1, 1, 5),
    "response_format": _SHAPES,
    "structured_outputs": _STRUCTURES,
    "user": Field(("me", None), (1, {})),
    "priority": _count(0, -5, 5),
    "request_id": Field(("mine", None), (1, "\n", LONG)),
    "cache_salt": Field(("salt", None), ("", 1, LONG)),
    "vllm_xargs": Field((None, {"a": 1}), ({"kv_transfer_params": "x"}, [], "a")),
    "kv_transfer_params": Field((None,), ({"a": 1}, [])),
    "best_of": _count(1),
    "use_beam_search": Field((False, None), (True, 1)),
    "nobody_knows_it": Field((1, {"a": []})),
}
_TOOLS: dict[str, Field] = {
    "tools": Field((None, [_TOOL]), ([], [{}], "x", [_TOOL] * 200, [{"type": "custom", "custom": {"name": "x"}}], {})),
    "tool_choice": Field(
        (None, "none", "auto", "required", {"type": "function", "function": {"name": "f"}}),
        ("sometimes", {}, {"type": "function"}, {"type": "function", "function": {"name": "none"}}, 1),
    ),
    "parallel_tool_calls": _flag(),
}
_CHAT = (
    {"messages": _CONVERSATIONS}
    | _SAMPLING
    | _TOOLS
    | {
        "max_completion_tokens": _count(1, 2, 20),
        "logprobs": _flag(),
        "top_logprobs": _count(0, 2, 20),
        "reasoning_effort": Field((None, "low", "high"), ("huge", 1)),
        "store": Field((False, None), (True, "yes")),
        "metadata": Field((None, {"a": "b"}), ({"a": 1}, [], {str(i): "x" for i in range(20)})),
        "service_tier": Field((None, "auto", "default"), ("flex", 1)),
        "chat_template_kwargs": Field((None, {"a": 1}), ([], "a", {"messages": []})),
        "continue_final_message": _flag(),
        "add_generation_prompt": _flag(),
    }
)
_COMPLETION = _SAMPLING | {
    "prompt": Field(
        ("Once upon a time", ["a", "b"], [1, 2, 3], [[1, 2], [3]], "\u0000🙂"),
        (
            "",
            [],
            [[]],
            [""],
            [1, "a"],
            [[1], "a"],
            [-1],
            [2**40],
            [2**70],
            [1.5],
            [True],
            None,
            {},
            LONG,
            ["a"] * 1_100,
            "\udfff",
        ),
        needed=True,
    ),
    "logprobs": _count(0, 2, 20),
    "prompt_logprobs": _count(0, 2),
    "echo": _flag(),
    "suffix": Field((None, ""), ("!", 1)),
    "add_special_tokens": _flag(),
}
_BLOCKS: dict[str, Field] = {
    "messages": Field(
        (
            [_TURN],
            [{"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}]}],
            [
                _TURN,
                {"role": "assistant", "content": [{"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "it is"}]},
            ],
            [_TURN, {"role": "assistant", "content": [{"type": "thinking", "thinking": "so", "signature": ""}]}, _TURN],
            [_TURN, {"role": "assistant", "content": "I"}],
        ),
        (
            [],
            "Hello",
            [{"role": "system", "content": "x"}],
            [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:1/"}}]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "tool_result"}]}],
            [{"role": "assistant", "content": [{"type": "tool_use", "input": []}]}],
            [{"role": "user", "content": [{"type": "nonsense"}]}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": "half \ud800"}],
            [{"role": "user", "content": LONG}],
        ),
        needed=True,
    ),
    "system": Field((None, "Be brief.", [{"type": "text", "text": "Be brief."}]), (1, {}, [{}], [{"type": "image"}])),
    "tools": Field(
        (None, [{"name": "f", "input_schema": _SCHEMA}]),
        (
            [],
            [{}],
            [{"name": "f"}],
            [{"type": "web_search_20250305", "name": "web_search"}],
            [{"name": "f", "input_schema": []}],
        ),
    ),
    "tool_choice": Field(
        (None, {"type": "auto"}, {"type": "none"}, {"type": "any", "disable_parallel_tool_use": True}),
        ({}, "auto", {"type": "tool"}, {"type": "tool", "name": "none"}, {"type": "sometimes"}),
    ),
    "thinking": Field(
        (None, {"type": "disabled"}, {"type": "enabled", "budget_tokens": 1024}, {"type": "adaptive"}),
        ({}, True, {"type": "deep"}),
    ),
    "output_config": Field((None, {"effort": "low"}), ({"effort": "huge"}, [], {"format": {"type": "json_schema"}})),
}
_MESSAGE = _BLOCKS | {
    "max_tokens": Field((1, 2, 20), _COUNTS, needed=True),
    "stream": _flag(),
    "stop_sequences": Field((None, ["ferry"], []), ([""], ["a"] * 5, "a", [1])),
    "temperature": _number(0, 0.7, 1),
    "top_p": _number(0.1, 1),
    "top_k": _count(1, 40),
    "metadata": Field((None, {"user_id": "me"}), ({"user_id": 1}, [], "me")),
    "service_tier": Field((None, "auto", "standard_only"), ("flex", 1)),
    "container": Field((None,), ("c", {})),
    "nobody_knows_it": Field((), (1,)),
}
_RESPONSE: dict[str, Field] = {
    "input": Field(
        (
            "Hello",
            [{"role": "user", "content": "Hello"}],
            [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]}],
            [
                _TURN,
                {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c1", "output": "it is"},
            ],
            [
                {"type": "reasoning", "id": "r1", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]},
                _TURN,
            ],
        ),
        (
            "",
            [],
            {},
            [{}],
            [{"type": "item_reference", "id": "x"}],
            [
                {
                    "type": "message",
                    "role": "user",
                    "content": [{"type": "input_image", "image_url": "http://127.0.0.1:1/"}],
                }
            ],
            [{"type": "message", "role": "user", "content": [{"type": "input_text"}]}],
            [{"type": "function_call_output", "output": "it is"}],
            "half \udc00",
            LONG,
        ),
        needed=True,
    ),
    "instructions": Field((None, "Be brief."), (1, [])),
    "max_output_tokens": Field((20, 2, 1, None), _COUNTS),
    "stream": _flag(),
    "temperature": _number(0, 0.7, 2),
    "top_p": _number(0.1, 1),
    "tools": Field(
        (None, [{"type": "function", "name": "f", "parameters": _SCHEMA}]), ([], [{}], [{"type": "web_search"}], "x")
    ),
    "tool_choice": Field((None, "none", "auto", {"type": "function", "name": "f"}), ("sometimes", {}, {"type": "mcp"})),
    "parallel_tool_calls": _flag(),
    "text": Field(
        (None, {"format": {"type": "text"}}, {"format": {"type": "json_schema", "name": "x", "schema": _SCHEMA}}),
        ({"format": {}}, {"format": {"type": "json_schema"}}, {"verbosity": "low"}, []),
    ),
    "reasoning": Field((None, {"effort": "low"}), ({"effort": "huge"}, [], {"summary": 1})),
    "metadata": Field((None, {"a": "b"}), ({"a": 1}, [])),
    "store": Field((True, False, None), _FLAGS),
    "include": Field((None, []), (["message.output_text.logprobs"], [1], "x")),
    "truncation": Field((None, "disabled"), ("auto", 1)),
    "previous_response_id": Field((None,), ("r1", 1)),
    "background": Field((None, False), (True, "yes")),
    "nobody_knows_it": Field((), (1,)),
}
_PAIRED = {
    "truncate_prompt_tokens": _count(-1, 1, 5),
    "usage": _SAMPLING["usage"],
    "instruction": Field((None,), ("x", 1)),
}
_EMBEDDING: dict[str, Field] = {
    "input": Field(
        ("text", ["a", "b"], [1, 2, 3], [[1, 2], [3]]),
        ("", [], [""], [[]], [1, "a"], [-1], [2**33], [2**70], None, {}, ["a"] * 2_049, [None], "half \ud800"),
        needed=True,
    ),
    "encoding_format": Field((None, "float", "base64"), ("bytes", 1)),
    "dimensions": _count(2),
    "embed_dtype": Field((None, "float32"), ("int8", 1)),
    "endianness": Field((None, "little", "native"), ("big", 1)),
    "user": Field((None, "me"), (1,)),
    "messages": Field((), ([_TURN], [])),
    "truncate_prompt_tokens": _count(-1, 1, 5),
    "add_special_tokens": _flag(),
    "usage": _SAMPLING["usage"],
}
_RERANK: dict[str, Field] = _PAIRED | {
    "query": Field(("river",), ("", ["a"], 1, None, {}), needed=True),
    "documents": Field(
        (["bread", "ferry"], ["bread", {"text": "ferry"}], "bread"),
        ([], [""], [{}], [{"text": 1}], {}, None, ["a"] * 2_048, [_IMAGE]),
        needed=True,
    ),
    "top_n": _count(0, 1, 2, 100),
    "return_documents": _flag(),
    "max_tokens_per_doc": Field((None, 0), (5, "x")),
}
_SCORE: dict[str, Field] = _PAIRED | {
    "queries": Field(("river", ["river"]), ("", [], ["a"] * 3, 1, None), needed=True),
    "documents": Field((["bread", "ferry"], "bread"), ([], [""], [1], ["a"] * 2_048, None), needed=True),
    "items": Field((), (["a"], 1)),
    "text_1": Field((), ("a", [], 1)),
    "text_2": Field((), ("a", [], 1)),
    "data_1": Field((), ("a", [], 1)),
}
_TOKENIZED: dict[str, Field] = {
    "prompt": Field(("Hello there",), ("", 1, [], [1], LONG)),
    "messages": Field((_CONVERSATIONS.right[0],), _CONVERSATIONS.near),
    "return_token_strs": _flag(),
    "add_generation_prompt": _flag(),
    "add_special_tokens": _flag(),
    "continue_final_message": _flag(),
    "chat_template": Field((None,), ("{{ x }}", 1)),
    "chat_template_kwargs": Field((None, {"a": 1}), ([], "a")),
    "tools": _TOOLS["tools"],
}
GENERATING: Mapping[str, Mapping[str, Field]] = {
    "/v1/chat/completions": _CHAT,
    "/v1/completions": _COMPLETION,
    "/v1/messages": _MESSAGE,
    "/v1/messages/count_tokens": _BLOCKS,
    "/v1/responses": _RESPONSE,
    "/tokenize": _TOKENIZED,
    "/detokenize": {"tokens": Field(([1, 2], []), ([-1], [2**32], [2**70], ["1"], [1.5], [99], 1, None), needed=True)},
}
"""What a model that generates is asked, by path."""
POOLING: Mapping[str, Mapping[str, Field]] = {"/v1/embeddings": _EMBEDDING, "/v1/rerank": _RERANK, "/v1/score": _SCORE}
"""What an embedding model is asked, by path."""
