"""What vLLM's engine is told, by an engine that only remembers it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from inference.engine import ServedModel
from inference.engine_control import Adapter, AdapterBounds
from inference.vllm_control import VllmControl
from naru.errors import NaruError
from naru.logs import get_logger

BASE = ServedModel("small", "naru", 2048, 1.0)
ADAPTER = Adapter("sql", "small", Path("/adapters/sql"), "sql", 4, 7, 2.0, configured=False)


class DeadError(Exception):
    """Stands for vLLM's EngineDeadError."""


class Engine:
    """Remembers calls, and fails those that it is told to."""

    def __init__(self, lora: Any = None, *, sleeps: bool = False) -> None:
        self.vllm_config = SimpleNamespace(lora_config=lora)
        self.model_config = SimpleNamespace(enable_sleep_mode=sleeps)
        self.calls: list[tuple[str, Any]] = []
        self.failure: Exception | None = None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **options: Any) -> bool:
            self.calls.append((name, arguments or options))
            if self.failure is not None:
                raise self.failure
            return True

        return call


def control(engine: Engine, *, gpu: bool = False) -> VllmControl:
    platform = SimpleNamespace(is_sleep_mode_available=lambda: gpu, is_cpu=lambda: not gpu)
    vllm: Any = SimpleNamespace(LoRARequest=SimpleNamespace, EngineDeadError=DeadError, current_platform=platform)
    return VllmControl(vllm, engine, BASE, get_logger("test"))


async def test_an_engine_is_never_told_to_end_what_it_has() -> None:
    """Pausing keeps requests, for an engine that makes vectors would end itself over ending them; so does sleep."""
    engine = Engine()
    told = control(engine)
    await told.pause()
    await told.resume()
    assert await told.reset_prefix_cache()
    await told.sleep()
    await told.wake()
    assert engine.calls == [
        ("pause_generation", {"mode": "keep", "clear_cache": False}),
        ("resume_generation", {}),
        ("reset_prefix_cache", {}),
        ("sleep", {"level": 1, "mode": "wait"}),
        ("wake_up", {}),
    ]


@pytest.mark.parametrize(
    ("gpu", "allowed", "said"), [(False, True, "no accelerator"), (True, False, "enable_sleep_mode"), (True, True, "")]
)
def test_why_it_cannot_sleep(gpu: bool, allowed: bool, said: str) -> None:
    """Where nothing could be given back, and where the engine was not built for it."""
    reason = control(Engine(sleeps=allowed), gpu=gpu).why_no_sleep()
    assert said in reason
    assert bool(reason) == bool(said)


def test_bounds_are_the_engines() -> None:
    """As many as it keeps in memory, of its highest rank; none without LoRA."""
    assert control(Engine()).adapter_bounds() is None
    lora = SimpleNamespace(max_cpu_loras=3, max_loras=1, max_lora_rank=8)
    assert control(Engine(lora), gpu=True).adapter_bounds() == AdapterBounds(3, 8)
    # One place stays empty: see SPARE_ADAPTERS_ON_CPU.
    assert control(Engine(lora)).adapter_bounds() == AdapterBounds(2, 8)


async def test_each_load_is_another_adapter_to_the_engine() -> None:
    """Its cache of prompts goes by name and path; requests being prepared find a withdrawn adapter, not an unloaded one."""
    engine = Engine()
    told = control(engine)
    for number in (7, 8):
        adapter = replace(ADAPTER, number=number)
        await told.load_adapter(adapter)
        assert told.adapters() == (ServedModel("small:sql", "naru", 2048, 2.0, "small"),)
        told.withdraw_adapter(adapter)
        assert told.adapters() == ()
        assert told.lora_request("small:sql").lora_int_id == number
        await told.unload_adapter(adapter)
        assert told.lora_request("small:sql") is None
    names = [arguments[0].lora_name for name, arguments in engine.calls if name == "add_lora"]
    assert len(set(names)) == 2
    assert told.lora_request("small") is None


async def test_what_the_engine_does_not_take_is_the_callers_fault_unless_it_died() -> None:
    """VLLM's reason is told without its own wrapping, and the adapter is not offered, nor left in the engine."""
    engine = Engine()
    told = control(engine)
    engine.failure = Exception("Call to add_lora method failed: the weights\n are odd")
    with pytest.raises(NaruError, match="cannot use the adapter: the weights are odd") as raised:
        await told.load_adapter(ADAPTER)
    assert raised.value.metadata == {"field": "adapter.path"}
    # It failed as well, which hides nothing of what the caller is told.
    assert engine.calls[1:] == [("remove_lora", (7,))]
    engine.failure = DeadError()
    with pytest.raises(DeadError):
        await told.load_adapter(ADAPTER)
    assert told.adapters() == ()
