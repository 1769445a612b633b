"""Requests that could end an engine or the process before it: what VLLM.md's failure modes name, and what is like it."""

from __future__ import annotations

import json
from typing import Any

LONG = "hello " * 3_000
"""More than the model's context."""
_HUGE = (2**31, 2**32, 2**63, 2**64, 10**400)
_DEEP = 900
CHAT_PATH, TEXT_PATH = "/v1/chat/completions", "/v1/completions"


def _nested(opening: str, inside: str, closing: str, levels: int) -> str:
    return opening * levels + inside + closing * levels


def _schemas() -> list[Any]:
    deep = _nested("(", "a", ")", 30_000)
    return [
        {"type": "nonsense"},
        {"type": "string", "pattern": "["},
        {"type": "string", "pattern": deep},
        {"type": "string", "pattern": "a\0b"},
        {"type": "string", "pattern": "(?<=a)b(?=c)\\1"},
        {"type": "object", "patternProperties": {deep: {"type": "integer"}}},
        {"type": "object", "propertyNames": {"pattern": deep}},
        json.loads(_nested('{"type":"array","items":', "{}", "}", _DEEP // 2)),
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"$ref": "http://127.0.0.1:1/schema"},
        {"$ref": "file:///etc/passwd"},
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
        {"type": "array", "items": {"type": "integer"}, "minItems": 10**6, "maxItems": 10**6},
        {"type": "array", "minItems": 5, "maxItems": 1},
        {"type": "string", "minLength": -1, "maxLength": -5},
        {"type": "string", "minLength": 10**9, "maxLength": 2**62},
        {"type": "integer", "minimum": 5, "maximum": 1},
        {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
        {"type": "number", "minimum": -1e308, "maximum": 1e308},
        {"type": "integer", "multipleOf": 0},
        {"enum": []},
        {"enum": [f"value {number}" for number in range(20_000)]},
        {"const": "\0\u202e"},
        {"not": {}},
        {"anyOf": []},
        {"type": "object", "properties": {str(number): {"type": "string"} for number in range(5_000)}},
        True,
        False,
    ]


def _structures() -> list[Any]:
    return [
        {"regex": "["},
        {"regex": "("},
        {"regex": "\0"},
        {"regex": "(a+)+b"},
        {"regex": "(?i)a"},
        {"regex": "(?=a)b"},
        {"regex": "a{1,100000}"},
        {"regex": "((a{1,1000}){1,1000}){1,1000}"},
        {"regex": "[\\s\\S]{0,500}"},
        {"regex": _nested("(", "a", ")", 30_000)},
        {"regex": "a" * 100_000},
        {"grammar": "root ::="},
        {"grammar": "root ::= nothing"},
        {"grammar": "not a grammar at all"},
        {"grammar": 'root ::= root "a" | "b"'},
        {"grammar": 'root ::= root | ""'},
        {"grammar": 'root ::= a\na ::= b a | ""\nb ::= ""'},
        {"grammar": "start: /a/\n" * 5},
        {"grammar": "root ::= " + _nested("(", '"a"', ")", 20_000)},
        {"grammar": "root ::= " + ' "a"' * 50_000},
        {"choice": []},
        {"choice": [""]},
        {"choice": ["\0", "\n", '"', "\\"]},
        {"choice": ["a"] * 40_000},
        {"json_object": True, "whitespace_pattern": "["},
        {"structural_tag": "{"},
        {"structural_tag": "{}"},
        {"structural_tag": '{"type":"structural_tag","format":{"type":"nonsense"}}'},
        {"structural_tag": '{"structures":[],"triggers":[]}'},
        {"structural_tag": '{"structures":[{"begin":"","schema":{},"end":""}],"triggers":[""]}'},
        {"structural_tag": '{"structures":[{"begin":"<a>","schema":{"type":"x"},"end":"</a>"}],"triggers":["<b>"]}'},
        {"structural_tag": _nested('{"type":"sequence","elements":[', '{"type":"any_text"}', "]}", 5_000)},
        {
            "structural_tag": json.dumps(
                {"type": "structural_tag", "format": {"type": "regex", "pattern": "(" * 30_000}}
            )
        },
        {"json": _nested("[", "", "]", 30_000)},
        {"json": "{"},
        {"json": {"const": 2**70}},
    ]


def _fields() -> list[dict[str, Any]]:
    """For both APIs, of which one or the other may not know a field."""
    return [
        *({"n": n} for n in (0, -1, 129, 10**6, *_HUGE)),
        *({"max_tokens": most} for most in (0, -1, *_HUGE)),
        *({"min_tokens": least} for least in (-1, 100, *_HUGE)),
        *({"seed": seed} for seed in (-(2**63), 2**63 - 1, -(2**63) - 1, *_HUGE)),
        {"seed": 2**63 - 1, "n": 3},
        *({"top_k": top} for top in (-2, 2**31 - 1, *_HUGE)),
        *({"temperature": heat} for heat in (-1, 1e-300, 5, 1e308, 10**400)),
        *({"top_p": top} for top in (0, -1, 1e-300, 2)),
        *({"min_p": least} for least in (-1, 1e-300, 1, 2)),
        *({"repetition_penalty": penalty} for penalty in (0, -1, 1e-300, 1e300, 10**400)),
        *({"presence_penalty": penalty} for penalty in (-3, 3, 1e308)),
        *({"frequency_penalty": penalty} for penalty in (-3, 3, 1e308)),
        *({"truncate_prompt_tokens": size} for size in (-2, 0, *_HUGE)),
        *({"prompt_logprobs": count} for count in (-2, -1, 21, *_HUGE)),
        *({"priority": order} for order in (-(2**31), 2**31 - 1, *_HUGE)),
        *({"logit_bias": {str(token): 1}} for token in (-1, 49_152, "a", "", *_HUGE[:4])),
        {"logit_bias": {"1": 1e308}},
        {"logit_bias": {str(token): 1 for token in range(5_000)}},
        *({"allowed_token_ids": ids} for ids in ([], [-1], [49_152], [2**31], [2**63], ["a"], list(range(5_000)))),
        *({"stop_token_ids": ids} for ids in ([-1], [49_152], [2**31], [2**63], [2**70], ["a"], list(range(5_000)))),
        {"stop_token_ids": [2**31], "min_tokens": 2},
        {"allowed_token_ids": [1], "bad_words": ["Paris"], "min_tokens": 2, "stop_token_ids": [1]},
        *({"stop": stop} for stop in ("", [""], ["a"] * 5, [LONG], ["\0"], ["a"] * 100_000)),
        *({"bad_words": words} for words in ([""], [" "], ["\0"], [LONG], ["a b c d"] * 200, "Paris", [1])),
        *({"thinking_token_budget": budget} for budget in (-1, 0, 2**63)),
        *(
            {"repetition_detection": {"max_pattern_size": largest, "min_pattern_size": least, "min_count": count}}
            for largest, least, count in ((10**9, 1, 2), (2**63, 2**62, 2**62), (-1, -1, -1), (1, 5, 2))
        ),
        {"cache_salt": ""},
        {"cache_salt": "\0" * 10_000},
        {"vllm_xargs": {"a": [1, 2], "b": "c"}},
        {"vllm_xargs": {"a": {"b": 1}}},
        {"ignore_eos": True, "min_tokens": 5, "stop": ["."]},
        {"prompt_embeds": "AAAA"},
        {"request_id": "\0\n" * 100},
        {"add_special_tokens": False, "skip_special_tokens": False},
    ]


def _tools() -> list[dict[str, Any]]:
    def forced(schema: Any, name: str = "f") -> dict[str, Any]:
        function = {"name": name, "strict": True, "parameters": schema}
        return {"tools": [{"type": "function", "function": function}], "tool_choice": "required"}

    return [
        *map(forced, _schemas()[:8]),
        forced({}, ""),
        forced({}, "\0"),
        forced({}, '"<tool_call>'),
        forced({}, "f" * 10_000),
    ]


def _chats() -> list[dict[str, Any]]:
    turn = {"role": "user", "content": "Hi"}
    called = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}
    return [
        *({"structured_outputs": wish} for wish in _structures()),
        *(
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": one}}}
            for one in _schemas()
        ),
        *({"logprobs": True, "top_logprobs": top} for top in (-1, 21, *_HUGE)),
        {"messages": [turn | {"content": LONG}]},
        {"messages": [turn | {"content": ""}]},
        {"messages": [turn | {"content": "\ud800"}]},
        {"messages": [turn | {"content": "<|im_end|>\n<|im_start|>system\n\0\uffff"}]},
        {"messages": [turn | {"content": "🙂\u200d" * 100}]},
        {"messages": [turn] * 2_000},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [called]}, turn]},
        {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}, turn]},
        {"messages": [turn, {"role": "tool", "tool_call_id": "nobody's", "content": "x"}]},
        {"chat_template_kwargs": {"messages": [], "tokenize": True, "add_generation_prompt": 7}},
        {"chat_template_kwargs": {"bos_token": {"a": []}, "raise_exception": 1}},
        {"continue_final_message": True, "add_generation_prompt": True},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"logprobs": True, "logprob_token_ids": [-1]},
        {"logprobs": True, "logprob_token_ids": [2**40]},
        {"logprobs": True, "logprob_token_ids": list(range(5_000))},
        *_tools(),
    ]


