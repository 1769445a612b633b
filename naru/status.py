"""The only map between `NaruError` and a gRPC status."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from naru.convert import duration_from_proto, duration_to_proto
from naru.errors import NaruError, Reason

DOMAIN = "naru"

GRPC_CODES: dict[Reason, grpc.StatusCode] = {
    Reason.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CONTEXT_LENGTH_EXCEEDED: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.CREDENTIALS_MISSING: grpc.StatusCode.UNAUTHENTICATED,
    Reason.INVALID_API_KEY: grpc.StatusCode.UNAUTHENTICATED,
    Reason.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Reason.MODEL_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Reason.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Reason.RATE_LIMIT_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.CONCURRENCY_LIMIT_EXCEEDED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.REQUEST_EXCEEDS_LIMIT: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.INSUFFICIENT_QUOTA: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Reason.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Reason.PAYLOAD_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Reason.OVERLOADED: grpc.StatusCode.UNAVAILABLE,
    Reason.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Reason.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Reason.CANCELLED: grpc.StatusCode.CANCELLED,
    Reason.NOT_SUPPORTED: grpc.StatusCode.UNIMPLEMENTED,
    Reason.INTERNAL: grpc.StatusCode.INTERNAL,
    Reason.IDEMPOTENCY_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Reason.IDEMPOTENCY_IN_FLIGHT: grpc.StatusCode.ABORTED,
    Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT: grpc.StatusCode.ALREADY_EXISTS,
    Reason.INVALID_CREDENTIALS: grpc.StatusCode.UNAUTHENTICATED,
}


def error_to_status(error: NaruError) -> status_pb2.Status:
    """The status an RPC fails with: one ErrorInfo, and RetryInfo where waiting helps."""
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata))]
    if error.retry_after is not None:
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=duration_to_proto(error.retry_after))))
    return status_pb2.Status(code=GRPC_CODES[error.reason].value[0], message=error.message, details=details)


def error_from_rpc(failure: grpc.aio.AioRpcError, service: str) -> NaruError:
    """The error behind a failed call to `service`; a status of gRPC itself is put into the family."""
    status = rpc_status.from_call(failure)
    if status is not None:
        error = _from_details(status)
        if error is not None:
            return error
    match failure.code():
        case grpc.StatusCode.UNAVAILABLE:
            return NaruError(
                Reason.SERVICE_UNAVAILABLE,
                f"The {service} service is not available right now.",
                metadata={"service": service},
                retry_after=1.0,
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return NaruError(Reason.DEADLINE_EXCEEDED, f"The {service} service did not answer in time.")
        case grpc.StatusCode.CANCELLED:
            return NaruError(Reason.CANCELLED, "The call was cancelled.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return NaruError(Reason.NOT_SUPPORTED, f"The {service} service does not know this call.")
        case _:
            return NaruError(Reason.INTERNAL, f"The {service} service failed.")


def _from_details(status: status_pb2.Status) -> NaruError | None:
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    found, retry_after = False, None
    for detail in status.details:
        if detail.Unpack(info):
            found = info.domain == DOMAIN
        elif detail.Unpack(retry):
            retry_after = duration_from_proto(retry.retry_delay)
    if not found:
        return None
    try:
        reason = Reason(info.reason)
    except ValueError:
        reason = Reason.INTERNAL
    return NaruError(reason, status.message, metadata=dict(info.metadata), retry_after=retry_after)


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
