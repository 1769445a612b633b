"""The fields of generating requests in the OpenAPI document: OpenAI's, and those that vLLM has besides."""

from __future__ import annotations

from edge.openapi_parts import Schema, field, object_schema


def common_fields() -> dict[str, Schema]:
    """What chat completions and completions both take."""
    return {
        "model": field("string", "The model, as /v1/models lists it."),
        "stream": _optional("boolean", "Whether to answer as it is generated.", default=False),
        "stream_options": object_schema(
            {
                "include_usage": _optional("boolean", "End with a chunk that tells the usage."),
                "continuous_usage_stats": _optional("boolean", "Tell the usage so far in every chunk."),
            }
        )
        | {"description": "Only with `stream`.", "type": ["object", "null"]},
        "usage": object_schema(
            {"include": _optional("boolean", "Tell the usage with its cost, also at the end of a stream.")}
        )
        | {"description": "OpenRouter's way of asking for the cost.", "type": ["object", "null"]},
        "n": _optional("integer", "How many choices.", minimum=1, maximum=128, default=1),
        "max_tokens": _optional("integer", "Most tokens to generate per choice.", minimum=1),
        "user": _optional("string", "Your name for whoever asks; without effect."),
        **_sampling_fields(),
        **_ending_fields(),
        **_guiding_fields(),
        **_telling_fields(),
    }


def chat_fields() -> dict[str, Schema]:
    """What only chat completions take."""
    message = object_schema(
        {
            "role": {"enum": ["system", "developer", "user", "assistant", "tool"], "description": "Who speaks."},
            "content": {"type": ["string", "array", "null"], "description": "Text, or parts of text."},
        },
        ("role",),
        extra=True,
    )
    tool = object_schema(
        {
            "type": {"const": "function"},
            "function": object_schema(
                {
                    "name": field("string", "What the model calls it by."),
                    "description": _optional("string", "What it does, for the model."),
                    "parameters": _optional("object", "JSON schema of its arguments."),
                    "strict": _optional("boolean", "Whether arguments must keep to the schema."),
                },
                ("name",),
            ),
        },
        ("type", "function"),
    )
    return {
        "messages": {"type": "array", "items": message, "description": "The conversation, oldest first."},
        "max_completion_tokens": _optional("integer", "Most tokens to generate per choice.", minimum=1),
        "logprobs": _optional("boolean", "Whether to tell log probabilities.", default=False),
        "top_logprobs": _optional("integer", "How many of the likeliest tokens to tell; needs `logprobs`.", minimum=0),
        "tools": {"type": ["array", "null"], "items": tool, "description": "Functions that the model may call."},
        "tool_choice": {
            "type": ["string", "object", "null"],
            "description": "`none`, `auto`, `required`, or the function to call. Default: `auto` with tools.",
        },
        "parallel_tool_calls": _optional("boolean", "Whether one answer may call several functions.", default=True),
        "reasoning_effort": _optional("string", "How much to think: given to the chat template."),
        "include_reasoning": field("boolean", "Whether to tell the reasoning.", default=True),
        "chat_template_kwargs": _optional("object", "Variables for the chat template."),
        "add_generation_prompt": field("boolean", "Whether the template begins the assistant's turn.", default=True),
        "continue_final_message": field("boolean", "Go on from the last message.", default=False),
        "echo": field("boolean", "Begin with the last message.", default=False),
        "add_special_tokens": field("boolean", "Put the tokenizer's special tokens around.", default=False),
    }


def completion_fields() -> dict[str, Schema]:
    """What only completions take."""
    return {
        "prompt": {"type": ["string", "array"], "description": "A text, token ids, or several of either."},
        "logprobs": _optional("integer", "How many of the likeliest tokens to tell.", minimum=0),
        "echo": _optional("boolean", "Begin with the prompt.", default=False),
        "suffix": _optional("string", "What comes after the answer, for models that fill in the middle."),
        "add_special_tokens": field("boolean", "Put the tokenizer's special tokens around.", default=True),
    }


def _sampling_fields() -> dict[str, Schema]:
    return {
        "temperature": _optional("number", "0 takes the likeliest token.", minimum=0, maximum=2),
        "top_p": _optional("number", "Chooses from the likeliest tokens with this probability together.", maximum=1),
        "top_k": _optional("integer", "Chooses from so many of the likeliest tokens; 0 and -1: all.", minimum=-1),
        "min_p": _optional("number", "Least probability, as a share of the likeliest token's.", minimum=0, maximum=1),
        "seed": _optional("integer", "For reproducible sampling."),
        "presence_penalty": _optional("number", "Above 0 favours what was not said yet.", minimum=-2, maximum=2),
        "frequency_penalty": _optional("number", "Above 0 disfavours what was said often.", minimum=-2, maximum=2),
        "repetition_penalty": _optional("number", "Above 1 disfavours what was said or asked.", exclusiveMinimum=0),
        "logit_bias": _optional("object", "Added to the logits of tokens, by their ids: -100 to 100."),
        "allowed_token_ids": _numbers("The only tokens to choose from; at most 1,024."),
        "bad_words": {"type": "array", "items": {"type": "string"}, "description": "What is never said."},
    }


def _ending_fields() -> dict[str, Schema]:
    return {
        "stop": {
            "type": ["string", "array", "null"],
            "items": {"type": "string"},
            "maxItems": 4,
            "description": "Up to four texts that end a choice.",
        },
        "stop_token_ids": _numbers("Tokens that end a choice; at most 120."),
        "include_stop_str_in_output": field("boolean", "Whether the answer ends with the stop text.", default=False),
        "ignore_eos": field("boolean", "Go on after the model's own end.", default=False),
        "min_tokens": field("integer", "Least tokens to generate before an end.", minimum=0, default=0),
        "truncate_prompt_tokens": _optional(
            "integer", "Cut the prompt to so many tokens; -1: to what fits.", minimum=-1
        ),
        "truncation_side": _optional("string", "Which end of the prompt is cut: `left` or `right`."),
    }


def _guiding_fields() -> dict[str, Schema]:
    return {
        "response_format": _optional("object", "`text`, `json_object`, `json_schema` or `structural_tag`, by `type`."),
        "structured_outputs": _optional(
            "object", "vLLM's: one of `json`, `regex`, `choice`, `grammar`, `json_object`, `structural_tag`."
        ),
    }


def _telling_fields() -> dict[str, Schema]:
    return {
        "prompt_logprobs": _optional("integer", "Log probabilities of the prompt's tokens; not with `stream`."),
        "return_token_ids": _optional("boolean", "Tell the ids of the tokens, the prompt's too."),
        "return_tokens_as_token_ids": _optional("boolean", "Name tokens as `token_id:<id>` in log probabilities."),
        "skip_special_tokens": field("boolean", "Leave special tokens out of the text.", default=True),
        "spaces_between_special_tokens": field("boolean", "Put spaces between special tokens.", default=True),
        "cache_salt": _optional("string", "Shares cached prompts only with requests that say the same."),
    }


def _optional(kind: str, description: str, **more: object) -> Schema:
    """A field that may be null, which is as if it were not there."""
    return {"type": [kind, "null"], "description": description, **more}


def _numbers(description: str) -> Schema:
    return {"type": ["array", "null"], "items": {"type": "integer", "minimum": 0}, "description": description}
