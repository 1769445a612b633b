"""Adapters and control of one replica over gRPC, with the simulated engine and with one that can be told nothing."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from inference.app import running
from inference.engine_control import Adapter, AdapterBounds
from naru.api.accounting.v1 import usage_event_pb2
from naru.api.inference.v1 import (
    control_service_pb2,
    control_service_pb2_grpc,
    generation_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.config import ConfigError
from naru.convert import duration_to_proto
from naru.errors import NaruError, Reason
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle
from tests.support.adapters import LORA, write_adapter
from tests.support.generation_bench import eventually
from tests.support.inference_service import InferenceService, config_of, generation, inference_service, submit
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers, write_service_tokens
from tests.support.scripted_engine import ScriptedEngine


class Operator:
    """What an operator can do at a replica."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._models = model_service_pb2_grpc.ModelServiceStub(client.channel)
        self._control = control_service_pb2_grpc.ControlServiceStub(client.channel)

    async def load(self, name: str, path: str) -> model_service_pb2.Adapter:
        adapter = model_service_pb2.Adapter(name=name, path=path)
        request = model_service_pb2.LoadAdapterRequest(adapter=adapter)
        return (await self._client.call(self._models.LoadAdapter, request, timeout=10)).adapter

    async def unload(self, name: str, wait: float | None = None) -> None:
        request = model_service_pb2.UnloadAdapterRequest(name=name)
        if wait is not None:
            request.wait.CopyFrom(duration_to_proto(wait))
        await self._client.call(self._models.UnloadAdapter, request, timeout=10)

    async def adapters(self, **page: Any) -> model_service_pb2.ListAdaptersResponse:
        request = model_service_pb2.ListAdaptersRequest(**page)
        return await self._client.call(self._models.ListAdapters, request, timeout=10)

    async def models(self) -> list[str]:
        request = model_service_pb2.ListModelsRequest()
        return [model.name for model in (await self._client.call(self._models.ListModels, request, timeout=10)).models]

    async def tell(self, what: str) -> control_service_pb2.Replica:
        request = getattr(control_service_pb2, f"{what}Request")()
        return (await self._client.call(getattr(self._control, what), request, timeout=10)).replica


async def operator(stack: AsyncExitStack, service: InferenceService) -> Operator:
    return Operator(await stack.enter_async_context(service.client(service=ServiceName.OPERATOR)))


def with_lora(folder: Path, **fields: Any) -> dict[str, Any]:
    return {"engine_args": json.dumps(LORA), "lora_roots": (str(folder / "adapters"),), **fields}


async def refusal(work: Any) -> tuple[Reason, str]:
    with pytest.raises(NaruError) as raised:
        await work
    return raised.value.reason, raised.value.message


async def test_adapters_outlive_a_restart(tmp_path: Path) -> None:
    """What was loaded is loaded again, what was unloaded is not, and what the configuration names always is."""
    for name in ("sql", "law", "fixed"):
        write_adapter(tmp_path / "adapters" / name)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, **with_lora(tmp_path)))
        replica = await operator(stack, service)
        assert (await replica.load("sql", "sql")).model == "small:sql"
        # Again: nothing changes. From elsewhere, or one more than there is room for: refused.
        first = (await replica.adapters()).adapters[0].load_time
        assert (await replica.load("sql", "sql")).load_time == first
        assert (await refusal(replica.load("sql", "law")))[0] is Reason.ALREADY_EXISTS
        await replica.load("law", str(tmp_path / "adapters/law"))
        reason, message = await refusal(replica.load("third", "fixed"))
        assert reason is Reason.FAILED_PRECONDITION
        assert "max_cpu_loras" in message
        page = await replica.adapters(page_size=1)
        assert [adapter.name for adapter in page.adapters] == ["law"]
        rest = await replica.adapters(page_token=page.next_page_token)
        assert [adapter.name for adapter in rest.adapters] == ["sql"]
        await replica.unload("law")
        assert await replica.models() == ["small", "small:sql"]
    again = with_lora(tmp_path, lora_adapters=("fixed=fixed",))
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, **again))
        replica = await operator(stack, service)
        shown = {adapter.name: adapter.configured for adapter in (await replica.adapters()).adapters}
        assert shown == {"fixed": True, "sql": False}
        await replica.unload("fixed")
    (tmp_path / "adapters/sql/adapter_config.json").rename(tmp_path / "kept")
    for expected in (["small", "small:fixed"], ["small", "small:fixed", "small:sql"]):
        # One that is not there at one start is tried again at the next one.
        async with AsyncExitStack() as stack:
            service = await stack.enter_async_context(inference_service(tmp_path, **again))
            replica = await operator(stack, service)
            assert await replica.models() == expected
        if not (tmp_path / "adapters/sql/adapter_config.json").exists():
            (tmp_path / "kept").rename(tmp_path / "adapters/sql/adapter_config.json")


