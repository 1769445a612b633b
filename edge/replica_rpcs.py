"""Calls to one inference replica for somebody: what an edge alone can check of them, and its way there."""

from __future__ import annotations

from collections.abc import Callable, Collection

from google.protobuf.message import Message

from edge.clients import RpcClient
from edge.generation import ServedModel
from edge.rpcs import Rpc
from naru.api.inference.v1 import control_service_pb2, model_service_pb2
from naru.errors import NaruError, Reason
from naru.identity import Principal


class ReplicaRpcs:
    """Implements `edge.routes.platform.Rpcs` with one replica.

    Args:
        address: The replica's host:port.
        rpcs: The way there.
        aliases: Names that clients may ask for instead of a served model.
        models: What all replicas serve.
    """

    def __init__(
        self, address: str, rpcs: RpcClient, aliases: Collection[str], models: Callable[[], Collection[ServedModel]]
    ) -> None:
        self._address = address
        self._rpcs = rpcs
        self._aliases = aliases
        self._models = models

    async def call(self, rpc: Rpc, request: Message, *, on_behalf_of: Principal | None) -> Message:
        """See `Rpcs`. Of a replica that does not answer, GetReplica says so."""
        if isinstance(request, model_service_pb2.LoadAdapterRequest):
            self._check_name(request.adapter.name)
        try:
            response = await self._rpcs.call(rpc, request, on_behalf_of=on_behalf_of)
        except NaruError as error:
            unreachable = error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED)
            if not unreachable or not isinstance(request, control_service_pb2.GetReplicaRequest):
                raise
            gone = control_service_pb2.Replica(state=control_service_pb2.REPLICA_STATE_UNREACHABLE)
            response = control_service_pb2.GetReplicaResponse(replica=gone)
        if isinstance(replica := getattr(response, "replica", None), control_service_pb2.Replica):
            replica.address = self._address
        return response

    def _check_name(self, name: str) -> None:
        """A replica knows neither aliases nor what others serve."""
        bases = [model.name for model in self._models() if not model.parent]
        taken = {*self._aliases, *bases}
        if taken & {name, *(f"{base}:{name}" for base in bases)}:
            raise NaruError(
                Reason.ALREADY_EXISTS,
                f"There is a model or an alias named {name!r} already.",
                metadata={"resource": "adapter", "name": name},
            )
