"""Accounting's catalogue as a test scripts it: any unary RPC, recorded, and answered with what it was told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from naru.api.accounting.v1 import budget_service_pb2, ledger_service_pb2, pricing_service_pb2, tier_service_pb2
from naru.context import current
from naru.errors import NaruError
from naru.identity import Caller

_METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (budget_service_pb2, ledger_service_pb2, pricing_service_pb2, tier_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


@dataclass(frozen=True)
class RecordedCall:
    """One call: service and method, what was asked, by whom, and the request id that came with it."""

    name: str
    request: Any
    caller: Caller
    request_id: str


class RecordedRpcs:
    """What was asked, and what to answer.

    Attributes:
        calls: In order.
        answers: By service and method, such as "TierService/GetTier"; an empty response where there is none.
    """

    def __init__(self) -> None:
        self.calls: list[RecordedCall] = []
        self.answers: dict[str, Message | NaruError] = {}

    def answer(self, name: str, request: Any, response: type[Message]) -> Any:
        """Records the call and answers it. Raises the NaruError that it was told to."""
        asked = current()
        self.calls.append(RecordedCall(name, request, asked.caller, asked.request_id))
        answer = self.answers.get(name)
        if isinstance(answer, NaruError):
            raise answer
        return response() if answer is None else answer

    def add_to_server(self, _: Any, server: Any) -> None:
        """As the generated `add_...Servicer_to_server`."""
        server.add_generic_rpc_handlers((_Catalogue(self),))


class _Catalogue(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, rpcs: RecordedRpcs) -> None:
        self._rpcs = rpcs

    def service(self, details: Any) -> Any:
        method = _METHODS.get(details.method)
        if method is None:
            return None
        request_class, response_class = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
        name = f"{method.containing_service.name}/{method.name}"

        async def unary(request: Any, context: Any) -> Any:
            return self._rpcs.answer(name, request, response_class)

        return grpc.unary_unary_rpc_method_handler(
            unary, request_deserializer=request_class.FromString, response_serializer=response_class.SerializeToString
        )
