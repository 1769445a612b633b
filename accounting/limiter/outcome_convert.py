"""Between the messages about idempotency keys and accounting's own types. Raises NaruError INVALID_ARGUMENT."""

from __future__ import annotations

from accounting import checks
from accounting.idempotency import MAX_KEY, MAX_OUTCOME_BYTES, Fate, Idempotency, KeptOutcome
from naru.api.accounting.v1 import quota_service_pb2
from naru.convert import principal_from_proto
from naru.errors import invalid_argument

_DIGEST_BYTES = 32
_FATES = {
    quota_service_pb2.OUTCOME_FATE_ANSWERED: Fate.ANSWERED,
    quota_service_pb2.OUTCOME_FATE_TOO_LARGE: Fate.TOO_LARGE,
    quota_service_pb2.OUTCOME_FATE_FAILED: Fate.FAILED,
}


def idempotency_from_proto(message: quota_service_pb2.Reservation) -> Idempotency | None:
    """The key of a reservation; None when it has none."""
    if not message.HasField("idempotency"):
        return None
    given = message.idempotency
    if len(given.body_digest) != _DIGEST_BYTES:
        raise invalid_argument("idempotency.body_digest", f"idempotency.body_digest must have {_DIGEST_BYTES} bytes.")
    return Idempotency(_key("idempotency.key", given.key), given.body_digest)


def outcome_from_proto(request: quota_service_pb2.KeepOutcomeRequest) -> KeptOutcome:
    """What became of an event."""
    fate = _FATES.get(request.fate)
    if fate is None:
        raise invalid_argument("fate", "fate must be set to a known value.")
    size = len(request.outcome)
    if size > MAX_OUTCOME_BYTES or (size > 0) is not (fate is Fate.ANSWERED):
        raise invalid_argument(
            "outcome", f"outcome must have 1 to {MAX_OUTCOME_BYTES} bytes when the request was answered, else none."
        )
    return KeptOutcome(
        checks.event_ref(request.event_id, 0).event_id,
        checks.principal(principal_from_proto(request.principal)),
        _key("key", request.key),
        fate,
        request.outcome,
    )


def _key(field: str, value: str) -> str:
    if not 1 <= len(value) <= MAX_KEY or not (value.isascii() and value.isprintable()):
        raise invalid_argument(field, f"{field} must have 1 to {MAX_KEY} printable ASCII characters.")
    return value
