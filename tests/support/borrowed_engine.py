"""A running engine for a service that is neither to start it nor to stop it."""

from __future__ import annotations

from typing import Any

from inference.vllm_engine import VllmEngine


class Borrowed:
    """An engine that is somebody else's to start and to stop."""

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def start(self) -> None:
        """It runs already."""

    async def shutdown(self, timeout: float) -> None:
        """It goes on."""
