"""What operations and schemas of the OpenAPI document are made of."""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Your name for this request, 1 to 255 printable ASCII characters: sent again within an hour of its answer,"
    " it gets the same answer and costs nothing.",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}
ERRORS = {
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
    529: "There is no capacity for anybody at the moment; `retry-after` says when to try again.",
}
GENERATING_ERRORS = (400, 401, 403, 404, 409, 413, 429, 500, 503, 504)


def reference(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_content(name: str) -> Schema:
    """A body of that schema."""
    return {"application/json": {"schema": reference(name)}}


def answer_operation(description: str, answer: str, errors: tuple[int, ...], *, error: str = "Error") -> Schema:
    """An operation that answers with one JSON object. `error`: schema of its errors."""
    responses: Schema = {"200": {"description": "OK", "content": json_content(answer), "headers": common_headers()}}
    responses |= error_responses(errors, error=error)
    return {"summary": description, "description": description, "responses": responses}


def error_responses(errors: tuple[int, ...], *, error: str = "Error") -> Schema:
    """How an operation fails, by status."""
    return {
        str(status): {"description": ERRORS[status], "content": json_content(error), "headers": common_headers()}
        for status in errors
    }


def asking_operation(
    description: str, request: str, answer: str, errors: tuple[int, ...], example: Schema, *, error: str = "Error"
) -> Schema:
    """As `answer_operation`, of a request with a body."""
    content = {"application/json": {"schema": reference(request), "example": example}}
    operation = answer_operation(description, answer, errors, error=error)
    return operation | {"requestBody": {"required": True, "content": content}}


def generating_operation(
    description: str,
    request: str,
    answer: str,
    example: Schema,
    *,
    errors: tuple[int, ...] = GENERATING_ERRORS,
    error: str = "Error",
    streams: bool = True,
) -> Schema:
    """An operation that the engine works for; with `streams` it answers as a stream or whole."""
    operation = asking_operation(description, request, answer, errors, example, error=error)
    operation["responses"]["409"]["description"] = (
        "The `Idempotency-Key` has a request already: another one (`idempotency_key_reused`), one in flight"
        " (`idempotency_key_in_use`; `retry-after` says when to try again), or one whose answer is not kept"
        " (`idempotency_outcome_not_kept`)."
    )
    if streams:
        operation["responses"]["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    operation["responses"]["200"]["headers"] |= {
        "x-naru-replayed": header("`true` when this was answered before, to the same `Idempotency-Key`."),
        "x-naru-original-request-id": header("The id of the request that it was answered to then."),
    }
    return operation | {"parameters": [IDEMPOTENCY_KEY]}


def open_operation(description: str, *errors: int, media: str = "application/json") -> Schema:
    """An operation for everybody."""
    content = {media: {"schema": {"type": "string" if media.startswith("text/") else "object"}}}
    responses = {str(status): {"description": ERRORS[status], "content": content} for status in errors}
    return {
        "summary": description,
        "description": description,
        "security": [],
        "responses": {"200": {"description": "OK", "content": content}} | responses,
    }


def header(description: str) -> Schema:
    """A header of an answer."""
    return {"description": description, "schema": {"type": "string"}}


def common_headers() -> Schema:
    """The headers of every answer."""
    return {
        "x-request-id": header("The request's id; yours, if you sent one."),
        "x-ratelimit-limit-requests": header("The tightest limit on requests, if there is one."),
        "x-ratelimit-remaining-requests": header("What is left of it."),
        "x-ratelimit-reset-requests": header("Time until all of it is free again, such as 6m0s."),
        "x-ratelimit-limit-tokens": header("The tightest limit on tokens, if there is one."),
        "x-ratelimit-remaining-tokens": header("What is left of it."),
        "x-ratelimit-reset-tokens": header("Time until all of it is free again."),
        "x-naru-cost": header("What a whole answer cost, in units of the currency, if its model has a price."),
        "openai-processing-ms": header("Milliseconds until the answer began."),
        "server-timing": header("Where the time went."),
    }


def field(kind: str, description: str, **more: Any) -> Schema:
    """A field of a JSON type."""
    return {"type": kind, "description": description, **more}


def object_schema(properties: dict[str, Schema], required: tuple[str, ...] = (), *, extra: bool = False) -> Schema:
    """An object; with `extra` it may hold fields that are not listed."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": extra}
