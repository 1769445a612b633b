"""Between the messages about models, adapters and the replica, and the service's own types."""

from __future__ import annotations

from inference.control import ReplicaState, ReplicaStatus
from inference.engine import ServedModel
from inference.engine_control import Adapter
from naru.api.inference.v1 import control_service_pb2, model_service_pb2
from naru.convert import duration_from_proto, timestamp_to_proto
from naru.errors import invalid_argument

_MOST_WAIT, _DEFAULT_WAIT = 25.0, 20.0
_STATES = {
    ReplicaState.SERVING: control_service_pb2.REPLICA_STATE_SERVING,
    ReplicaState.PAUSED: control_service_pb2.REPLICA_STATE_PAUSED,
    ReplicaState.DRAINING: control_service_pb2.REPLICA_STATE_DRAINING,
    ReplicaState.SLEEPING: control_service_pb2.REPLICA_STATE_SLEEPING,
    ReplicaState.UPSTREAM_AWAY: control_service_pb2.REPLICA_STATE_UPSTREAM_AWAY,
}


def model_to_proto(model: ServedModel) -> model_service_pb2.Model:
    """A model that can be asked for by name."""
    return model_service_pb2.Model(
        name=model.name,
        owned_by=model.owned_by,
        create_time=timestamp_to_proto(model.create_time),
        context_tokens=model.context_tokens,
        parent=model.parent,
    )


def adapter_to_proto(adapter: Adapter, requests: int = 0) -> model_service_pb2.Adapter:
    """An adapter that is loaded."""
    return model_service_pb2.Adapter(
        name=adapter.name,
        path=adapter.shown_path,
        model=adapter.model,
        rank=adapter.rank,
        configured=adapter.configured,
        load_time=timestamp_to_proto(adapter.load_time),
        requests=requests,
    )


def wait_from_proto(request: model_service_pb2.UnloadAdapterRequest) -> float:
    """How many seconds to wait for requests that use an adapter. Raises NaruError INVALID_ARGUMENT."""
    if not request.HasField("wait"):
        return _DEFAULT_WAIT
    wait = duration_from_proto(request.wait)
    if not 0 <= wait <= _MOST_WAIT:
        raise invalid_argument("wait", f"`wait` must be from 0 to {_MOST_WAIT:.0f} seconds.")
    return wait


def replica_to_proto(status: ReplicaStatus) -> control_service_pb2.Replica:
    """How a replica is."""
    return control_service_pb2.Replica(
        state=_STATES[status.state], name=status.name, requests=status.requests, models=status.models
    )
