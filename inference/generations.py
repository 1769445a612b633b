"""All generations of this replica: who may start one, and how they end when the service does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from fnmatch import fnmatchcase
from typing import Any

from inference.events import EventKey, GenerationOrder, Listener
from inference.generation import Generation, Phase
from inference.tools import Tools
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal


class Generations:
    """Starts generations and knows those that are not over.

    Args:
        tools: What they work with.
    """

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._running: dict[EventKey, Generation] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._ended = asyncio.Event()
        self._objection: NaruError | None = None
        self._held: NaruError | None = None

    @property
    def draining(self) -> bool:
        """Whether it takes no more, for good or until `let_go`."""
        return self.stopping or self._held is not None

    @property
    def stopping(self) -> bool:
        """Whether it takes no more for good."""
        return self._objection is not None

    @property
    def count(self) -> int:
        """How many are not over."""
        return len(self._running)

    def using(self, model: str) -> int:
        """How many that are not over use a model."""
        return sum(generation.served_model == model for generation in self._running.values())

    async def wait_unused(self, model: str, seconds: float) -> bool:
        """Waits until none uses a model, at most so many seconds; says whether none does."""
        try:
            async with asyncio.timeout(seconds):
                while self.using(model):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def start(self, order: GenerationOrder, listener: Listener) -> Generation:
        """Begins one. The listener hears Refused alone, or Accepted, outputs and Finished, from the next loop turn on."""
        served = order.request.model or self._tools.engine.models()[0].name
        objection = self._check(order, served)
        generation = Generation(
            order,
            served_model=served,
            listener=listener,
            tools=self._tools,
            spawn=self._spawn,
            on_over=self._over,
        )
        if order.key not in self._running:
            self._running[order.key] = generation
            self._idle.clear()
            self._tools.metrics.running.set(len(self._running))
        generation.begin(objection)
        return generation

    def refuse_new(self) -> None:
        """Takes no more from now on."""
        self._objection = self._objection or unavailable("inference", "The inference service is about to stop.")
        # Another replica serves those sooner that only wait here.
        self._tools.turns.close(self._objection)

    def hold(self, error: NaruError) -> None:
        """Takes no more until `let_go`; those that wait for the engine are refused with `error`, which another replica spares."""
        self._held = error
        self._tools.turns.close(error)

    def send_away(self) -> None:
        """Refuses those that the engine does not have yet with what `hold` was told."""
        for generation in tuple(self._running.values()):
            if generation.phase is Phase.PREPARING:
                generation.cancel(self._held)

    def let_go(self) -> None:
        """Ends `hold`."""
        self._held = None
        if self._objection is None:
            self._tools.turns.open()

    async def drain(self, grace: float) -> None:
        """Takes no more, lets those that run end within `grace` seconds, and cancels the rest, which is metered."""
        self.refuse_new()
        if not await self.wait_idle(grace):
            error = unavailable("inference", "The inference service stopped before the request was finished.")
            for generation in tuple(self._running.values()):
                generation.cancel(error)
            if not await self.wait_idle(2 * self._tools.abort_patience + 1):
                self.fail_all(error)
        await self._settle()

    def fail_all(self, error: NaruError) -> None:
        """Takes no more, and ends all with what is known: the engine says nothing any more."""
        self._objection = error
        for generation in tuple(self._running.values()):
            generation.fail(error)

    async def wait_idle(self, seconds: float) -> bool:
        """Waits until all are over, at most so many seconds; says whether they are."""
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _settle(self) -> None:
        while self._tasks:
            _, late = await asyncio.wait(tuple(self._tasks), timeout=self._tools.abort_patience + 1)
            for task in late:
                task.cancel()

    def _over(self, generation: Generation) -> None:
        if self._running.get(generation.order.key) is generation:
            del self._running[generation.order.key]
            self._tools.metrics.running.set(len(self._running))
            self._ended.set()
        if not self._running:
            self._idle.set()

    def _spawn(self, work: Coroutine[Any, Any, None], context: Context) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _check(self, order: GenerationOrder, served_model: str) -> NaruError | None:
        if self._objection is not None or self._held is not None:
            return self._objection or self._held
        if order.key in self._running:
            return NaruError(
                Reason.ALREADY_EXISTS,
                "This attempt of the request is running already.",
                metadata={"resource": "generation", "name": order.event_id},
            )
        if order.reserved_prompt_tokens is None:
            objection = denial(order.principal, served_model)
            if objection is not None:
                return objection
        if all(model.name != served_model for model in self._tools.engine.models()):
            return NaruError(
                Reason.MODEL_NOT_FOUND, f"There is no model {served_model!r}.", metadata={"model": served_model}
            )
        return None


def denial(principal: Principal, model: str) -> NaruError | None:
    """Why a credential may not be used for this; the edge has asked this already for its callers."""
    patterns = principal.scopes.models
    if patterns and not any(fnmatchcase(model, pattern) for pattern in patterns):
        return NaruError(
            Reason.PERMISSION_DENIED, f"This key may not use the model {model!r}.", metadata={"model": model}
        )
    return None
