"""The adapters of this replica: loaded and unloaded while it serves, and loaded again when it starts."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from inference.adapter_folders import AdapterFolders
from inference.adapter_state import AdapterState
from inference.engine import Engine
from inference.engine_control import Adapter, AdapterBounds, EngineControl, adapter_model
from inference.undisturbed import Undisturbed
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.logs import Logger

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_RESOURCE = "adapter"


class ModelUsers(Protocol):
    """Knows which requests use which model."""

    def using(self, model: str) -> int:
        """How many that are not over use it."""

    async def wait_unused(self, model: str, seconds: float) -> bool:
        """Waits until none does, at most so many seconds; says whether none does."""


class Adapters:
    """Loads and unloads adapters.

    Args:
        engine: Who uses them.
        folders: Where they may be.
        state: Remembers what was loaded by `load`.
        users: Who knows whether one is in use.
        clock: Tells when one was loaded.
        logger: Where it is told.
        changed: Called when there is one more or less that can be asked for.
        awake: Keeps the engine from going to sleep, where it has no memory to put an adapter in. Raises NaruError when it is.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        folders: AdapterFolders,
        state: AdapterState,
        users: ModelUsers,
        clock: Clock,
        logger: Logger,
        changed: Callable[[], None],
        awake: Callable[[], AbstractAsyncContextManager[None]],
    ) -> None:
        self._engine = engine
        self._folders = folders
        self._state = state
        self._users = users
        self._clock = clock
        self._logger = logger
        self._changed = changed
        self._awake = awake
        self._loaded: dict[str, Adapter] = {}
        self._remembered: dict[str, str] = {}
        self._loads = 0
        self._revision = 0
        self._work = Undisturbed()

    @property
    def revision(self) -> int:
        """Changes when what can be asked for does."""
        return self._revision

    def loaded(self) -> tuple[tuple[Adapter, int], ...]:
        """Those that are loaded, by name, each with the number of requests that use it."""
        return tuple(
            (adapter, self._users.using(adapter.model))
            for _, adapter in sorted(self._loaded.items(), key=lambda one: one[0])
        )

    async def start(self, configured: Mapping[str, str]) -> None:
        """Loads those of the configuration, and those that are remembered.

        A remembered one that cannot be loaded now is told in the log, and tried again at the next start.

        Raises:
            ValueError: One of the configuration cannot be loaded, or the file that remembers was damaged.
            OSError: The file cannot be read.
        """
        self._remembered = {name: path for name, path in self._state.read().items() if name not in configured}
        for name, path in configured.items():
            try:
                await self._take(name, path, configured=True)
            except NaruError as error:
                raise ValueError(f"NARU_INFERENCE_LORA_ADAPTERS: {name}={path}: {error.message}") from error
        for name, path in self._remembered.items():
            try:
                await self._take(name, path)
            except NaruError as error:
                self._logger.warning("adapter not loaded again", adapter=name, path=path, problem=error.message)

    async def load(self, name: str, path: str) -> Adapter:
        """Loads an adapter, and remembers it. One that is loaded from the same path already stays as it is.

        Raises NaruError: INVALID_ARGUMENT naming the field, ALREADY_EXISTS, NOT_SUPPORTED or FAILED_PRECONDITION.
        """
        return await self._work.run(self._load(name, path))

    async def unload(self, name: str, wait: float) -> None:
        """Unloads an adapter and forgets it, after at most `wait` seconds for requests that use it.

        vLLM would read the adapter of a running request again from the disk, and end itself when it is gone; so none may run.

        Raises NaruError: NOT_FOUND, or FAILED_PRECONDITION when some still use it, or the replica is asleep; then it stays.
        """
        await self._work.run(self._unload(name, wait))

    async def close(self, seconds: float) -> None:
        """Waits at most so many seconds for what is being done; not at all for an engine that is dead."""
        await self._work.close(seconds if self._engine.healthy() else 0.0)

    async def _load(self, name: str, path: str) -> Adapter:
        known = self._loaded.get(name)
        if known is not None and known.shown_path == path:
            return known
        async with self._awake():
            adapter = await self._take(name, path)
            try:
                await self._remember(self._remembered | {name: path})
            except OSError:
                # What is not remembered would be gone after the next start, without anybody having said so.
                await self._let_go(adapter)
                raise
        self._tell_changed()
        self._logger.info("adapter loaded", adapter=adapter.model, path=path, rank=adapter.rank)
        return adapter

    async def _unload(self, name: str, wait: float) -> None:
        adapter = self._loaded.get(name)
        if adapter is None and name not in self._remembered:
            raise not_found(_RESOURCE, name)
        if adapter is not None:
            await self._take_out(adapter, wait)
            self._logger.info("adapter unloaded", adapter=adapter.model)
        if name in self._remembered:
            await self._remember({one: path for one, path in self._remembered.items() if one != name})

    async def _take_out(self, adapter: Adapter, wait: float) -> None:
        control, _ = self._control()
        control.withdraw_adapter(adapter)
        self._tell_changed()
        try:
            if not await self._users.wait_unused(adapter.model, wait):
                raise self._in_use(adapter)
            async with self._awake():
                await self._let_go(adapter)
        except NaruError:
            control.offer_adapter(adapter)
            self._tell_changed()
            raise

    async def _let_go(self, adapter: Adapter) -> None:
        control, _ = self._control()
        control.withdraw_adapter(adapter)
        await control.unload_adapter(adapter)
        del self._loaded[adapter.name]

    def _in_use(self, adapter: Adapter) -> NaruError:
        requests = self._users.using(adapter.model)
        return NaruError(
            Reason.FAILED_PRECONDITION,
            f"The adapter {adapter.name!r} is still used by {requests} requests, so it stays.",
            metadata={"resource": _RESOURCE, "name": adapter.name, "requests": str(requests)},
        )

    async def _take(self, name: str, path: str, *, configured: bool = False) -> Adapter:
        control, bounds = self._control()
        base = self._check_name(name)
        if len(self._loaded) >= bounds.most:
            raise NaruError(
                Reason.FAILED_PRECONDITION,
                f"The engine holds {bounds.most} adapters at most, its `max_cpu_loras`. Unload one first.",
                metadata={"resource": _RESOURCE, "name": name},
            )
        folder = await asyncio.to_thread(self._folders.find, path, bounds.rank)
        self._loads += 1
        adapter = Adapter(name, base, folder.path, path, folder.rank, self._loads, self._clock.time(), configured)
        await control.load_adapter(adapter)
        self._loaded[name] = adapter
        return adapter

    def _check_name(self, name: str) -> str:
        """Returns the name of the base model. Raises NaruError when an adapter may not be named like this."""
        if _NAME.fullmatch(name) is None:
            raise invalid_argument(
                "adapter.name",
                "`name` must be 1 to 64 letters, digits, dots, hyphens and underscores, and begin with a letter or digit.",
            )
        models = self._engine.models()
        base = models[0].name
        if any(model.name in (name, adapter_model(base, name)) for model in models) or name in self._loaded:
            raise already_named(name)
        return base

    def _control(self) -> tuple[EngineControl, AdapterBounds]:
        control = self._engine.control()
        bounds = None if control is None else control.adapter_bounds()
        if control is None or bounds is None:
            raise NaruError(
                Reason.NOT_SUPPORTED,
                "This replica takes no adapters: LoRA is off. `enable_lora` in NARU_INFERENCE_ENGINE_ARGS turns it on, with"
                " vLLM's engine.",
                metadata={"field": "adapter"},
            )
        return control, bounds

    async def _remember(self, adapters: dict[str, str]) -> None:
        await asyncio.to_thread(self._state.write, adapters)
        self._remembered = adapters

    def _tell_changed(self) -> None:
        self._revision += 1
        self._changed()


def already_named(name: str) -> NaruError:
    """The error for an adapter whose name is taken by a model, an alias or another adapter."""
    return NaruError(
        Reason.ALREADY_EXISTS,
        f"There is a model, an alias or an adapter named {name!r} already.",
        metadata={"resource": _RESOURCE, "name": name},
    )
