"""The part of the OpenAPI document about Anthropic's API."""

from __future__ import annotations

from edge.openapi_parts import (
    GENERATING_ERRORS,
    Schema,
    asking_operation,
    field,
    generating_operation,
    object_schema,
    reference,
)

_OVERLOADED = 529
_ERROR = "AnthropicError"
_EXAMPLE = {
    "model": "smollm2-135m-instruct",
    "max_tokens": 50,
    "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
}


def anthropic_paths() -> dict[str, Schema]:
    """Operations by path."""
    counted = {name: value for name, value in _EXAMPLE.items() if name != "max_tokens"}
    return {
        "/v1/messages": {
            "post": generating_operation(
                "Generate a message, as Anthropic's API does. With `stream`, the answer is that API's server-sent events.",
                "MessageRequest",
                "Message",
                _EXAMPLE,
                errors=(*GENERATING_ERRORS, _OVERLOADED),
                error=_ERROR,
            )
        },
        "/v1/messages/count_tokens": {
            "post": asking_operation(
                "Count the tokens of the prompt of a message. Counts as a request, and uses no tokens.",
                "CountTokensRequest",
                "TokenCount",
                (400, 401, 403, 404, 413, 429, 500, 503, 504, _OVERLOADED),
                counted,
                error=_ERROR,
            )
        },
    }


def anthropic_schemas() -> dict[str, Schema]:
    """Schemas by name."""
    objects: Schema = {"type": "array", "items": {"type": "object"}}
    turn = object_schema(
        {"role": field("string", "user or assistant."), "content": {"type": ["string", "array"]}}, ("role", "content")
    )
    countable: dict[str, Schema] = {
        "model": field("string", "The model, as /v1/models lists it."),
        "messages": {"type": "array", "items": turn, "description": "The conversation, oldest first."},
        "system": {"type": ["string", "array"], "description": "What the model is told before the conversation."},
        "tools": objects | {"description": "Tools of yours that the model may call."},
        "tool_choice": field("object", "Which of them it must or may not call."),
        "thinking": field("object", "Whether it thinks before it answers, if it can."),
        "output_config": field("object", "`format`: a JSON schema of the answer; `effort`: how much to think."),
    }
    request = countable | {
        "max_tokens": field("integer", "Most tokens to generate.", minimum=1),
        "stream": field("boolean", "Whether to answer as it is generated.", default=False),
        "stop_sequences": {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        "temperature": field("number", "0 takes the likeliest token.", minimum=0, maximum=2),
        "top_p": field("number", "Chooses from the likeliest tokens with this probability together.", maximum=1),
        "top_k": field("integer", "Chooses from so many of the likeliest tokens."),
        "metadata": object_schema({"user_id": {"type": ["string", "null"]}}),
    }
    message = {
        "id": field("string", "Id of the answer."),
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": field("string", "The model that answered."),
        "content": objects | {"description": "Blocks: text, tool_use, thinking."},
        "stop_reason": field("string", "Why it ended: end_turn, max_tokens, stop_sequence, tool_use or refusal."),
        "stop_sequence": {"type": ["string", "null"], "description": "The text that ended it."},
        "usage": field("object", "`input_tokens` are those that did not come from the cache."),
    }
    error = object_schema(
        {"type": field("string", "Kind of error."), "message": field("string", "What is wrong, in a sentence.")}
    )
    return {
        "MessageRequest": object_schema(request, ("model", "messages", "max_tokens"), extra=True),
        "CountTokensRequest": object_schema(countable, ("model", "messages"), extra=True),
        "Message": object_schema(message),
        "TokenCount": object_schema({"input_tokens": field("integer", "How many.")}),
        "AnthropicErrorDetail": error,
        "AnthropicError": object_schema(
            {
                "type": {"const": "error"},
                "error": reference("AnthropicErrorDetail"),
                "request_id": field("string", "The request's id."),
            }
        ),
    }
