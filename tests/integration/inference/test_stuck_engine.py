"""A replica whose engine dies, or answers nothing, while it is told something: it stops all the same, and loses nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from inference.engine_control import Adapter, AdapterBounds
from inference.watchdog import EngineDiedError
from naru.api.accounting.v1 import usage_event_pb2
from naru.api.inference.v1 import (
    control_service_pb2,
    control_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.identity import ServiceName
from tests.support.adapters import write_adapter
from tests.support.inference_service import InferenceService, generation, inference_service, submit
from tests.support.scripted_engine import ScriptedEngine

PATIENCE = 20.0
"""More than a stop may take, and less than anybody would wait for a call that has no end."""


class Stuck:
    """What an engine can be told, of which it never hears the end of what it begins to do by the name of `stuck`."""

    def __init__(self, stuck: str) -> None:
        self.began = asyncio.Event()
        self._stuck = stuck

    def adapter_bounds(self) -> AdapterBounds:
        """One adapter."""
        return AdapterBounds(1, 8)

    def why_no_sleep(self) -> str:
        """Nothing."""
        return ""

    async def load_adapter(self, adapter: Adapter) -> None:
        """Never ends."""
        await self._do("load")

    async def pause(self) -> None:
        """At once, if not stuck."""
        await self._do("pause")

    async def resume(self) -> None:
        """At once, if not stuck."""
        await self._do("resume")

    async def sleep(self) -> None:
        """Never ends."""
        await self._do("sleep")

    async def _do(self, what: str) -> None:
        if what == self._stuck:
            self.began.set()
            await asyncio.Event().wait()


async def told(client: ServiceClient, what: str) -> Any:
    """Calls the replica."""
    if what == "load":
        adapter = model_service_pb2.Adapter(name="sql", path="sql")
        models = model_service_pb2_grpc.ModelServiceStub(client.channel)
        return await client.call(
            models.LoadAdapter, model_service_pb2.LoadAdapterRequest(adapter=adapter), timeout=PATIENCE
        )
    stub = control_service_pb2_grpc.ControlServiceStub(client.channel)
    request = getattr(control_service_pb2, f"{what.capitalize()}Request")()
    return await client.call(getattr(stub, what.capitalize()), request, timeout=PATIENCE)


async def operator(stack: AsyncExitStack, service: InferenceService) -> ServiceClient:
    return await stack.enter_async_context(service.client(service=ServiceName.OPERATOR))


def stuck_engine(what: str) -> tuple[ScriptedEngine, Stuck]:
    engine, stuck = ScriptedEngine(), Stuck(what)
    engine.controlled = stuck  # type: ignore[assignment] # nothing else is asked of it
    return engine, stuck


def fields(folder: Path) -> dict[str, Any]:
    write_adapter(folder / "adapters/sql")
    return {"lora_roots": (str(folder / "adapters"),), "shutdown_grace": 0.5}


@pytest.mark.parametrize("dead", [True, False], ids=["dead", "hung"])
@pytest.mark.parametrize("what", ["load", "pause", "sleep"])
async def test_a_call_that_never_ends_does_not_keep_the_service_up(tmp_path: Path, what: str, dead: bool) -> None:
    """The caller is told that it was not done; what ran is metered and shipped."""
    engine, stuck = stuck_engine(what)
    async with AsyncExitStack() as stack:
        up = AsyncExitStack()
        service = await up.enter_async_context(inference_service(tmp_path, engine, **fields(tmp_path)))
        client = await operator(stack, service)
        session = await stack.enter_async_context(service.session())
        if what != "sleep":
            await session.send(submit(1, generation(1)))
            await session.read_until(bool)
        calling = asyncio.create_task(told(client, what))
        await stuck.began.wait()
        async with asyncio.timeout(PATIENCE):
            if dead:
                engine.alive = False
                await service.lifecycle.wait()
                assert service.lifecycle.failed
            await up.aclose()
        with pytest.raises(NaruError) as refused:
            await calling
        assert refused.value.reason is Reason.SERVICE_UNAVAILABLE
        assert [event.outcome for event in service.events] == (
            [] if what == "sleep" else [usage_event_pb2.OUTCOME_FAILED if dead else usage_event_pb2.OUTCOME_ABORTED]
        )


async def test_a_paused_engine_that_does_not_go_on_is_left(tmp_path: Path) -> None:
    """What it holds up is cancelled when the service stops, metered and shipped."""
    engine, stuck = stuck_engine("resume")
    async with AsyncExitStack() as stack:
        up = AsyncExitStack()
        service = await up.enter_async_context(inference_service(tmp_path, engine, **fields(tmp_path)))
        client = await operator(stack, service)
        session = await stack.enter_async_context(service.session())
        await session.send(submit(1, generation(1)))
        await session.read_until(bool)
        await told(client, "pause")
        async with asyncio.timeout(PATIENCE):
            await up.aclose()
        assert stuck.began.is_set()
        assert [event.outcome for event in service.events] == [usage_event_pb2.OUTCOME_ABORTED]


async def test_an_engine_that_dies_over_a_configured_adapter_ends_the_start(tmp_path: Path) -> None:
    """Else the supervisor would never start it again."""
    engine, stuck = stuck_engine("load")

    async def die() -> None:
        await stuck.began.wait()
        engine.alive = False

    dying = asyncio.create_task(die())
    with pytest.raises(EngineDiedError):
        async with (
            asyncio.timeout(PATIENCE),
            inference_service(tmp_path, engine, **fields(tmp_path), lora_adapters=("sql=sql",)),
        ):
            pass
    await dying
