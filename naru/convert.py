"""Between the messages of `naru.api.common.v1` and the kit's own types."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from naru.api.accounting.v1 import usage_event_pb2
from naru.api.common.v1 import error_pb2, error_reason_pb2, principal_pb2, usage_pb2
from naru.errors import NaruError, Reason
from naru.identity import Principal, Role, Scopes
from naru.usage import Accuracy, Evidence, Outcome, Usage

_ROLES = {
    Role.USER: principal_pb2.ROLE_USER,
    Role.WORKSPACE_ADMIN: principal_pb2.ROLE_WORKSPACE_ADMIN,
    Role.ADMIN: principal_pb2.ROLE_ADMIN,
}
_ROLES_BACK = {value: role for role, value in _ROLES.items()}
_EVIDENCES = {
    Evidence.ACCEPTED: usage_event_pb2.EVIDENCE_ACCEPTED,
    Evidence.DELIVERED: usage_event_pb2.EVIDENCE_DELIVERED,
    Evidence.FINAL: usage_event_pb2.EVIDENCE_FINAL,
}
_EVIDENCES_BACK = {value: evidence for evidence, value in _EVIDENCES.items()}
_ACCURACIES = {
    Accuracy.EXACT: usage_event_pb2.ACCURACY_EXACT,
    Accuracy.REPORTED: usage_event_pb2.ACCURACY_REPORTED,
    Accuracy.ESTIMATED: usage_event_pb2.ACCURACY_ESTIMATED,
}
_ACCURACIES_BACK = {value: accuracy for accuracy, value in _ACCURACIES.items()}
_OUTCOMES = {
    Outcome.COMPLETED: usage_event_pb2.OUTCOME_COMPLETED,
    Outcome.ABORTED: usage_event_pb2.OUTCOME_ABORTED,
    Outcome.FAILED: usage_event_pb2.OUTCOME_FAILED,
}
_OUTCOMES_BACK = {value: outcome for outcome, value in _OUTCOMES.items()}

# Callers that are remembered, by what they are on the wire.
_PRINCIPALS = 4_096


def role_to_proto(role: Role) -> principal_pb2.Role.ValueType:
    """The role on the wire."""
    return _ROLES[role]


def role_from_proto(value: principal_pb2.Role.ValueType) -> Role:
    """The role; an unspecified or unknown one is the least powerful."""
    return _ROLES_BACK.get(value, Role.USER)


def scopes_to_proto(scopes: Scopes) -> principal_pb2.Scopes:
    """The scopes on the wire."""
    return principal_pb2.Scopes(models=scopes.models, endpoints=scopes.endpoints, source_cidrs=scopes.source_cidrs)


def scopes_from_proto(message: principal_pb2.Scopes) -> Scopes:
    """The scopes."""
    return Scopes(tuple(message.models), tuple(message.endpoints), tuple(message.source_cidrs))


@lru_cache(_PRINCIPALS)
def principal_to_proto(principal: Principal) -> principal_pb2.Principal:
    """The principal on the wire; do not change it: the same callers come again and again, and are given the same message."""
    return principal_pb2.Principal(
        key_id=principal.key_id,
        user_id=principal.user_id,
        service_account=principal.service_account,
        workspace_id=principal.workspace_id,
        role=role_to_proto(principal.role),
        tier=principal.tier,
        scopes=scopes_to_proto(principal.scopes),
    )


def principal_from_proto(message: principal_pb2.Principal) -> Principal:
    """The principal."""
    return _principal_from_bytes(message.SerializeToString())


@lru_cache(_PRINCIPALS)
def _principal_from_bytes(serialised: bytes) -> Principal:
    message = principal_pb2.Principal.FromString(serialised)
    return Principal(
        workspace_id=message.workspace_id,
        role=role_from_proto(message.role),
        tier=message.tier or "free",
        key_id=message.key_id,
        user_id=message.user_id,
        service_account=message.service_account,
        scopes=scopes_from_proto(message.scopes),
    )


def usage_to_proto(usage: Usage) -> usage_pb2.Usage:
    """The usage on the wire."""
    return usage_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_prompt_tokens=usage.cached_prompt_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def usage_from_proto(message: usage_pb2.Usage) -> Usage:
    """The usage."""
    return Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_prompt_tokens=message.cached_prompt_tokens,
        reasoning_tokens=message.reasoning_tokens,
    )


def evidence_to_proto(evidence: Evidence) -> usage_event_pb2.Evidence.ValueType:
    """The evidence on the wire, where every report has some."""
    return _EVIDENCES[evidence]


def evidence_from_proto(value: usage_event_pb2.Evidence.ValueType) -> Evidence | None:
    """The evidence; None for an unspecified or unknown one."""
    return _EVIDENCES_BACK.get(value)


def accuracy_to_proto(accuracy: Accuracy) -> usage_event_pb2.Accuracy.ValueType:
    """The accuracy on the wire."""
    return _ACCURACIES[accuracy]


def accuracy_from_proto(value: usage_event_pb2.Accuracy.ValueType) -> Accuracy | None:
    """The accuracy; None for an unspecified or unknown one."""
    return _ACCURACIES_BACK.get(value)


def outcome_to_proto(outcome: Outcome) -> usage_event_pb2.Outcome.ValueType:
    """The outcome on the wire."""
    return _OUTCOMES[outcome]


def outcome_from_proto(value: usage_event_pb2.Outcome.ValueType) -> Outcome | None:
    """The outcome; None for an unspecified or unknown one."""
    return _OUTCOMES_BACK.get(value)


def reason_to_proto(reason: Reason) -> error_reason_pb2.ErrorReason.ValueType:
    """The reason on the wire."""
    return error_reason_pb2.ErrorReason.Value(f"ERROR_REASON_{reason}")


def reason_from_proto(value: error_reason_pb2.ErrorReason.ValueType) -> Reason:
    """The reason; one that this build does not know is INTERNAL."""
    try:
        return Reason(error_reason_pb2.ErrorReason.Name(value).removeprefix("ERROR_REASON_"))
    except ValueError:
        return Reason.INTERNAL


def error_to_proto(error: NaruError) -> error_pb2.Error:
    """The error as a field of a message."""
    message = error_pb2.Error(reason=reason_to_proto(error.reason), message=error.message, metadata=error.metadata)
    if error.retry_after is not None:
        message.retry_delay.CopyFrom(duration_to_proto(error.retry_after))
    return message


def error_from_proto(message: error_pb2.Error) -> NaruError:
    """The error."""
    return NaruError(
        reason_from_proto(message.reason),
        message.message,
        metadata=dict(message.metadata),
        retry_after=duration_from_proto(message.retry_delay) if message.HasField("retry_delay") else None,
    )


def timestamp_to_proto(seconds: float) -> Timestamp:
    """A moment, from seconds since the Unix epoch, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return Timestamp(seconds=whole, nanos=micros * 1_000)


def timestamp_from_proto(message: Timestamp) -> float:
    """Seconds since the Unix epoch, to the microsecond."""
    return message.seconds + message.nanos // 1_000 / 1_000_000


def duration_to_proto(seconds: float) -> Duration:
    """A span of time, from seconds, to the microsecond."""
    whole, micros = divmod(round(seconds * 1_000_000), 1_000_000)
    return Duration(seconds=whole, nanos=micros * 1_000)


def duration_from_proto(message: Duration) -> float:
    """Seconds."""
    return message.seconds + message.nanos / 1_000_000_000
