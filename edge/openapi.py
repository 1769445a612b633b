"""The OpenAPI 3.1 document of what the edge answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edge.openapi_platform import export_paths, platform_paths, platform_schemas
from edge.routes.export import EXPORTS
from edge.routes.platform import Row
from naru import __version__

Schema = dict[str, Any]


def document(aliases: dict[str, str], rows: Sequence[Row]) -> Schema:
    """The document. `aliases`: canonical path by the other names it answers to; `rows`: the platform's own routes."""
    paths: dict[str, Schema] = {
        "/v1/chat/completions": {"post": _generating("chat", "ChatCompletionRequest", "ChatCompletion", _CHAT_EXAMPLE)},
        "/v1/completions": {"post": _generating("text", "CompletionRequest", "Completion", _COMPLETION_EXAMPLE)},
        "/v1/models": {"get": _operation("List the models that you may use.", "ModelList", (401, 403, 503))},
        "/v1/models/{model}": {
            "get": _operation("Show one model.", "Model", (401, 403, 404, 503))
            | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]}
        },
        "/health": {"get": _open("The state of every service behind the edge; 503 unless all are ok.", 503)},
        "/healthz": {"get": _open("Whether the process answers.")},
        "/readyz": {"get": _open("Whether the edge takes requests; 503 while it stops.", 503)},
        "/metrics": {"get": _open("Metrics in Prometheus's text format.", media="text/plain")},
        "/openapi.json": {"get": _open("This document.")},
        "/docs": {"get": _open("This document as a page.", media="text/html")},
    }
    for path, methods in (platform_paths(rows) | export_paths(EXPORTS)).items():
        paths[path] = methods
        for operation in methods.values():
            operation["responses"] |= _error_responses((400, 401, 403, 404, 409, 413, 500, 503))
    for alias, canonical in aliases.items():
        (method, operation) = next(iter(paths[canonical].items()))
        paths[alias] = {method: operation | {"description": f"The same as {canonical}. {operation['description']}"}}
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
            "schemas": _schemas() | platform_schemas(rows),
        },
    }


_IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Your name for this request, 1 to 255 printable ASCII characters: sent again within an hour of its answer,"
    " it gets the same answer and costs nothing.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
_CHAT_EXAMPLE = {
    "model": "smollm2-135m-instruct",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "temperature": 0,
}
_COMPLETION_EXAMPLE = {"model": "smollm2-135m-instruct", "prompt": "Once upon a time", "max_tokens": 32}
_ERRORS = {
    400: "The request is wrong; `param` names the field. Also `context_length_exceeded` and `unsupported_parameter`.",
    401: "There is no API key, or it is not valid (`invalid_api_key`).",
    403: "The API key may not be used for this.",
    404: "There is no such model for you (`model_not_found`), or no such thing (`not_found`).",
    409: "There is another one already (`already_exists`).",
    413: "The body is too large.",
    429: "A limit is used up (`rate_limit_exceeded`; `retry-after` says when to try again) or credit is"
    " (`insufficient_quota`).",
    500: "A fault of the server, with an incident id.",
    503: "A service or the model is away or busy; `retry-after` says when to try again.",
    504: "The time allowed for the request ran out.",
}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str) -> Schema:
    return {"application/json": {"schema": _reference(name)}}


def _operation(description: str, answer: str, errors: tuple[int, ...]) -> Schema:
    responses: Schema = {"200": {"description": "OK", "content": _json(answer), "headers": _headers()}}
    responses |= _error_responses(errors)
    return {"summary": description, "description": description, "responses": responses}


def _error_responses(errors: tuple[int, ...]) -> Schema:
    return {
        str(status): {"description": _ERRORS[status], "content": _json("Error"), "headers": _headers()}
        for status in errors
    }


def _generating(what: str, request: str, answer: str, example: Schema) -> Schema:
    operation = _operation(
        f"Generate {what}. With `stream`, the answer is server-sent events: chunks, then `[DONE]`; an event with `error`"
        " if it breaks. Parameters that are not listed here go on to the engine.",
        answer,
        (400, 401, 403, 404, 409, 413, 429, 500, 503, 504),
    )
    operation["responses"]["409"]["description"] = (
        "The `Idempotency-Key` has a request already: another one (`idempotency_key_reused`), one in flight"
        " (`idempotency_key_in_use`; `retry-after` says when to try again), or one whose answer is not kept"
        " (`idempotency_outcome_not_kept`)."
    )
    operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    operation["responses"]["200"]["headers"] |= {
        "x-naru-replayed": _header("`true` when this was answered before, to the same `Idempotency-Key`."),
        "x-naru-original-request-id": _header("The id of the request that it was answered to then."),
    }
    content = {"application/json": {"schema": _reference(request), "example": example}}
    return operation | {"parameters": [_IDEMPOTENCY_KEY], "requestBody": {"required": True, "content": content}}


def _open(description: str, *errors: int, media: str = "application/json") -> Schema:
    content = {media: {"schema": {"type": "object" if media == "application/json" else "string"}}}
    responses = {str(status): {"description": _ERRORS[status], "content": content} for status in errors}
    return {
        "summary": description,
        "description": description,
        "security": [],
        "responses": {"200": {"description": "OK", "content": content}} | responses,
    }


def _header(description: str) -> Schema:
    return {"description": description, "schema": {"type": "string"}}


