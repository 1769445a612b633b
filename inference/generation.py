"""One generation, from the order to its single outcome.

PREPARING   reserve (callers without an edge), render, tokenise, wait for a slot; a cancel or a failure here is Refused
SUBMITTING  journalled, being handed to the engine; a cancel waits until the engine has it
RUNNING     Accepted was told; ends when the engine has ended every choice
OVER        Refused or Finished was told, exactly one of them, exactly once
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import replace
from enum import Enum
from typing import Any

from inference.admission import Need, RunningRequest, estimate
from inference.engine import ChoiceOutput, EngineHandle, PreparedRequest
from inference.events import Accepted, Event, Finished, GenerationOrder, Listener, Refused, UsageEvent
from inference.meter import Meter
from inference.request_context import context_of, trace_of
from inference.tools import Tools
from inference.turns import Turn
from naru.errors import NaruError, Reason, unavailable
from naru.usage import Accuracy, Evidence, Outcome

Spawn = Callable[[Coroutine[Any, Any, None], Context], asyncio.Task[None]]
"""Begins a task that somebody keeps and waits for, in a context."""


class Phase(Enum):
    """How far a generation is."""

    PREPARING = "preparing"
    SUBMITTING = "submitting"
    RUNNING = "running"
    OVER = "over"


class Generation:
    """One request at work. Made by `Generations.start`.

    Args:
        order: What to do.
        served_model: The model that serves it.
        listener: Who hears what happens; what it raises is logged and ends the generation, which is metered all the same.
        tools: What to work with.
        spawn: Begins the tasks it needs.
        on_over: Called once, after the listener has heard the end.
    """

    def __init__(
        self,
        order: GenerationOrder,
        *,
        served_model: str,
        listener: Listener,
        tools: Tools,
        spawn: Spawn,
        on_over: Callable[[Generation], None],
    ) -> None:
        self.order = order
        self._served_model = served_model
        self._listener = listener
        self._tools = tools
        self._spawn_in = spawn
        self._on_over = on_over
        self._phase = Phase.PREPARING
        self._started = tools.clock.monotonic()
        self._accept_time = 0.0
        self._meter = Meter()
        self._open: set[int] = set()
        self._finish_reasons: set[str] = set()
        self._heard_output = False
        self._turn: Turn | None = None
        self._handle: EngineHandle | None = None
        self._reserved = False
        self._abort_asked = False
        self._abort_error: NaruError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._preparation: asyncio.Task[None] | None = None
        self._span = tools.start_span(
            "inference.generate", order.traceparent, {"naru.request_id": order.request_id, "naru.model": served_model}
        )
        self._context = context_of(order, self._span)
        self._log = tools.logger.bind(request_id=order.request_id, event_id=order.event_id, **trace_of(order))

    @property
    def served_model(self) -> str:
        """The model that serves it."""
        return self._served_model

    @property
    def phase(self) -> Phase:
        """How far it is."""
        return self._phase

    def begin(self, objection: NaruError | None = None) -> None:
        """Sets it going; the listener hears nothing before the next turn of the loop.

        Args:
            objection: Why it must be refused without being looked at further.
        """
        self._timer = asyncio.get_running_loop().call_later(self.order.timeout, self._expire)
        self._preparation = self._spawn_in(self._admit(objection), self._context)

    def cancel(self, error: NaruError | None = None, *, unheard: bool = False) -> None:
        """Ends it early. Ignored when it is over.

        Args:
            error: Why, when it is not the caller's own wish.
            unheard: Whether nobody hears of its end any more.
        """
        if self._phase is Phase.PREPARING:
            # An edge that does not hear of the refusal cannot give back what it reserved.
            self._reserved = self._reserved or unheard
            if self._preparation is not None:
                self._preparation.cancel()
            self._refuse(error or NaruError(Reason.CANCELLED, "The request was cancelled."))
        elif self._phase is not Phase.OVER and not self._abort_asked:
            self._abort_asked = True
            self._abort_error = error
            if self._handle is not None:
                self._spawn(self._abort(self._handle))

    def fail(self, error: NaruError) -> None:
        """Ends it now with what is known, because the engine will say nothing more."""
        match self._phase:
            case Phase.PREPARING:
                self.cancel(error)
            case Phase.SUBMITTING:
                self._tools.journal.withdrawn(self.order.key)
                self._refuse(error)
            case Phase.RUNNING:
                self._finish(Outcome.FAILED, error, counted=False)
            case Phase.OVER:
                pass

    async def _admit(self, objection: NaruError | None) -> None:
        try:
            if objection is not None:
                raise objection
            prepared = await self._prepare()
            if prepared is not None and self._phase is Phase.PREPARING:
                await self._wait_for_turn(prepared)
                await self._submit(prepared)
        except NaruError as error:
            self._not_admitted(error)
        except Exception as fault:  # noqa: BLE001 -- it must end this request only, and the caller must hear of it
            self._not_admitted(self._tools.internal_error(fault, "preparing a generation"))

    def _not_admitted(self, error: NaruError) -> None:
        # An engine may have put out something of one choice before it could not take another one.
        if self._phase is Phase.RUNNING:
            self.fail(error)
        else:
            self._refuse(error)

    async def _prepare(self) -> PreparedRequest | None:
        request = self.order.request
        reserved = self.order.reserved_prompt_tokens
        if reserved is not None:
            prepared = await self._tools.engine.prepare(request)
            if prepared.prompt_tokens > reserved:
                error = NaruError(Reason.FAILED_PRECONDITION, "The prompt is larger than what was reserved for it.")
                self._refuse(error, prepared.prompt_tokens)
                return None
            return prepared
        need = estimate(request)
        cap = await self._reserve(need, 0)
        prepared = await self._tools.engine.prepare(request.capped(cap))
        if prepared.prompt_tokens > need.input_tokens:
            await self._reserve(replace(need, input_tokens=prepared.prompt_tokens), 1)
        return prepared

    async def _reserve(self, need: Need, revision: int) -> int | None:
        # Before the call: one that fails, or is cancelled, may have been decided.
        self._reserved = True
        decision = await self._tools.reservations.reserve(self.order, need, revision, self._served_model)
        if isinstance(decision, NaruError):
            self._reserved = revision > 0
            raise decision
        return decision.output_token_cap

    async def _wait_for_turn(self, prepared: PreparedRequest) -> None:
        self._meter = Meter.of(prepared, self.order.request)
        self._accept_time = self._tools.clock.time()
        if self._reserved:
            # Its lease may be shorter than the wait, here or at an upstream, and there is no edge to renew it.
            self._tools.leases.add(self._running_request(prepared.choices))
        turn = self._tools.turns.take(self.order.principal, prepared.prompt_tokens, prepared.choices)
        self._turn = await turn

    def _running_request(self, choices: int) -> RunningRequest:
        return RunningRequest(self.order, self._served_model, self._meter.prompt_tokens, choices, self._accept_time)

    async def _submit(self, prepared: PreparedRequest) -> None:
        self._open = set(range(prepared.choices))
        self._accept_time = self._tools.clock.time()
        self._tools.journal.accepted(self._event(Evidence.ACCEPTED, Accuracy.ESTIMATED, Outcome.FAILED))
        self._phase = Phase.SUBMITTING
        try:
            self._handle = handle = await self._tools.engine.submit(prepared, self._on_output)
            if self._abort_asked:
                self._spawn(self._abort(handle))
            await handle.taken()
        except BaseException:
            # Also when the loop is being torn down: what the engine did not take must not be billed after a restart.
            if self._phase is Phase.SUBMITTING:
                self._tools.journal.withdrawn(self.order.key)
            raise
        self._accept()
        if self._phase is Phase.OVER:
            self._handle = None
            handle.abandon()
            self._spawn(self._abort(handle))

    def _accept(self) -> None:
        if self._phase is not Phase.SUBMITTING:
            return
        self._phase = Phase.RUNNING
        self._tools.leases.add(self._running_request(self._meter.choices))
        self._tell(
            Accepted(
                event_id=self.order.event_id,
                request_id=self.order.request_id,
                model=self._served_model,
                prompt_tokens=self._meter.prompt_tokens,
                choices=self._meter.choices,
                accept_time=self._accept_time,
            )
        )
        self._log.info("generation accepted", model=self._served_model, prompt_tokens=self._meter.prompt_tokens)

    def _on_output(self, output: ChoiceOutput) -> None:
        """Hears the engine, which may begin to speak before it has returned from `submit`."""
        if self._phase is not Phase.RUNNING:
            if self._phase is Phase.OVER:
                return
            self._accept()
        gained = self._meter.take(output)
        if output.error is not None:
            handle = self._handle
            self._finish(Outcome.FAILED, self._engine_error(output.error), counted=False)
            if handle is not None:
                # An engine that only could not read the model's answer would go on generating it.
                self._spawn(self._abort(handle))
            return
        if not self._heard_output:
            self._heard_output = True
            self._tools.metrics.first_output_seconds.observe(self._tools.clock.monotonic() - self._started)
        if self._turn is not None:
            self._turn.heard(gained, choice_ended=bool(output.finish_reason))
        self._tell(output)
        if output.finish_reason:
            self._finish_reasons.add(output.finish_reason)
            self._open.discard(output.choice_index)
            if not self._open:
                self._conclude()

    def _conclude(self) -> None:
        if "error" in self._finish_reasons:
            self._finish(Outcome.FAILED, unavailable("inference", "The engine failed while generating."))
        elif "abort" in self._finish_reasons:
            by_engine = None if self._abort_asked else unavailable("inference", "The engine ended the request.")
            self._finish(Outcome.ABORTED, self._abort_error or by_engine)
        else:
            self._finish(Outcome.COMPLETED, None)

    def _engine_error(self, failure: Exception) -> NaruError:
        if isinstance(failure, NaruError):
            return failure
        self._log.error("engine failed generation", exception=repr(type(failure)))
        return unavailable("inference", "The engine failed while generating.")

    def _expire(self) -> None:
        self.cancel(NaruError(Reason.DEADLINE_EXCEEDED, "The time allowed for the request ran out."))

    async def _abort(self, handle: EngineHandle) -> None:
        try:
            async with asyncio.timeout(self._tools.abort_patience):
                await handle.cancel()
        except Exception:  # noqa: BLE001 -- whatever the engine does, the request must come to its end below
            self._log.exception("engine could not cancel")
        if self._phase is Phase.RUNNING:
            self._disarm()
            self._timer = asyncio.get_running_loop().call_later(self._tools.abort_patience, self._give_up)

    def _give_up(self) -> None:
        if self._phase is Phase.RUNNING:
            self._log.error("engine did not confirm cancel", choices=len(self._open))
            self._finish(Outcome.ABORTED, self._abort_error, counted=False)

    def _refuse(self, error: NaruError, prompt_tokens: int | None = None) -> None:
        if self._phase is Phase.OVER:
            return
        self._end()
        if self._reserved:
            self._tools.leases.forget(self.order.key)
            self._spawn(self._tools.reservations.release(self.order.key))
        self._tools.metrics.refused.labels(error.reason).inc()
        self._log.info("generation refused", reason=error.reason, prompt_tokens=prompt_tokens)
        self._span.set_attribute("naru.refused", error.reason)
        self._tell(Refused(error, prompt_tokens))
        self._leave()

    def _finish(self, outcome: Outcome, error: NaruError | None, *, counted: bool = True) -> None:
        self._end()
        accuracy = self._meter.accuracy(counted=counted)
        if self._handle is not None and accuracy is not Accuracy.EXACT:
            self._handle.abandon()
        # Of what ended in another way, its edge may not hear.
        told = outcome is Outcome.COMPLETED and self.order.reserved_prompt_tokens is not None
        self._tools.leases.remove(self.order.key, told=told)
        event = self._event(Evidence.FINAL, accuracy, outcome)
        self._tools.journal.finished(event)
        self._report(event, error)
        self._tell(Finished(outcome, event.usage, error))
        self._leave()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        _ = self._spawn_in(work, self._context)

    def _end(self) -> None:
        self._phase = Phase.OVER
        self._disarm()
        if self._turn is not None:
            self._turn.close()

    def _leave(self) -> None:
        self._span.end()
        # It knows whom to tell, and so holds all of this: a ring that only the garbage collector would find.
        self._handle = None
        self._on_over(self)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _report(self, event: UsageEvent, error: NaruError | None) -> None:
        metrics, usage = self._tools.metrics, event.usage
        duration = self._tools.clock.monotonic() - self._started
        metrics.finished.labels(event.outcome).inc()
        metrics.prompt_tokens.inc(usage.prompt_tokens)
        metrics.completion_tokens.inc(usage.completion_tokens)
        metrics.duration_seconds.observe(duration)
        self._span.set_attribute("naru.outcome", event.outcome)
        self._span.set_attribute("naru.completion_tokens", usage.completion_tokens)
        self._log.info(
            "generation finished",
            outcome=event.outcome,
            reason=error.reason if error else None,
            model=self._served_model,
            key_id=self.order.principal.key_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_prompt_tokens=usage.cached_prompt_tokens,
            duration=round(duration, 6),
        )

    def _event(self, evidence: Evidence, accuracy: Accuracy, outcome: Outcome) -> UsageEvent:
        return UsageEvent(
            event_id=self.order.event_id,
            attempt=self.order.attempt,
            evidence=evidence,
            accuracy=accuracy,
            principal=self.order.principal,
            requested_model=self.order.requested_model or self._served_model,
            served_model=self._served_model,
            endpoint=self.order.endpoint,
            usage=self._meter.usage(),
            outcome=outcome,
            accept_time=self._accept_time,
            end_time=self._tools.clock.time() if evidence is Evidence.FINAL else None,
            request_id=self.order.request_id,
            replica=self._tools.replica,
            epoch=self._tools.epoch,
        )

    def _tell(self, event: Event) -> None:
        try:
            self._listener(event)
        except Exception:  # noqa: BLE001 -- a listener that fails must not keep the request from being metered
            self._log.exception("generation listener failed")
            self.cancel()
