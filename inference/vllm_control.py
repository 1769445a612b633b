"""What vLLM's engine can be told beside requests."""

from __future__ import annotations

import re
from typing import Any

from inference.adapter_folders import FIELD
from inference.engine import ServedModel, adapter_as_model
from inference.engine_control import Adapter, AdapterBounds
from inference.vllm_compat import Vllm
from inference.vllm_settings import SPARE_ADAPTERS_ON_CPU
from naru.errors import invalid_argument
from naru.logs import Logger

_SLEEP_LEVEL = 1
"""vLLM's: the weights go to the machine's own memory, so that waking up reads nothing from the disk."""
_LONGEST_PROBLEM = 300
_PREFIX = re.compile(r"^Call to \w+ method failed: ")


class VllmControl:
    """Keeps the promise of `inference.engine_control.EngineControl`.

    Args:
        vllm: vLLM's names.
        engine: The AsyncLLM.
        base: The model that adapters adapt.
        logger: Where it is told that what does not fit stays in the engine.
    """

    def __init__(self, vllm: Vllm, engine: Any, base: ServedModel, logger: Logger) -> None:
        self._vllm = vllm
        self._engine = engine
        self._base = base
        self._logger = logger
        self._requests: dict[str, Any] = {}
        self._offered: dict[str, ServedModel] = {}

    def adapters(self) -> tuple[ServedModel, ...]:
        """Those that can be asked for."""
        return tuple(self._offered.values())

    def lora_request(self, model: str) -> Any:
        """What vLLM calls the adapter that requests name like this; None for the base model."""
        return self._requests.get(model)

    def adapter_bounds(self) -> AdapterBounds | None:
        """See `EngineControl`. No more than vLLM keeps in memory: of more, it would read one from the disk between two steps."""
        lora = self._engine.vllm_config.lora_config
        if lora is None:
            return None
        spare = SPARE_ADAPTERS_ON_CPU if self._vllm.current_platform.is_cpu() else 0
        return AdapterBounds(int(lora.max_cpu_loras) - spare, int(lora.max_lora_rank))

    async def load_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        # vLLM knows what it has cached of a prompt by the adapter's name and path, and another one may come by both.
        name = f"{adapter.model}#{adapter.number}"
        request = self._vllm.LoRARequest(lora_name=name, lora_int_id=adapter.number, lora_path=str(adapter.path))
        try:
            await self._engine.add_lora(request)
        except self._vllm.EngineDeadError:
            raise
        except Exception as error:  # vLLM passes on whatever went wrong in its process as a plain Exception
            await self._throw_out(adapter)
            problem = _PREFIX.sub("", " ".join(str(error).split()))[:_LONGEST_PROBLEM]
            raise invalid_argument(FIELD, f"The engine cannot use the adapter: {problem}") from error
        self._requests[adapter.model] = request
        self.offer_adapter(adapter)

    def withdraw_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        self._offered.pop(adapter.model, None)

    def offer_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        self._offered[adapter.model] = adapter_as_model(self._base, adapter)

    async def unload_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        await self._engine.remove_lora(adapter.number)
        self._requests.pop(adapter.model, None)

    async def _throw_out(self, adapter: Adapter) -> None:
        """Lets go of one that was not loaded: vLLM finds out only after giving it a place, which it would keep."""
        try:
            await self._engine.remove_lora(adapter.number)
        except Exception:  # what the caller has to know is why it was not loaded
            self._logger.exception("an adapter that cannot be used stays in the engine", adapter=adapter.model)

    async def pause(self) -> None:
        """See `EngineControl`."""
        await self._engine.pause_generation(mode="keep", clear_cache=False)

    async def resume(self) -> None:
        """See `EngineControl`."""
        await self._engine.resume_generation()

    async def reset_prefix_cache(self) -> bool:
        """See `EngineControl`."""
        return bool(await self._engine.reset_prefix_cache())

    def why_no_sleep(self) -> str:
        """See `EngineControl`. A processor's vLLM says that it sleeps, and frees nothing."""
        if not self._vllm.current_platform.is_sleep_mode_available():
            return "This machine has no accelerator whose memory could be given back."
        if not self._engine.model_config.enable_sleep_mode:
            return "The engine cannot sleep: `enable_sleep_mode` in NARU_INFERENCE_ENGINE_ARGS lets it."
        return ""

    async def sleep(self) -> None:
        """See `EngineControl`."""
        # Nothing runs, so there is nothing to wait for, and nothing that could be ended.
        await self._engine.sleep(level=_SLEEP_LEVEL, mode="wait")

    async def wake(self) -> None:
        """See `EngineControl`. vLLM goes on with its requests by itself."""
        await self._engine.wake_up()
