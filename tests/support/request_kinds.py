"""Kinds of requests that `vllm serve` knows, each with what makes it one; the rest of each body is the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is the capital of France?"}]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {"name": "get_weather", "strict": True, "parameters": CITY},
}
OTHER_TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request; the body has no model."""

    name: str
    path: str
    body: Mapping[str, Any]

    @property
    def streamed(self) -> bool:
        """Whether events answer it."""
        return bool(self.body.get("stream"))


_CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "system": {"messages": [{"role": "system", "content": "Answer in Korean."}, *QUESTION]},
    "turns": {
        "messages": [
            *QUESTION,
            {"role": "assistant", "content": "Paris."},
            {"role": "user", "content": "And of Italy?"},
        ]
    },
    "text parts": {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "What is the capital of Spain?"}]}]
    },
    "unicode": {"messages": [{"role": "user", "content": "나루 🙂 뜻을 말해줘"}]},
    "max_tokens 1": {"max_tokens": 1},
    "max_completion_tokens": {"max_tokens": None, "max_completion_tokens": 4},
    "a stop": {"stop": "Paris"},
    "two stops": {"stop": ["Rome", " is"]},
    "a stop that is kept": {"stop": ["capital"], "include_stop_str_in_output": True},
    "stop_token_ids": {"stop_token_ids": [282]},
    "min_tokens": {"min_tokens": 12, "max_tokens": 14},
    "ignore_eos": {"ignore_eos": True, "max_tokens": 14},
    "logprobs": {"logprobs": True},
    "top_logprobs": {"logprobs": True, "top_logprobs": 3},
    "logit_bias": {"logit_bias": {"282": -100}},
    "frequency_penalty": {"frequency_penalty": 1.5},
    "presence_penalty": {"presence_penalty": 1.5},
    "repetition_penalty": {"repetition_penalty": 1.3},
    "a seed": {"seed": 7, "temperature": 0.7, "top_k": 1},
    "bad_words": {"bad_words": ["Paris"]},
    "allowed_token_ids": {"allowed_token_ids": [504, 3575, 282]},
    "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 24},
    "json_schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}},
        "max_tokens": 40,
    },
    "structured choice": {"structured_outputs": {"choice": ["Rome", "Paris"]}},
    "structured regex": {"structured_outputs": {"regex": "[0-9]{4}"}},
    "structured grammar": {"structured_outputs": {"grammar": 'root ::= "yes" | "no"'}},
    "structured json": {"structured_outputs": {"json": CITY}, "max_tokens": 40},
    "tool_choice none": {"tools": [TOOL], "tool_choice": "none"},
    "tool_choice auto": {"tools": [TOOL]},
    "tool_choice named": {
        "tools": [TOOL, OTHER_TOOL],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "max_tokens": 48,
    },
    "tool_choice required": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 64},
    "a tool's answer": {
        "messages": [
            *QUESTION,
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ],
        "tools": [TOOL],
        "tool_choice": "none",
    },
    "continue_final_message": {
        "messages": [*QUESTION, {"role": "assistant", "content": "The capital is"}],
        "continue_final_message": True,
        "add_generation_prompt": False,
    },
    "no generation prompt": {"add_generation_prompt": False},
    "return_token_ids": {"return_token_ids": True},
    "as token ids": {"logprobs": True, "return_tokens_as_token_ids": True},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 12},
    "no special tokens skipped": {"skip_special_tokens": False},
    "chat_template_kwargs": {"chat_template_kwargs": {"unused": 1}},
    "reasoning_effort": {"reasoning_effort": "low"},
    "a user": {"user": "somebody"},
}
_WHOLE_CHATS: dict[str, dict[str, Any]] = {
    "prompt_logprobs": {"prompt_logprobs": 1},
    "no messages": {"messages": []},
    "messages missing": {"messages": None},
    "a role unknown": {"messages": [{"role": "wizard", "content": "x"}]},
    "temperature -1": {"temperature": -1},
    "top_p 2": {"top_p": 2},
    "n 0": {"n": 0},
    "n -1": {"n": -1},
    "max_tokens 0": {"max_tokens": 0},
    "max_tokens -1": {"max_tokens": -1},
    "max_tokens as text": {"max_tokens": "many"},
    "presence_penalty 3": {"presence_penalty": 3},
    "top_logprobs alone": {"top_logprobs": 2},
    "top_logprobs 99": {"logprobs": True, "top_logprobs": 99},
    "stream_options unstreamed": {"stream_options": {"include_usage": True}},
    "a schema missing": {"response_format": {"type": "json_schema"}},
    "a schema that is none": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    },
    "a regex that is none": {"structured_outputs": {"regex": "("}},
    "two structures": {"structured_outputs": {"regex": "a", "choice": ["a"]}},
    "tool_choice without tools": {"tool_choice": "required"},
    "a tool unknown": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "none"}}},
    "too long a prompt": {"messages": [{"role": "user", "content": "word " * 3_000}]},
    "a model unknown": {"model": "none"},
}
_COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {},
    "texts": {"prompt": ["The capital of France is", "The capital of Italy is"]},
    "ids": {"prompt": [504, 3575, 282, 4649, 314]},
    "lists of ids": {"prompt": [[504, 3575, 282, 4649, 314], [504, 3575]]},
    "max_tokens null": {"max_tokens": None, "stop": "."},
    "logprobs": {"logprobs": 2},
    "logprobs 0": {"logprobs": 0},
    "echo": {"echo": True},
    "echo with logprobs": {"echo": True, "logprobs": 1},
    "a stop": {"stop": ","},
    "return_token_ids": {"return_token_ids": True},
    "as token ids": {"logprobs": 2, "return_tokens_as_token_ids": True},
    "a JSON schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": CITY}},
        "max_tokens": 40,
    },
    "structured choice": {"structured_outputs": {"choice": [" Paris", " Rome"]}},
    "no special tokens added": {"add_special_tokens": False},
    "truncate_prompt_tokens": {"truncate_prompt_tokens": 3},
}
_WHOLE_COMPLETIONS: dict[str, dict[str, Any]] = {
    "echo alone": {"echo": True, "max_tokens": 0},
    "prompt_logprobs": {"prompt_logprobs": 1},
    "no prompt": {"prompt": None},
    "an empty list": {"prompt": []},
    "an id unknown": {"prompt": [999_999]},
    "logprobs 99": {"logprobs": 99},
    "max_tokens too many": {"max_tokens": 100_000},
    "a suffix": {"suffix": "!"},
    "temperature as text": {"temperature": "hot"},
}


def kinds() -> Iterator[Kind]:
    """All of them: most of them whole and streamed."""
    chat: dict[str, Any] = {"messages": QUESTION, "temperature": 0, "max_tokens": 10}
    text: dict[str, Any] = {"prompt": "The capital of France is", "temperature": 0, "max_tokens": 6}
    for path, base, both, whole in (
        (CHAT, chat, _CHATS, _WHOLE_CHATS),
        (COMPLETIONS, text, _COMPLETIONS, _WHOLE_COMPLETIONS),
    ):
        short = path.rpartition("/v1/")[2]
        for name, fields in (both | whole).items():
            yield Kind(f"{short}: {name}", path, base | fields)
        for name, fields in both.items():
            yield Kind(f"{short} streamed: {name}", path, base | fields | {"stream": True})
        for name, options in (
            ("usage", {"include_usage": True}),
            ("usage all along", {"include_usage": True, "continuous_usage_stats": True}),
        ):
            yield Kind(f"{short} streamed: {name}", path, base | {"stream": True, "stream_options": options})
