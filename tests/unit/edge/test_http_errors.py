"""How errors look over HTTP."""

from __future__ import annotations

import json
import math
from pathlib import Path

import anthropic
import httpx
import openai
import pytest

from edge.http_errors import FACES, http_error, plain_error
from naru.errors import NaruError, Reason, invalid_argument


def test_every_reason_has_a_face() -> None:
    """A reason without a face would be a 500 of its own."""
    assert set(FACES) == set(Reason)


def test_the_docs_table_tells_the_faces() -> None:
    """docs/errors.md names each reason with its status, type and code."""
    table = (Path(__file__).parents[3] / "docs/errors.md").read_text()
    rows = {
        cells[0]: tuple(cells[2:5])
        for line in table.splitlines()
        if line.startswith("| `") and (cells := [cell.strip(" `") for cell in line.strip("|").split("|")])
    }
    # Nobody is there to be sent CANCELLED.
    assert rows.pop(Reason.CANCELLED) == ("499", "", "")
    faces = {reason: face for reason, face in FACES.items() if reason is not Reason.CANCELLED}
    assert rows == {reason: (str(face.status), face.type, face.code or "null") for reason, face in faces.items()}


@pytest.mark.parametrize(
    ("reason", "status", "code", "exception"),
    [
        (Reason.INVALID_ARGUMENT, 400, None, openai.BadRequestError),
        (Reason.CONTEXT_LENGTH_EXCEEDED, 400, "context_length_exceeded", openai.BadRequestError),
        (Reason.CREDENTIALS_MISSING, 401, None, openai.AuthenticationError),
        (Reason.INVALID_API_KEY, 401, "invalid_api_key", openai.AuthenticationError),
        (Reason.PERMISSION_DENIED, 403, "permission_denied", openai.PermissionDeniedError),
        (Reason.MODEL_NOT_FOUND, 404, "model_not_found", openai.NotFoundError),
        (Reason.NOT_FOUND, 404, "not_found", openai.NotFoundError),
        (Reason.ALREADY_EXISTS, 409, "already_exists", openai.ConflictError),
        (Reason.RATE_LIMIT_EXCEEDED, 429, "rate_limit_exceeded", openai.RateLimitError),
        (Reason.CONCURRENCY_LIMIT_EXCEEDED, 429, "rate_limit_exceeded", openai.RateLimitError),
        (Reason.REQUEST_EXCEEDS_LIMIT, 429, "rate_limit_exceeded", openai.RateLimitError),
        (Reason.INSUFFICIENT_QUOTA, 429, "insufficient_quota", openai.RateLimitError),
        (Reason.FAILED_PRECONDITION, 400, "failed_precondition", openai.BadRequestError),
        (Reason.PAYLOAD_TOO_LARGE, 413, "payload_too_large", openai.APIStatusError),
        (Reason.OVERLOADED, 503, "overloaded", openai.InternalServerError),
        (Reason.SERVICE_UNAVAILABLE, 503, "service_unavailable", openai.InternalServerError),
        (Reason.DEADLINE_EXCEEDED, 504, "timeout", openai.InternalServerError),
        (Reason.CANCELLED, 499, "cancelled", openai.APIStatusError),
        (Reason.NOT_SUPPORTED, 400, "unsupported_parameter", openai.BadRequestError),
        (Reason.INTERNAL, 500, "internal_error", openai.InternalServerError),
        (Reason.IDEMPOTENCY_CONFLICT, 409, "idempotency_key_reused", openai.ConflictError),
        (Reason.IDEMPOTENCY_IN_FLIGHT, 409, "idempotency_key_in_use", openai.ConflictError),
        (Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT, 409, "idempotency_outcome_not_kept", openai.ConflictError),
    ],
)
def test_the_sdk_raises_the_right_class(
    reason: Reason, status: int, code: str | None, exception: type[openai.APIStatusError]
) -> None:
    """Each reason has its status and code, and the SDK turns them into the class that programs catch."""
    error = http_error(NaruError(reason, "Text."))
    answer = httpx.Response(
        error.status, content=error.body, headers=error.headers, request=httpx.Request("POST", "http://x")
    )
    raised = openai.OpenAI(api_key="x")._make_status_error_from_response(answer)
    assert type(raised) is exception
    assert (raised.status_code, raised.code) == (status, code)
    assert "Text." in raised.message


def test_field_becomes_param() -> None:
    """The field that is wrong stands in `param`."""
    error = json.loads(http_error(invalid_argument("temperature", "Too hot.")).body)["error"]
    assert error == {"message": "Too hot.", "type": "invalid_request_error", "param": "temperature", "code": None}


def test_time_to_wait() -> None:
    """Whole seconds are rounded up and never 0; milliseconds are exact enough."""
    for delay, seconds, milliseconds in ((0.001, "1", "1"), (1.2, "2", "1200"), (59.9995, "60", "60000")):
        headers = http_error(NaruError(Reason.RATE_LIMIT_EXCEEDED, "x", retry_after=delay)).headers
        assert (headers["Retry-After"], headers["Retry-After-Ms"]) == (seconds, milliseconds)
        assert "X-Should-Retry" not in headers


@pytest.mark.parametrize("reason", [Reason.REQUEST_EXCEEDS_LIMIT, Reason.INSUFFICIENT_QUOTA, Reason.DEADLINE_EXCEEDED])
def test_hopeless_retries_are_discouraged(reason: Reason) -> None:
    """Where waiting does not help, clients are told so."""
    headers = http_error(NaruError(reason, "x")).headers
    assert headers["X-Should-Retry"] == "false"
    assert "Retry-After" not in headers


@pytest.mark.parametrize(
    ("reason", "delay"),
    [
        (Reason.INSUFFICIENT_QUOTA, 5.0),
        (Reason.INSUFFICIENT_QUOTA, 1_900_000.0),
        (Reason.RATE_LIMIT_EXCEEDED, 60.5),
        (Reason.RATE_LIMIT_EXCEEDED, 80_000.0),
    ],
)
def test_no_sdk_sleeps_until_a_long_wait_is_over(reason: Reason, delay: float) -> None:
    """A spent budget, and a limit that is far from refilling, tell when to come back and that no SDK should wait for it."""
    headers = http_error(NaruError(reason, "x", retry_after=delay)).headers
    assert headers["X-Should-Retry"] == "false"
    assert headers["Retry-After"] == str(math.ceil(delay))
    answer = httpx.Response(429, headers=headers, request=httpx.Request("POST", "http://x"))
    assert not openai.OpenAI(api_key="x")._should_retry(answer)
    assert not anthropic.Anthropic(api_key="x")._should_retry(answer)


def test_type_tells_which_limit() -> None:
    """OpenAI's type names what ran out: requests or tokens."""
    for kind, shown in (("requests", "requests"), ("input_tokens", "tokens"), ("total_tokens", "tokens")):
        error = NaruError(Reason.RATE_LIMIT_EXCEEDED, "x", metadata={"kind": kind}, retry_after=1)
        assert json.loads(http_error(error).body)["error"]["type"] == shown


def test_plain_errors() -> None:
    """Errors of HTTP itself have the same shape."""
    assert json.loads(plain_error(404, "Nothing here.", "unknown_url").body)["error"] == {
        "message": "Nothing here.",
        "type": "invalid_request_error",
        "param": None,
        "code": "unknown_url",
    }
