"""The only map from `NaruError` to HTTP: status, OpenAI's error object, and the headers that tell clients whether to retry."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from naru.errors import NaruError, Reason


@dataclass(frozen=True, slots=True)
class Face:
    """How one reason looks over HTTP. `code` None stands for JSON's null, as OpenAI sends it."""

    status: int
    type: str
    code: str | None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class HttpError:
    """An error ready to be sent. `body` is JSON."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


_INVALID, _SERVER = "invalid_request_error", "server_error"
FACES: dict[Reason, Face] = {
    Reason.INVALID_ARGUMENT: Face(400, _INVALID, None),
    Reason.CONTEXT_LENGTH_EXCEEDED: Face(400, _INVALID, "context_length_exceeded", "messages"),
    Reason.CREDENTIALS_MISSING: Face(401, _INVALID, None),
    Reason.INVALID_API_KEY: Face(401, _INVALID, "invalid_api_key"),
    Reason.PERMISSION_DENIED: Face(403, "permission_error", "permission_denied"),
    Reason.MODEL_NOT_FOUND: Face(404, _INVALID, "model_not_found", "model"),
    Reason.NOT_FOUND: Face(404, _INVALID, "not_found"),
    Reason.ALREADY_EXISTS: Face(409, _INVALID, "already_exists"),
    Reason.RATE_LIMIT_EXCEEDED: Face(429, "requests", "rate_limit_exceeded"),
    Reason.CONCURRENCY_LIMIT_EXCEEDED: Face(429, "requests", "rate_limit_exceeded"),
    Reason.REQUEST_EXCEEDS_LIMIT: Face(429, "tokens", "rate_limit_exceeded"),
    Reason.INSUFFICIENT_QUOTA: Face(429, "insufficient_quota", "insufficient_quota"),
    Reason.FAILED_PRECONDITION: Face(400, _INVALID, "failed_precondition"),
    Reason.PAYLOAD_TOO_LARGE: Face(413, _INVALID, "payload_too_large"),
    Reason.OVERLOADED: Face(503, _SERVER, "overloaded"),
    Reason.SERVICE_UNAVAILABLE: Face(503, _SERVER, "service_unavailable"),
    Reason.DEADLINE_EXCEEDED: Face(504, _SERVER, "timeout"),
    Reason.CANCELLED: Face(499, _INVALID, "cancelled"),
    # 501 would make the OpenAI SDK retry what can never work; 400 is its BadRequestError.
    Reason.NOT_SUPPORTED: Face(400, _INVALID, "unsupported_parameter"),
    Reason.INTERNAL: Face(500, _SERVER, "internal_error"),
    Reason.IDEMPOTENCY_CONFLICT: Face(409, _INVALID, "idempotency_key_reused"),
    Reason.IDEMPOTENCY_IN_FLIGHT: Face(409, _INVALID, "idempotency_key_in_use"),
    Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT: Face(409, _INVALID, "idempotency_outcome_not_kept"),
    Reason.INVALID_CREDENTIALS: Face(401, _INVALID, "invalid_credentials"),
}
_ABOUT_THE_BODY = frozenset({Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED, Reason.CONTEXT_LENGTH_EXCEEDED})
# The SDKs retry these statuses by themselves; without a time to wait a retry fails again, or bills again what a deadline cut.
_HOPELESS_WITHOUT_DELAY = frozenset(
    {
        Reason.ALREADY_EXISTS,
        Reason.RATE_LIMIT_EXCEEDED,
        Reason.CONCURRENCY_LIMIT_EXCEEDED,
        Reason.REQUEST_EXCEEDS_LIMIT,
        Reason.DEADLINE_EXCEEDED,
        Reason.IDEMPOTENCY_CONFLICT,
        Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT,
    }
)
_MOST_SECONDS_OF_SLEEP = 60.0
"""Longer than this no SDK should sleep inside a call; Anthropic's would sleep until a month's budget begins anew."""


def http_error(error: NaruError) -> HttpError:
    """How `error` is answered."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        headers["Retry-After-Ms"] = str(math.ceil(error.retry_after * 1000))
    if not _is_worth_a_retry(error):
        headers["X-Should-Retry"] = "false"
    status = FACES[error.reason].status
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return HttpError(status, error_body(error), headers)


def _is_worth_a_retry(error: NaruError) -> bool:
    """Whether a client should ask again by itself; where not, it may still be told from when on it can."""
    if error.reason is Reason.INSUFFICIENT_QUOTA:
        return False
    if error.retry_after is None:
        return error.reason not in _HOPELESS_WITHOUT_DELAY
    return error.retry_after <= _MOST_SECONDS_OF_SLEEP


def error_body(error: NaruError) -> bytes:
    """OpenAI's error object, as a body or as the data of an event."""
    face = FACES[error.reason]
    kind = face.type
    if error.reason is Reason.RATE_LIMIT_EXCEEDED and error.metadata.get("kind", "requests") != "requests":
        kind = "tokens"
    return _body(error.message, kind, error.metadata.get("field") or face.param, face.code)


def plain_error(status: int, message: str, code: str | None = None) -> HttpError:
    """An error of HTTP itself, which no service has a reason for: a wrong path, method, host or header."""
    return HttpError(status, _body(message, _SERVER if status >= 500 else _INVALID, None, code))


def in_other_words(error: NaruError, words: Sequence[tuple[str, str]]) -> NaruError:
    """The same error as another API's client knows its body, not the chat completion that is made of it.

    Args:
        error: What is said of the chat completion.
        words: Patterns and what stands in their place.
    """
    # A field that there is not is told by the name that the client gave it, which may be that of a chat completion.
    if error.reason not in _ABOUT_THE_BODY or error.message.startswith("Unknown parameter: "):
        return error
    metadata = dict(error.metadata)
    field = metadata.get("field") or FACES[error.reason].param
    if field:
        metadata["field"] = _replaced(field, words)
    return NaruError(error.reason, _replaced(error.message, words), metadata=metadata, retry_after=error.retry_after)


def _replaced(text: str, words: Sequence[tuple[str, str]]) -> str:
    for theirs, ours in words:
        text = re.sub(theirs, ours, text)
    return text


def _body(message: str, kind: str, param: str | None, code: str | None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": param, "code": code}})
