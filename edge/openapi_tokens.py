"""The part of the OpenAPI document about tokens."""

from __future__ import annotations

from edge.openapi_parts import Schema, asking_operation, field, object_schema

_ERRORS = (400, 401, 403, 404, 413, 429, 500, 503, 504)
_MODEL = "smollm2-135m-instruct"


def token_paths() -> dict[str, Schema]:
    """Operations by path."""
    counted = "Counts as a request, and uses no tokens."
    return {
        "/tokenize": {
            "post": asking_operation(
                f"Tell the tokens of a text or a conversation. {counted}",
                "TokenizeRequest",
                "Tokens",
                _ERRORS,
                {"model": _MODEL, "prompt": "Once upon a time"},
            )
        },
        "/detokenize": {
            "post": asking_operation(
                f"Tell the text of tokens. {counted}",
                "DetokenizeRequest",
                "Detokenized",
                _ERRORS,
                {"model": _MODEL, "tokens": [504, 3575]},
            )
        },
    }


def token_schemas() -> dict[str, Schema]:
    """Schemas by name."""
    model = field("string", "The model, as /v1/models lists it.")
    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "description": "Ids of the model's tokenizer."}
    request = {
        "model": model,
        "prompt": field("string", "A text; this or `messages`."),
        "messages": {"type": "array", "items": {"type": "object"}, "description": "A conversation."},
        "tools": {"type": "array", "items": {"type": "object"}, "description": "Tools that the conversation has."},
        "add_special_tokens": field("boolean", "Whether to add such as the one that begins a text."),
        "add_generation_prompt": field("boolean", "Whether an answer is begun.", default=True),
        "continue_final_message": field("boolean", "Whether the last message goes on.", default=False),
        "return_token_strs": field("boolean", "Whether to tell the tokens' texts.", default=False),
    }
    answer = {
        "count": field("integer", "How many."),
        "max_model_len": field("integer", "Most tokens of prompt and answer together."),
        "tokens": ids,
        "token_strs": {"type": ["array", "null"], "items": {"type": "string"}},
    }
    return {
        "TokenizeRequest": object_schema(request, ("model",), extra=True),
        "Tokens": object_schema(answer),
        "DetokenizeRequest": object_schema({"model": model, "tokens": ids}, ("model", "tokens"), extra=True),
        "Detokenized": object_schema({"prompt": field("string", "The text.")}),
    }