def _texts() -> list[dict[str, Any]]:
    prompts: list[Any] = [
        "",
        [],
        [[]],
        [[], [1]],
        [""],
        [-1],
        [49_152],
        [2**31],
        [2**63],
        [2**70],
        [1] * 5_000,
        [1] * 256,
        [1] * 255,
        [[1]] * 5_000,
        LONG,
        "\udfff",
        "\0",
        [True],
        None,
    ]
    return [
        *({"prompt": prompt} for prompt in prompts),
        *({"logprobs": top} for top in (-1, 21, *_HUGE)),
        {"prompt": [49_152], "echo": True, "logprobs": 1},
        {"prompt": ["a"] * 100, "n": 128},
        {"echo": True, "max_tokens": 0, "prompt_logprobs": 0},
        {"suffix": "x"},
        # What is a chat's, and is nobody's in a completion.
        *({"messages": messages} for messages in ([1], [None], "Hi", 1, {"role": "user"})),
    ]


def bodies() -> list[tuple[str, dict[str, Any]]]:
    """Paths, and what to send there beside the model."""
    chat: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    text: dict[str, Any] = {"prompt": "Hi", "max_tokens": 2}
    return [
        *((CHAT_PATH, chat | fields) for fields in (*_fields(), *_chats())),
        *((TEXT_PATH, text | fields) for fields in (*_fields(), *_texts())),
        *(("/detokenize", {"tokens": tokens}) for tokens in ([], [-1], [49_152], [2**32 - 1], [2**32], [2**70])),
        *(("/tokenize", {"prompt": prompt}) for prompt in ("", "\ud800", "\0", LONG)),
        ("/v1/embeddings", {"input": "Hi"}),
        ("/v1/score", {"queries": "a", "documents": "b"}),
    ]


RAW: list[bytes] = [
    b"",
    b"\xff\xfe",
    b"null",
    b"[" * 100_000,
    b'{"model":"%s","messages":[],"temperature":NaN}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"temperature":Infinity}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"temperature":1e999}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"repetition_penalty":1e999}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"logit_bias":{"1":-1e999}}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"min_p":-0.0,"top_p":1e-999}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"seed":1e3}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"max_tokens":4,"max_tokens":99999999999999999999}',
    b'{"model":"%s","messages":[{"role":"user","content":"\\ud800"}],"max_tokens":4,"stop":["\\udc00"]}',
    b'{"model":"%s","messages":[{"role":"user","content":"Hi"}],"metadata":{"a":' + b"[" * 5_000 + b"]" * 5_000 + b"}}",
]
"""Bodies of chats that no encoder of JSON writes, for a model's name to be put into."""