async def test_a_forgotten_adapter_needs_not_be_there(tmp_path: Path) -> None:
    """One that could not be loaded again is forgotten by unloading it."""
    write_adapter(tmp_path / "adapters/sql").rename(tmp_path / "elsewhere")
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal/adapters.json").write_text('{"adapters": {"sql": "sql"}}')
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, **with_lora(tmp_path)))
        replica = await operator(stack, service)
        assert await replica.models() == ["small"]
        await replica.unload("sql")
        assert json.loads((tmp_path / "journal/adapters.json").read_text()) == {"adapters": {}}
        assert (await refusal(replica.unload("sql")))[0] is Reason.NOT_FOUND


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"lora_adapters": ("sql=nothing",)}, "LORA_ADAPTERS: sql=nothing: `path` must be a folder"),
        ({"lora_adapters": ("small=sql",)}, "named 'small' already"),
        ({"lora_adapters": ("sql=sql",), "engine_args": "{}"}, "LoRA is off"),
    ],
)
async def test_a_wrong_configuration_stops_the_start(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    """An adapter that the configuration names must be there."""
    write_adapter(tmp_path / "adapters/sql")
    with pytest.raises(ConfigError, match=said):
        async with inference_service(tmp_path, **{**with_lora(tmp_path), **fields}):
            pass


async def test_an_adapter_in_use_stays_until_its_requests_are_over(tmp_path: Path) -> None:
    """Unloading refuses new requests, waits for those that run, and gives up in time; then the adapter is as before."""
    write_adapter(tmp_path / "adapters/sql")
    fields = with_lora(tmp_path, simulated_tokens_per_second=20.0)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, **fields))
        replica = await operator(stack, service)
        await replica.load("sql", "sql")
        session = await stack.enter_async_context(service.session())
        sampling = generation_pb2.SamplingParameters(max_tokens=60)
        text = generation_pb2.TextInput(text="hello", sampling=sampling)
        await session.send(submit(1, generation(1, model="small:sql", text=text)))
        await session.read_until(lambda frames: len(frames) > 1)
        assert (await replica.adapters()).adapters[0].requests == 1
        reason, message = await refusal(replica.unload("sql", wait=0.05))
        assert reason is Reason.FAILED_PRECONDITION
        assert "still used by 1 requests" in message
        assert "small:sql" in await replica.models()
        unloading = asyncio.create_task(replica.unload("sql", wait=20))
        async with asyncio.timeout(20):
            while "small:sql" in await replica.models():
                await asyncio.sleep(0.005)
        await session.send(submit(2, generation(2, model="small:sql", text=text)))
        await session.read_until(lambda _: bool(session.frames(2)))
        assert session.frames(2)[0].refused.error.metadata["model"] == "small:sql"
        assert not unloading.done()
        await session.read_until(lambda _: session.frames(1)[-1].WhichOneof("event") == "finished")
        await unloading
        assert session.frames(1)[-1].finished.usage.completion_tokens == 60
        assert not (await replica.adapters()).adapters
        assert (await refusal(replica.unload("sql", wait=26)))[0] is Reason.INVALID_ARGUMENT


