"""`naru models`: what each replica serves, its adapters, and holding it up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Protocol, TypeVar
from uuid import uuid4

import typer
from rich.table import Table

from naru.api.inference.v1 import (
    control_service_pb2,
    control_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import duration_to_proto
from naru.errors import NaruError, Reason

app = typer.Typer(no_args_is_help=True, help="See what each replica serves, load adapters, and hold replicas up.")
_TIMEOUT_SECONDS = 30.0
_LOAD_TIMEOUT_SECONDS = 300.0
_UNLOAD_MARGIN_SECONDS = 10.0
Result = TypeVar("Result")
_Name = Annotated[str, typer.Argument(help="The adapter's own name; requests ask for <model>:<name>.")]
_Replica = Annotated[
    str, typer.Option(help="host:port of the replica; by default the only one of NARU_INFERENCE_ADDRESSES.")
]


class _Answer(Protocol):
    """Of whatever was asked of a replica."""

    @property
    def replica(self) -> control_service_pb2.Replica:
        """How it is now."""


Answer = TypeVar("Answer", bound=_Answer)


@app.command("list")
def list_models() -> None:
    """List replicas, their state, and the models and adapters they serve."""
    table = Table("replica", "state", "model", "adapter from", "rank", "requests")
    for address in session.replicas():
        replica, adapters = session.run("inference", _look, address=address)
        if replica is None:
            table.add_row(address, "unreachable", "", "", "", "")
            continue
        state = _state(replica)
        known = {adapter.model: adapter for adapter in adapters}
        for model in replica.models:
            adapter = known.get(model)
            more = ("", "", "") if adapter is None else (adapter.path, str(adapter.rank), str(adapter.requests))
            table.add_row(address, state, model, *more)
    tables.show(table)


@app.command()
def load(
    name: _Name,
    path: Annotated[str, typer.Argument(help="Its folder on the replica's machine, below NARU_INFERENCE_LORA_ROOTS.")],
    replica: _Replica = "",
) -> None:
    """Load a LoRA adapter, also after a restart, until it is unloaded."""
    adapter = model_service_pb2.Adapter(name=name, path=path)
    request = model_service_pb2.LoadAdapterRequest(adapter=adapter, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> model_service_pb2.Adapter:
        stub = model_service_pb2_grpc.ModelServiceStub(client.channel)
        return (await client.call(stub.LoadAdapter, request, timeout=_LOAD_TIMEOUT_SECONDS)).adapter

    typer.echo(_at_one(replica, call).model)


@app.command()
def unload(
    name: _Name,
    wait: Annotated[float, typer.Option(help="Seconds to wait for requests that use it.", min=0, max=25)] = 20.0,
    replica: _Replica = "",
) -> None:
    """Unload an adapter, once no request uses it any more."""
    request = model_service_pb2.UnloadAdapterRequest(name=name, wait=duration_to_proto(wait), request_id=str(uuid4()))

    async def call(client: ServiceClient) -> None:
        stub = model_service_pb2_grpc.ModelServiceStub(client.channel)
        await client.call(stub.UnloadAdapter, request, timeout=wait + _UNLOAD_MARGIN_SECONDS)

    _at_one(replica, call)
    typer.echo(f"Unloaded adapter {name}.")


@app.command()
def pause(replica: _Replica = "") -> None:
    """Take no requests, and hold up those in the engine."""
    request = control_service_pb2.PauseRequest(request_id=str(uuid4()))
    _control(replica, lambda stub, client: client.call(stub.Pause, request, timeout=_TIMEOUT_SECONDS))


@app.command()
def drain(replica: _Replica = "") -> None:
    """Take no requests, and finish those in the engine."""
    request = control_service_pb2.DrainRequest(request_id=str(uuid4()))
    _control(replica, lambda stub, client: client.call(stub.Drain, request, timeout=_TIMEOUT_SECONDS))


@app.command()
def resume(replica: _Replica = "") -> None:
    """Take requests again, after pause or drain."""
    request = control_service_pb2.ResumeRequest(request_id=str(uuid4()))
    _control(replica, lambda stub, client: client.call(stub.Resume, request, timeout=_TIMEOUT_SECONDS))


@app.command("reset-cache")
def reset_cache(replica: _Replica = "") -> None:
    """Forget what the engine keeps of earlier prompts."""
    request = control_service_pb2.ResetPrefixCacheRequest(request_id=str(uuid4()))
    _control(replica, lambda stub, client: client.call(stub.ResetPrefixCache, request, timeout=_TIMEOUT_SECONDS))


@app.command()
def sleep(replica: _Replica = "") -> None:
    """Give the accelerator's memory back, while nothing runs."""
    request = control_service_pb2.SleepRequest(request_id=str(uuid4()))
    _control(replica, lambda stub, client: client.call(stub.Sleep, request, timeout=_LOAD_TIMEOUT_SECONDS))


@app.command()
def wake(replica: _Replica = "") -> None:
    """End the sleep of a replica."""
    request = control_service_pb2.WakeRequest(request_id=str(uuid4()))
    _control(replica, lambda stub, client: client.call(stub.Wake, request, timeout=_LOAD_TIMEOUT_SECONDS))


async def _look(
    client: ServiceClient,
) -> tuple[control_service_pb2.Replica | None, list[model_service_pb2.Adapter]]:
    """How a replica is, None when it does not answer, and its adapters."""
    control = control_service_pb2_grpc.ControlServiceStub(client.channel)
    models = model_service_pb2_grpc.ModelServiceStub(client.channel)
    try:
        request = control_service_pb2.GetReplicaRequest()
        replica = (await client.call(control.GetReplica, request, timeout=_TIMEOUT_SECONDS)).replica
    except NaruError as error:
        if error.reason is not Reason.SERVICE_UNAVAILABLE:
            raise
        return None, []
    asked = model_service_pb2.ListAdaptersRequest()
    adapters = [one async for page in session.pages(client, models.ListAdapters, asked) for one in page.adapters]
    return replica, adapters


def _control(
    replica: str,
    ask: Callable[[control_service_pb2_grpc.ControlServiceAsyncStub, ServiceClient], Awaitable[Answer]],
) -> None:
    async def call(client: ServiceClient) -> control_service_pb2.Replica:
        return (await ask(control_service_pb2_grpc.ControlServiceStub(client.channel), client)).replica

    now = _at_one(replica, call)
    typer.echo(f"Replica {now.name} is {_state(now)}; requests that are not over: {now.requests}.")


def _at_one(replica: str, call: Callable[[ServiceClient], Awaitable[Result]]) -> Result:
    known = [replica] if replica else session.replicas()
    if len(known) > 1:
        typer.secho(f"There are several replicas: choose by --replica from {', '.join(known)}.", fg="red", err=True)
        raise typer.Exit(2)
    return session.run("inference", call, address=known[0])


def _state(replica: control_service_pb2.Replica) -> str:
    return control_service_pb2.ReplicaState.Name(replica.state).removeprefix("REPLICA_STATE_").lower()
