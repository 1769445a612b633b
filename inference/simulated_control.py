"""What the simulated engine can be told beside requests."""

from __future__ import annotations

import asyncio

from inference.engine import ServedModel, adapter_as_model
from inference.engine_control import Adapter, AdapterBounds


class SimulatedControl:
    """Keeps the promise of `inference.engine_control.EngineControl`, where nothing has a memory to give back.

    Args:
        bounds: What adapters it takes; None for none.
        base: The model that adapters adapt.
    """

    def __init__(self, bounds: AdapterBounds | None, base: ServedModel) -> None:
        self._bounds = bounds
        self._base = base
        self._offered: dict[str, ServedModel] = {}
        self._loaded: set[str] = set()
        self._going = asyncio.Event()
        self._going.set()

    def adapters(self) -> tuple[ServedModel, ...]:
        """Those that can be asked for."""
        return tuple(self._offered.values())

    def adapts(self, model: str) -> bool:
        """Whether requests name an adapter like this."""
        return model in self._loaded

    async def wait_going(self) -> None:
        """Waits while it is paused."""
        await self._going.wait()

    def adapter_bounds(self) -> AdapterBounds | None:
        """See `EngineControl`."""
        return self._bounds

    async def load_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`. Looks at nothing of it: an adapter is only another answer."""
        self._loaded.add(adapter.model)
        self.offer_adapter(adapter)

    def withdraw_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        self._offered.pop(adapter.model, None)

    def offer_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        self._offered[adapter.model] = adapter_as_model(self._base, adapter)

    async def unload_adapter(self, adapter: Adapter) -> None:
        """See `EngineControl`."""
        self._loaded.discard(adapter.model)

    async def pause(self) -> None:
        """See `EngineControl`."""
        self._going.clear()

    async def resume(self) -> None:
        """See `EngineControl`."""
        self._going.set()

    async def reset_prefix_cache(self) -> bool:
        """See `EngineControl`. It keeps nothing."""
        return True

    def why_no_sleep(self) -> str:
        """See `EngineControl`."""
        return ""

    async def sleep(self) -> None:
        """See `EngineControl`. Nothing runs, so nothing has to be held up."""

    async def wake(self) -> None:
        """See `EngineControl`."""
