"""What an engine can be told beside requests: to take adapters, to hold still, to forget, to sleep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class AdapterBounds:
    """What adapters an engine takes: how many, and of which rank at most."""

    most: int
    rank: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter that is in the engine, or about to be.

    Attributes:
        name: Its own name.
        base: The served model that it adapts.
        path: Where it really is.
        shown_path: The path as it was given.
        rank: Its rank.
        number: Which load of this process, from 1; never used twice, so that nothing kept of an earlier one is taken for it.
        load_time: When it was loaded, in seconds since the epoch.
        configured: Whether the configuration names it.
    """

    name: str
    base: str
    path: Path
    shown_path: str
    rank: int
    number: int
    load_time: float
    configured: bool

    @property
    def model(self) -> str:
        """What requests name it by; accounting reads from it whose price holds."""
        return adapter_model(self.base, self.name)


def adapter_model(base: str, name: str) -> str:
    """What requests name an adapter by."""
    return f"{base}:{name}"


class EngineControl(Protocol):
    """Tells an engine what to do. Of calls that change something there is one at a time."""

    def adapter_bounds(self) -> AdapterBounds | None:
        """What adapters it takes; None when it takes none. Not before `Engine.start`."""

    async def load_adapter(self, adapter: Adapter) -> None:
        """Takes an adapter, and names it among `Engine.models`. Raises NaruError when the engine cannot use it."""

    def withdraw_adapter(self, adapter: Adapter) -> None:
        """Names it no longer; requests that are prepared already, or being prepared, may use it still."""

    def offer_adapter(self, adapter: Adapter) -> None:
        """Names one that was withdrawn again."""

    async def unload_adapter(self, adapter: Adapter) -> None:
        """Lets go of an adapter that no request uses any more."""

    async def pause(self) -> None:
        """Holds up everything that runs, where it is. Ends nothing."""

    async def resume(self) -> None:
        """Goes on. Does nothing when it was not paused."""

    async def reset_prefix_cache(self) -> bool:
        """Forgets earlier prompts; False when it cannot because requests use them."""

    def why_no_sleep(self) -> str:
        """A sentence that says why it cannot sleep; empty when it can. Not before `Engine.start`."""

    async def sleep(self) -> None:
        """Gives the accelerator's memory back. Only while nothing runs."""

    async def wake(self) -> None:
        """Takes it again, and goes on."""
