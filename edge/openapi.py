"""The OpenAPI 3.1 document of what the edge answers."""

from __future__ import annotations

from collections.abc import Sequence

from edge.openapi_anthropic import anthropic_paths, anthropic_schemas
from edge.openapi_fields import chat_fields, common_fields, completion_fields
from edge.openapi_parts import (
    Schema,
    answer_operation,
    error_responses,
    field,
    generating_operation,
    object_schema,
    open_operation,
    reference,
)
from edge.openapi_platform import export_paths, platform_paths, platform_schemas
from edge.openapi_pooling import pooling_paths, pooling_schemas
from edge.openapi_responses import response_paths, response_schemas
from edge.openapi_tokens import token_paths, token_schemas
from edge.routes.export import EXPORTS
from edge.routes.platform import Row
from naru import __version__


def document(aliases: dict[str, str], rows: Sequence[Row]) -> Schema:
    """The document. `aliases`: canonical path by the other names it answers to; `rows`: the platform's own routes."""
    paths: dict[str, Schema] = {
        "/v1/chat/completions": {"post": _generating("chat", "ChatCompletionRequest", "ChatCompletion", _CHAT_EXAMPLE)},
        "/v1/completions": {"post": _generating("text", "CompletionRequest", "Completion", _COMPLETION_EXAMPLE)},
        "/v1/models": {"get": answer_operation("List the models that you may use.", "ModelList", (401, 403, 503))},
        "/v1/models/{model}": {
            "get": answer_operation("Show one model.", "Model", (401, 403, 404, 503))
            | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]}
        },
        **pooling_paths(),
        **token_paths(),
        **anthropic_paths(),
        **response_paths(),
        "/.well-known/jwks.json": {"get": _signing_keys()},
        "/health": {"get": open_operation("The state of every service behind the edge; 503 when one is away.", 503)},
        "/healthz": {"get": open_operation("Whether the process answers.")},
        "/readyz": {"get": open_operation("Whether the edge takes requests; 503 while it stops.", 503)},
        "/metrics": {"get": open_operation("Metrics in Prometheus's text format.", media="text/plain")},
        "/openapi.json": {"get": open_operation("This document.")},
        "/docs": {"get": open_operation("This document as a page.", media="text/html")},
    }
    for path, methods in (platform_paths(rows) | export_paths(EXPORTS)).items():
        paths[path] = methods
        for operation in methods.values():
            operation["responses"] |= error_responses((400, 401, 403, 404, 409, 413, 429, 500, 503))
    for alias, canonical in aliases.items():
        paths[alias] = {
            method: operation | {"description": f"The same as {canonical}. {operation['description']}"}
            for method, operation in paths[canonical].items()
        }
    for path, methods in paths.items():
        for method, operation in methods.items():
            operation["operationId"] = method + path.replace("/", "_").replace("{", "").replace("}", "").replace(
                ".", "_"
            )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Naru",
            "version": __version__,
            "description": "A self-hosted LLM API platform. OpenAI's API: any OpenAI client works with this base URL"
            " and a Naru API key.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"apiKey": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "A Naru API key: sk-naru-..."}
            },
            "schemas": {
                **_schemas(),
                **pooling_schemas(),
                **token_schemas(),
                **anthropic_schemas(),
                **response_schemas(),
                **platform_schemas(rows),
            },
        },
    }


_CHAT_EXAMPLE = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "What is the capital of Japan?"}],
    "temperature": 0,
}
_COMPLETION_EXAMPLE = {"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "max_tokens": 32}


def _generating(what: str, request: str, answer: str, example: Schema) -> Schema:
    description = (
        f"Generate {what}. With `stream`, the answer is server-sent events: chunks, then `[DONE]`; an event with `error`"
        " if it breaks. What else `vllm serve` takes is in docs/compatibility.md."
    )
    return generating_operation(description, request, answer, example)


def _signing_keys() -> Schema:
    description = "The public keys that users' access tokens are signed with."
    operation = open_operation(description, media="application/jwk-set+json")
    operation["responses"] |= error_responses((503,))
    return operation


def _answer(kind: str, choice: dict[str, Schema]) -> Schema:
    common = {
        "index": field("integer", "Which choice."),
        "logprobs": {"type": ["object", "null"], "description": "Log-probabilities, when asked for."},
        "finish_reason": field("string", "Why it ended: stop or length."),
        "stop_reason": {"type": ["string", "integer", "null"], "description": "The stop text or token that ended it."},
    }
    return object_schema(
        {
            "id": field("string", "Id of the answer."),
            "object": {"const": kind},
            "created": field("integer", "Seconds since the Unix epoch."),
            "model": field("string", "The model that answered."),
            "choices": {"type": "array", "items": object_schema(choice | common, extra=True)},
            "usage": reference("Usage"),
            "system_fingerprint": {"type": "null"},
        }
    )


def _schemas() -> dict[str, Schema]:
    tokens = {"type": "integer"}
    model = object_schema(
        {
            "id": field("string", "Its name in requests."),
            "object": {"const": "model"},
            "created": field("integer", "When it was loaded, in seconds since the Unix epoch."),
            "owned_by": field(
                "string",
                'Who serves it: "naru", "upstream" for a model that others serve, or "simulated" for the simulated engine.',
            ),
            "root": field("string", "The model that another name stands for, an adapter's own name, or its name."),
            "parent": {"type": ["string", "null"], "description": "The model that it is an adapter of."},
            "max_model_len": field("integer", "Most tokens of prompt and answer together."),
            "permission": {"type": "array", "items": {"type": "object"}, "description": "As vLLM's server lists it."},
        }
    )
    error = {
        "message": field("string", "What is wrong, in a sentence."),
        "type": field("string", "Kind of error."),
        "param": {"type": ["string", "null"], "description": "The field that is wrong."},
        "code": {"type": ["string", "null"], "description": "For programs."},
    }
    usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), tokens) | {
        "prompt_tokens_details": object_schema({"cached_tokens": tokens}),
        "completion_tokens_details": object_schema({"reasoning_tokens": tokens}),
        "cost": field("number", "In units of the currency; when asked for by `usage.include`."),
    }
    reply = {"message": object_schema({"role": {"const": "assistant"}, "content": {"type": "string"}}, extra=True)}
    return {
        "ChatCompletionRequest": object_schema(chat_fields() | common_fields(), ("model", "messages"), extra=True),
        "CompletionRequest": object_schema(completion_fields() | common_fields(), ("model", "prompt"), extra=True),
        "ChatCompletion": _answer("chat.completion", reply),
        "Completion": _answer("text_completion", {"text": {"type": "string"}}),
        "Usage": object_schema(usage),
        "Model": model,
        "ModelList": object_schema(
            {"object": {"const": "list"}, "data": {"type": "array", "items": reference("Model")}}
        ),
        "Error": object_schema({"error": object_schema(error)}),
    }
