"""The one closed family of errors, free of any transport.

Servicers and domain code raise `NaruError`; `naru.status` is the only place that knows how it looks as a gRPC status,
`edge.http_errors` the only one that knows how it looks over HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Reason(StrEnum):
    """Why something failed: the names of `naru.api.common.v1.ErrorReason` without their prefix, documented there."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    CONTEXT_LENGTH_EXCEEDED = "CONTEXT_LENGTH_EXCEEDED"
    CREDENTIALS_MISSING = "CREDENTIALS_MISSING"
    INVALID_API_KEY = "INVALID_API_KEY"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    RATE_LIMIT_EXCEEDED = "RATE_LIMIT_EXCEEDED"
    CONCURRENCY_LIMIT_EXCEEDED = "CONCURRENCY_LIMIT_EXCEEDED"
    REQUEST_EXCEEDS_LIMIT = "REQUEST_EXCEEDS_LIMIT"
    INSUFFICIENT_QUOTA = "INSUFFICIENT_QUOTA"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    OVERLOADED = "OVERLOADED"
    SERVICE_UNAVAILABLE = "SERVICE_UNAVAILABLE"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    CANCELLED = "CANCELLED"
    NOT_SUPPORTED = "NOT_SUPPORTED"
    INTERNAL = "INTERNAL"
    IDEMPOTENCY_CONFLICT = "IDEMPOTENCY_CONFLICT"
    IDEMPOTENCY_IN_FLIGHT = "IDEMPOTENCY_IN_FLIGHT"
    IDEMPOTENCY_OUTCOME_NOT_KEPT = "IDEMPOTENCY_OUTCOME_NOT_KEPT"
    INVALID_CREDENTIALS = "INVALID_CREDENTIALS"


class NaruError(Exception):
    """A failure whose text may be shown to the caller.

    Args:
        reason: Why, from the closed list.
        message: What to tell the caller, a sentence. Never holds secrets, keys or prompts.
        metadata: The keys that `ErrorReason` documents for the reason.
        retry_after: Seconds after which trying again may help; None when waiting does not help.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        self.retry_after = retry_after

    def __eq__(self, other: object) -> bool:
        """Two errors are equal when a caller could not tell them apart."""
        return isinstance(other, NaruError) and self._face() == other._face()

    def __hash__(self) -> int:
        return hash((self.reason, self.message))

    def __repr__(self) -> str:
        return f"NaruError({self.reason}, {self.message!r}, metadata={self.metadata}, retry_after={self.retry_after})"

    def _face(self) -> tuple[Reason, str, dict[str, str], float | None]:
        return self.reason, self.message, self.metadata, self.retry_after


def invalid_argument(field: str, message: str) -> NaruError:
    """A field of the request is wrong; `message` says what is allowed."""
    return NaruError(Reason.INVALID_ARGUMENT, message, metadata={"field": field})


def not_found(resource: str, name: str) -> NaruError:
    """A named resource does not exist."""
    return NaruError(
        Reason.NOT_FOUND, f"There is no {resource} {name!r}.", metadata={"resource": resource, "name": name}
    )


def unavailable(service: str, message: str | None = None, *, retry_after: float = 1.0) -> NaruError:
    """A service, its database or its engine is away, starting or draining."""
    return NaruError(
        Reason.SERVICE_UNAVAILABLE,
        message or f"The {service} service is not available right now.",
        metadata={"service": service},
        retry_after=retry_after,
    )


def invalid_api_key() -> NaruError:
    """The credential is no good. One text for every cause, so that nothing can be probed."""
    return NaruError(Reason.INVALID_API_KEY, "Incorrect API key provided.")
