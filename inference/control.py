"""Holding this replica up and letting it go on: what an operator does by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum

from inference.engine import Engine
from inference.engine_control import EngineControl
from inference.generations import Generations
from inference.undisturbed import Undisturbed
from naru.errors import NaruError, Reason, unavailable
from naru.logs import Logger

_RETRY_AFTER = 5.0
_GO_ON_SECONDS = 5.0


class ReplicaState(StrEnum):
    """What a replica does with requests; see `naru.api.inference.v1.ReplicaState`."""

    SERVING = "serving"
    PAUSED = "paused"
    DRAINING = "draining"
    SLEEPING = "sleeping"
    UPSTREAM_AWAY = "upstream_away"


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """How a replica is."""

    state: ReplicaState
    name: str
    requests: int
    models: tuple[str, ...]


class Control:
    """Does it, one call at a time.

    Args:
        engine: What is held up.
        generations: Those who would use it.
        name: The replica's.
        logger: Where it is told.
        changed: Called when it takes requests no more, or again.
    """

    def __init__(
        self, engine: Engine, generations: Generations, *, name: str, logger: Logger, changed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._generations = generations
        self._name = name
        self._logger = logger
        self._changed = changed
        self._state = ReplicaState.SERVING
        self._work = Undisturbed()

    def status(self) -> ReplicaStatus:
        """How the replica is."""
        # One that is about to stop is draining whatever it was told.
        draining = self._generations.stopping and self._state is ReplicaState.SERVING
        state = ReplicaState.DRAINING if draining else self._state
        if state is ReplicaState.SERVING and not self._engine.available():
            state = ReplicaState.UPSTREAM_AWAY
        models = tuple(model.name for model in self._engine.models())
        return ReplicaStatus(state, self._name, self._generations.count, models)

    async def pause(self) -> None:
        """Takes no more, and holds up what runs. Raises NaruError NOT_SUPPORTED or FAILED_PRECONDITION."""
        await self._work.run(self._pause())

    async def drain(self) -> None:
        """Takes no more, and lets what runs come to its end. Raises NaruError FAILED_PRECONDITION."""
        await self._work.run(self._drain())

    async def resume(self) -> None:
        """Takes requests again. Raises NaruError FAILED_PRECONDITION."""
        await self._work.run(self._resume())

    async def reset_prefix_cache(self) -> None:
        """Forgets earlier prompts. Raises NaruError NOT_SUPPORTED or FAILED_PRECONDITION."""
        await self._work.run(self._reset_prefix_cache())

    async def sleep(self) -> None:
        """Gives the accelerator's memory back. Raises NaruError NOT_SUPPORTED or FAILED_PRECONDITION."""
        await self._work.run(self._sleep())

    async def wake(self) -> None:
        """Ends sleep. Raises NaruError NOT_SUPPORTED."""
        await self._work.run(self._wake())

    @asynccontextmanager
    async def awake(self) -> AsyncIterator[None]:
        """Inside the block nobody can send it to sleep. Raises NaruError FAILED_PRECONDITION when it is asleep."""
        async with self._work.turn():
            self._require_awake()
            yield

    async def close(self, seconds: float) -> None:
        """Waits for what is being done, and lets an engine go on that was paused, so that what it has can end. Never raises.

        Waits at most so many seconds, and not at all for an engine that is dead, which would never answer.
        """
        await self._work.close(seconds if self._engine.healthy() else 0.0)
        if not self._engine.healthy():
            return
        try:
            async with asyncio.timeout(_GO_ON_SECONDS):
                await self._go_on()
        except Exception:  # what it holds up is aborted then, as everything that does not end in time
            self._logger.exception("the paused engine does not go on")

    async def _pause(self) -> None:
        self._require_awake()
        control = self._control("pause")
        # Not by vLLM's way to end them all, by which an engine that makes vectors ends itself: nothing is ended at all.
        self._hold("The model is paused.")
        self._generations.send_away()
        await self._or_let_go(control.pause())
        self._become(ReplicaState.PAUSED)

    async def _drain(self) -> None:
        self._require_awake()
        self._hold("The model takes no requests at the moment.")
        await self._go_on()
        self._become(ReplicaState.DRAINING)

    async def _resume(self) -> None:
        self._require_awake()
        await self._go_on()
        self._generations.let_go()
        self._become(ReplicaState.SERVING)

    async def _reset_prefix_cache(self) -> None:
        self._require_awake()
        if not await self._control("reset_prefix_cache").reset_prefix_cache():
            raise _wrong_state("Requests use the prefix cache. Drain the replica first.")
        self._logger.info("prefix cache reset")

    async def _sleep(self) -> None:
        control = self._sleeper("sleep")
        if self._state is ReplicaState.SLEEPING:
            return
        if self._generations.count:
            raise _wrong_state("Requests run. Drain the replica, and let it sleep when they are over.")
        self._hold("The model is asleep.")
        # A paused engine would wait for ever for what it holds up, which is nothing.
        await self._go_on()
        await self._or_let_go(control.sleep())
        self._become(ReplicaState.SLEEPING)

    async def _wake(self) -> None:
        control = self._sleeper("wake")
        if self._state is ReplicaState.SLEEPING:
            await control.wake()
            self._generations.let_go()
            self._become(ReplicaState.SERVING)

    async def _or_let_go(self, work: Awaitable[None]) -> None:
        try:
            await work
        except BaseException:
            self._generations.let_go()
            self._become(ReplicaState.SERVING)
            raise

    async def _go_on(self) -> None:
        control = self._engine.control()
        if self._state is ReplicaState.PAUSED and control is not None:
            await control.resume()

    def _sleeper(self, what: str) -> EngineControl:
        control = self._control(what)
        reason = control.why_no_sleep()
        if reason:
            raise _not_supported(what, reason)
        return control

    def _hold(self, message: str) -> None:
        self._generations.hold(unavailable("inference", message, retry_after=_RETRY_AFTER))

    def _become(self, state: ReplicaState) -> None:
        self._state = state
        self._changed()
        self._logger.info("replica state", state=state, requests=self._generations.count)

    def _require_awake(self) -> None:
        if self._state is ReplicaState.SLEEPING:
            raise _wrong_state("The replica is asleep. Wake it first.")

    def _control(self, what: str) -> EngineControl:
        control = self._engine.control()
        if control is None:
            raise _not_supported(what, "The engine is elsewhere, where this cannot be asked for.")
        return control


def _wrong_state(message: str) -> NaruError:
    return NaruError(Reason.FAILED_PRECONDITION, message, metadata={"resource": "replica"})


def _not_supported(what: str, message: str) -> NaruError:
    return NaruError(Reason.NOT_SUPPORTED, message, metadata={"field": what})