async def test_a_replica_that_sleeps_keeps_its_adapters(tmp_path: Path) -> None:
    """Its engine has no memory to put one in: neither loading nor unloading does anything until it wakes up."""
    for name in ("sql", "law"):
        write_adapter(tmp_path / "adapters" / name)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, **with_lora(tmp_path)))
        replica = await operator(stack, service)
        await replica.load("sql", "sql")
        await replica.tell("Sleep")
        for refused in (replica.load("law", "law"), replica.unload("sql")):
            reason, message = await refusal(refused)
            assert (reason, "Wake it first" in message) == (Reason.FAILED_PRECONDITION, True)
        assert await replica.models() == ["small", "small:sql"]
        await replica.tell("Wake")
        await replica.load("law", "law")
        await replica.unload("sql")
        assert await replica.models() == ["small", "small:law"]


class SlowToLoad:
    """Of what an engine can be told it is given an adapter, which takes as long as a test wants, and sent to sleep."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.loading = asyncio.Event()
        self.go_on = asyncio.Event()

    def adapter_bounds(self) -> AdapterBounds:
        """One."""
        return AdapterBounds(1, 8)

    async def load_adapter(self, adapter: Adapter) -> None:
        """Waits for `go_on`."""
        self.loading.set()
        await self.go_on.wait()
        self.told.append("load")

    def why_no_sleep(self) -> str:
        """Nothing."""
        return ""

    async def sleep(self) -> None:
        """At once."""
        self.told.append("sleep")


async def test_a_replica_sleeps_when_its_adapter_is_loaded(tmp_path: Path) -> None:
    """Sent to sleep meanwhile, it waits for it."""
    write_adapter(tmp_path / "adapters/sql")
    engine, slow = ScriptedEngine(), SlowToLoad()
    engine.controlled = slow  # type: ignore[assignment] # nothing else is asked of it
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, engine, **with_lora(tmp_path)))
        replica = await operator(stack, service)
        loading = asyncio.create_task(replica.load("sql", "sql"))
        await slow.loading.wait()
        sleeping = asyncio.create_task(replica.tell("Sleep"))
        await asyncio.wait([sleeping], timeout=0.2)
        slow.go_on.set()
        await asyncio.gather(loading, sleeping)
        assert slow.told == ["load", "sleep"]


async def test_an_engine_without_adapters_and_control_says_so(tmp_path: Path) -> None:
    """LoRA off; an engine elsewhere can be drained, and not be paused, emptied or sent to sleep."""
    write_adapter(tmp_path / "adapters/sql")
    async with AsyncExitStack() as stack:
        fields = with_lora(tmp_path, engine_args="{}")
        service = await stack.enter_async_context(inference_service(tmp_path / "off", **fields))
        replica = await operator(stack, service)
        reason, message = await refusal(replica.load("sql", "sql"))
        assert (reason, "enable_lora" in message) == (Reason.NOT_SUPPORTED, True)
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path / "elsewhere", ScriptedEngine()))
        replica = await operator(stack, service)
        for what in ("Pause", "ResetPrefixCache", "Sleep", "Wake"):
            assert (await refusal(replica.tell(what)))[0] is Reason.NOT_SUPPORTED, what
        assert (await replica.tell("GetReplica")).state == control_service_pb2.REPLICA_STATE_SERVING
        assert (await replica.tell("Drain")).state == control_service_pb2.REPLICA_STATE_DRAINING
        assert (await replica.tell("Resume")).state == control_service_pb2.REPLICA_STATE_SERVING


async def test_a_session_that_opens_hears_that_the_replica_is_held_up(tmp_path: Path) -> None:
    """An edge that comes later, or comes back, knows it before it sends anything; what it sends all the same is refused."""
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path))
        replica = await operator(stack, service)
        await replica.tell("Pause")
        session = await stack.enter_async_context(service.session())
        message = await session.read()
        assert message is not None
        assert message.load.draining
        await session.send(submit(1, generation(1)))
        frames = await session.read_until(lambda frames: len(frames) == 1)
        assert frames[0].refused.error.metadata["service"] == "inference"
        assert frames[0].refused.error.HasField("retry_delay")
        await replica.tell("Resume")
        async with asyncio.timeout(20):
            while (await session.read()).load.draining:  # type: ignore[union-attr] # it is open
                pass


class CannotSleep:
    """Of what an engine can be told it is sent to sleep alone, which fails."""

    def why_no_sleep(self) -> str:
        """Nothing that is known beforehand."""
        return ""

    async def sleep(self) -> None:
        """Raises."""
        raise RuntimeError("no")


async def test_an_edge_hears_that_a_replica_that_could_not_sleep_serves(tmp_path: Path) -> None:
    """It was drained for that, so nobody sends it anything from which they would hear it."""
    engine = ScriptedEngine()
    engine.controlled = CannotSleep()  # type: ignore[assignment] # nothing else is asked of it
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, engine))
        replica = await operator(stack, service)
        session = await stack.enter_async_context(service.session())
        await replica.tell("Drain")
        while not (await session.read()).load.draining:  # type: ignore[union-attr] # it is open
            pass
        assert (await refusal(replica.tell("Sleep")))[0] is Reason.INTERNAL
        while (await session.read()).load.draining:  # type: ignore[union-attr] # it is open
            pass
        assert (await replica.tell("Drain")).state == control_service_pb2.REPLICA_STATE_DRAINING


async def test_pause_sends_waiting_requests_away_and_ends_nothing(tmp_path: Path) -> None:
    """Of two requests for one slot the waiting one is refused, for another replica; the other one ends after resume."""
    fields = {"simulated_slots": 1, "simulated_tokens_per_second": 5.0}
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(inference_service(tmp_path, **fields))
        replica = await operator(stack, service)
        session = await stack.enter_async_context(service.session())
        await session.send(submit(1, generation(1)), submit(2, generation(2)))
        await session.read_until(lambda _: bool(session.frames(1)))
        assert (await replica.tell("Pause")).state == control_service_pb2.REPLICA_STATE_PAUSED
        await session.read_until(lambda _: bool(session.frames(2)))
        assert session.frames(2)[0].WhichOneof("event") == "refused"
        assert (await refusal(replica.tell("Sleep")))[0] is Reason.FAILED_PRECONDITION
        # What a paused replica holds up comes to its end by draining it, too.
        assert (await replica.tell("Drain")).state == control_service_pb2.REPLICA_STATE_DRAINING
        await session.read_until(lambda _: session.frames(1)[-1].WhichOneof("event") == "finished")
        assert session.frames(1)[-1].finished.outcome == generation_pb2.FINISH_OUTCOME_COMPLETED
        await eventually(lambda: len(service.events) == 1)


async def test_a_paused_replica_stops_in_order(tmp_path: Path) -> None:
    """What it holds up goes on when the service stops, and is metered whole."""
    fields = {"simulated_tokens_per_second": 100.0, "shutdown_grace": 5.0}
    async with AsyncExitStack() as stack:
        tokens, accounting, keys = write_service_tokens(tmp_path / "tokens"), RecordingAccounting(), KeyRing()
        address = await stack.enter_async_context(peers(tokens, accounting, keys))
        async with running(config_of(tmp_path, address, **fields), Lifecycle()) as up:
            service = InferenceService(up.port, Lifecycle(), tokens, accounting, keys, address)
            replica = await operator(stack, service)
            session = await stack.enter_async_context(service.session())
            await session.send(submit(1, generation(1)))
            await session.read_until(bool)
            await replica.tell("Pause")
        (event,) = accounting.events
        assert event.outcome == usage_event_pb2.OUTCOME_COMPLETED
        assert event.usage.completion_tokens == 16