def _headers() -> Schema:
    return {
        "x-request-id": _header("The request's id; yours, if you sent one."),
        "x-ratelimit-limit-requests": _header("The tightest limit on requests, if there is one."),
        "x-ratelimit-remaining-requests": _header("What is left of it."),
        "x-ratelimit-reset-requests": _header("Time until all of it is free again, such as 6m0s."),
        "x-ratelimit-limit-tokens": _header("The tightest limit on tokens, if there is one."),
        "x-ratelimit-remaining-tokens": _header("What is left of it."),
        "x-ratelimit-reset-tokens": _header("Time until all of it is free again."),
        "x-naru-cost": _header("What a whole answer cost, in units of the currency, if its model has a price."),
        "openai-processing-ms": _header("Milliseconds until the answer began."),
        "server-timing": _header("Where the time went."),
    }


def _field(kind: str, description: str, **more: Any) -> Schema:
    return {"type": kind, "description": description, **more}


def _object(properties: dict[str, Schema], required: tuple[str, ...] = (), *, extra: bool = False) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": extra}


def _sampling() -> dict[str, Schema]:
    return {
        "model": _field("string", "The model, as /v1/models lists it."),
        "stream": _field("boolean", "Whether to answer as it is generated.", default=False),
        "usage": _object({"include": _field("boolean", "Tell the usage with its cost, also at the end of a stream.")}),
        "stream_options": _object(
            {
                "include_usage": _field("boolean", "End with a chunk that tells the usage."),
                "continuous_usage_stats": _field("boolean", "Tell the usage so far in every chunk."),
            }
        )
        | {"description": "Only with `stream`."},
        "n": _field("integer", "How many choices.", minimum=1, maximum=128, default=1),
        "temperature": _field("number", "0 takes the likeliest token.", minimum=0, maximum=2),
        "top_p": _field("number", "Chooses from the likeliest tokens with this probability together.", maximum=1),
        "max_tokens": _field("integer", "Most tokens to generate per choice.", minimum=1),
        "stop": {"description": "Up to four texts that end a choice.", "type": ["string", "array", "null"]},
        "seed": _field("integer", "For reproducible sampling."),
        "presence_penalty": _field("number", "Above 0 favours what was not said yet.", minimum=-2, maximum=2),
        "frequency_penalty": _field("number", "Above 0 disfavours what was said often.", minimum=-2, maximum=2),
    }


def _answer(kind: str, choice: dict[str, Schema]) -> Schema:
    common = {
        "index": _field("integer", "Which choice."),
        "logprobs": {"type": ["object", "null"], "description": "Log-probabilities, when asked for."},
        "finish_reason": _field("string", "Why it ended: stop or length."),
        "stop_reason": {"type": ["string", "integer", "null"], "description": "The stop text or token that ended it."},
    }
    return _object(
        {
            "id": _field("string", "Id of the answer."),
            "object": {"const": kind},
            "created": _field("integer", "Seconds since the Unix epoch."),
            "model": _field("string", "The model that answered."),
            "choices": {"type": "array", "items": _object(choice | common, extra=True)},
            "usage": _reference("Usage"),
            "system_fingerprint": {"type": "null"},
        }
    )


def _schemas() -> dict[str, Schema]:
    tokens = {"type": "integer"}
    message = _object(
        {
            "role": _field("string", "system, developer, user, assistant or tool."),
            "content": {"type": ["string", "array", "null"], "description": "Text, or parts."},
        },
        ("role",),
        extra=True,
    )
    chat = _sampling() | {
        "messages": {"type": "array", "items": message, "description": "The conversation, oldest first."},
        "max_completion_tokens": _field("integer", "Most tokens to generate per choice.", minimum=1),
        "logprobs": _field("boolean", "Whether to tell log-probabilities."),
        "top_logprobs": _field("integer", "How many of the likeliest tokens to tell."),
    }
    completion = _sampling() | {
        "prompt": {"type": ["string", "array"], "description": "A text, token ids, or several of either."},
        "logprobs": _field("integer", "How many of the likeliest tokens to tell."),
    }
    model = _object(
        {
            "id": _field("string", "Its name in requests."),
            "object": {"const": "model"},
            "created": _field("integer", "When it was loaded, in seconds since the Unix epoch."),
            "owned_by": _field("string", "naru, or simulated."),
            "max_model_len": _field("integer", "Most tokens of prompt and answer together."),
        }
    )
    error = {
        "message": _field("string", "What is wrong, in a sentence."),
        "type": _field("string", "Kind of error."),
        "param": {"type": ["string", "null"], "description": "The field that is wrong."},
        "code": {"type": ["string", "null"], "description": "For programs."},
    }
    usage = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), tokens) | {
        "prompt_tokens_details": _object({"cached_tokens": tokens}),
        "completion_tokens_details": _object({"reasoning_tokens": tokens}),
        "cost": _field("number", "In units of the currency; when asked for by `usage.include`."),
    }
    reply = {"message": _object({"role": {"const": "assistant"}, "content": {"type": "string"}}, extra=True)}
    return {
        "ChatCompletionRequest": _object(chat, ("model", "messages"), extra=True),
        "CompletionRequest": _object(completion, ("model", "prompt"), extra=True),
        "ChatCompletion": _answer("chat.completion", reply),
        "Completion": _answer("text_completion", {"text": {"type": "string"}}),
        "Usage": _object(usage),
        "Model": model,
        "ModelList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": _reference("Model")}}),
        "Error": _object({"error": _object(error)}),
    }
