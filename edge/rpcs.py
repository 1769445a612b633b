"""The unary RPCs that the platform's own REST is made of, by name."""

from __future__ import annotations

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from naru.api.accounting.v1 import (
    budget_service_pb2,
    ledger_service_pb2,
    pricing_service_pb2,
    quota_service_pb2,
    tier_service_pb2,
    usage_service_pb2,
)
from naru.api.auth.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    session_service_pb2,
    user_service_pb2,
    workspace_service_pb2,
)
from naru.api.inference.v1 import control_service_pb2, model_service_pb2

_RPCS: dict[str, MethodDescriptor] = {
    f"{service.name}/{method.name}": method
    for module in (
        api_key_service_pb2,
        audit_service_pb2,
        budget_service_pb2,
        control_service_pb2,
        ledger_service_pb2,
        model_service_pb2,
        pricing_service_pb2,
        quota_service_pb2,
        tier_service_pb2,
        usage_service_pb2,
        session_service_pb2,
        user_service_pb2,
        workspace_service_pb2,
    )
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


class Rpc:
    """One RPC, and which service answers: its domain, such as "accounting".

    Args:
        name: Service and method, such as "TierService/GetTier". Raises KeyError when there is none.
    """

    def __init__(self, name: str) -> None:
        method = _RPCS[name]
        assert method.containing_service is not None  # noqa: S101 -- every method is of a service
        self.path = f"/{method.containing_service.full_name}/{method.name}"
        self.domain = self.path.split(".")[2]
        self.input = method.input_type
        self.output = method.output_type
        self.request: type[Message] = GetMessageClass(method.input_type)
        self.response: type[Message] = GetMessageClass(method.output_type)
