"""The part of the OpenAPI document about the Responses API."""

from __future__ import annotations

from edge.openapi_parts import Schema, field, generating_operation, object_schema


def response_paths() -> dict[str, Schema]:
    """Operations by path."""
    description = (
        "Generate a response, as OpenAI's Responses API does, without keeping it. With `stream`, the answer is that API's"
        " server-sent events."
    )
    example = {"model": "smollm2-135m-instruct", "input": "What is the capital of Japan?"}
    return {"/v1/responses": {"post": generating_operation(description, "ResponseRequest", "Response", example)}}


def response_schemas() -> dict[str, Schema]:
    """Schemas by name."""
    objects: Schema = {"type": "array", "items": {"type": "object"}}
    request = {
        "model": field("string", "The model, as /v1/models lists it."),
        "input": {
            "type": ["string", "array"],
            "description": "A text, or the items of the conversation, oldest first.",
        },
        "instructions": field("string", "What the model is told before the conversation."),
        "max_output_tokens": field("integer", "Most tokens to generate.", minimum=1),
        "stream": field("boolean", "Whether to answer as it is generated.", default=False),
        "temperature": field("number", "0 takes the likeliest token.", minimum=0, maximum=2),
        "top_p": field("number", "Chooses from the likeliest tokens with this probability together.", maximum=1),
        "tools": objects | {"description": "Functions of yours that the model may call."},
        "tool_choice": {"type": ["string", "object"], "description": "Which of them it must or may not call."},
        "text": field("object", "`format`: text, json_object or json_schema."),
        "reasoning": field("object", "`effort`: how much to think, if the model can."),
        "metadata": field("object", "Texts of yours, which the answer repeats."),
    }
    answer = {
        "id": field("string", "Id of the answer."),
        "object": {"const": "response"},
        "created_at": field("integer", "Seconds since the Unix epoch."),
        "status": field("string", "completed, or incomplete when the limit or a filter cut it."),
        "incomplete_details": {
            "type": ["object", "null"],
            "description": "`reason`: max_output_tokens or content_filter.",
        },
        "model": field("string", "The model that answered."),
        "output": objects | {"description": "Items: message, function_call, reasoning."},
        "usage": field("object", "Tokens of prompt and answer."),
    }
    return {
        "ResponseRequest": object_schema(request, ("model", "input"), extra=True),
        "Response": object_schema(answer, extra=True),
    }
