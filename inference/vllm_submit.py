"""Handing choices to vLLM's engine, and taking them back: once per step by a hook, or by `generate()` where there is none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from inference.vllm_compat import Vllm
from inference.vllm_payload import EngineChoice, EnginePayload
from inference.vllm_pooling import PoolingPayload
from inference.vllm_texts import StepTexts

Payload = EnginePayload | PoolingPayload
TextSink = Callable[[int, str, int, int], None]
"""Takes a choice's number, its further text, how many tokens that is, and of its prompt the cached ones. Never raises."""


class Outputs(Protocol):
    """Takes what the engine puts out for the choices of one request."""

    @property
    def text_sink(self) -> TextSink | None:
        """Takes further text of choices, where until their ends there is nothing else to tell; None where there is more."""

    def take(self, index: int, output: Any) -> None:
        """Takes an output of vLLM's for a choice, or an exception. Never raises."""

    def mute(self) -> None:
        """Delivers and counts nothing more."""


class Submission(Protocol):
    """Choices that the engine has."""

    async def cancel(self) -> None:
        """Stops all choices; each open one puts out a last output that says so."""


class Submitter(Protocol):
    """A way into the engine."""

    async def submit(self, payload: Payload, outputs: Outputs) -> Submission:
        """Hands all choices over, or none: then it raises what vLLM raised and `outputs` hears nothing more."""


class Collector:
    """Stands in for vLLM's RequestOutputCollector, of which the engine only ever calls `put`.

    vLLM's own wakes a task per request and token; this one passes the output on within the engine's loop over the step.
    """

    __slots__ = ("_index", "_outputs", "_text_sink")

    def __init__(self, index: int, outputs: Outputs, text_sink: TextSink | None) -> None:
        self._index = index
        self._outputs = outputs
        self._text_sink = text_sink

    def put(self, output: Any) -> None:
        """Takes an output or an exception. Never raises."""
        self._outputs.take(self._index, output)

    def put_text(self, text: str, tokens: int, cached_prompt_tokens: int) -> None:
        """Takes further text. Only with a sink for it. Never raises."""
        if self._text_sink is not None:
            self._text_sink(self._index, text, tokens, cached_prompt_tokens)


class StepSubmitter:
    """Submits by the hook of which `vllm_compat.per_step_hook_available` tells.

    Args:
        engine: The AsyncLLM.
        new_id: Makes request ids.
        request_state: vLLM's RequestState; None where `vllm_compat.text_hook` does not find it as expected.
    """

    def __init__(self, vllm: Vllm, engine: Any, new_id: Callable[[], str], request_state: Any = None) -> None:
        self._vllm = vllm
        self._engine = engine
        self._new_id = new_id
        self._texts = None if request_state is None else StepTexts(vllm, engine.output_processor, request_state)

    async def submit(self, payload: Payload, outputs: Outputs) -> Submission:
        """See `Submitter`."""
        engine = self._engine
        if engine.errored:
            raise self._vllm.EngineDeadError
        engine.check_admission(len(payload.choices))
        # As AsyncLLM.add_request does: the task may not have been there when the engine was built.
        engine._run_output_handler()
        submission = StepSubmission(self._vllm, engine)
        text_sink = outputs.text_sink
        try:
            for choice in payload.choices:
                submission.ids.append(self._assign_id(choice))
                collector = Collector(choice.index, outputs, text_sink)
                await engine._add_request(choice.core_request, None, None, 0, collector)
                if text_sink is not None and self._texts is not None:
                    self._texts.tell(submission.ids[-1])
        except BaseException:
            outputs.mute()
            await asyncio.shield(submission.cancel())
            raise
        return submission

    def _assign_id(self, choice: EngineChoice) -> str:
        request = choice.core_request
        request.request_id = self._new_id()
        self._engine.input_processor.assign_request_id(request)
        return str(request.request_id)


class StepSubmission:
    """Choices submitted by the hook, under the engine's internal ids."""

    def __init__(self, vllm: Vllm, engine: Any) -> None:
        self.ids: list[str] = []
        self._vllm = vllm
        self._engine = engine

    async def cancel(self) -> None:
        """See `Submission`. The collectors have heard of it before the engine has."""
        with contextlib.suppress(self._vllm.EngineDeadError):
            await self._engine.abort(self.ids, internal=True)


class GenerateSubmitter:
    """Submits by vLLM's public `generate()` and `encode()`, at the price of a task per choice.

    Args:
        engine: The AsyncLLM.
        new_id: Makes request ids.
    """

    def __init__(self, vllm: Vllm, engine: Any, new_id: Callable[[], str]) -> None:
        self._vllm = vllm
        self._engine = engine
        self._new_id = new_id
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, payload: Payload, outputs: Outputs) -> Submission:
        """See `Submitter`."""
        if self._engine.errored:
            raise self._vllm.EngineDeadError
        self._engine.check_admission(len(payload.choices))
        submission = GenerateSubmission(self._vllm, self._engine)
        for choice in payload.choices:
            request_id = self._new_id()
            submission.ids.append(request_id)
            work = self._generate(request_id, choice, payload.priority, outputs)
            task = asyncio.get_running_loop().create_task(work)
            submission.started.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return submission

    async def _generate(self, request_id: str, choice: EngineChoice, priority: int, outputs: Outputs) -> None:
        try:
            async for output in self._begin(request_id, choice, priority):
                outputs.take(choice.index, output)
        except Exception as error:  # noqa: BLE001 -- whatever the engine raised is how this choice ended
            outputs.take(choice.index, error)

    def _begin(self, request_id: str, choice: EngineChoice, priority: int) -> AsyncIterator[Any]:
        core = choice.core_request
        more: dict[str, Any] = {"lora_request": core.lora_request}
        begin = self._engine.encode
        if core.pooling_params is None:
            begin = self._engine.generate
            more |= {
                "reasoning_ended": core.reasoning_ended,
                "reasoning_parser_kwargs": core.reasoning_parser_kwargs,
            }
        produced: AsyncIterator[Any] = begin(choice.prompt, choice.params, request_id, priority=priority, **more)
        return produced


class GenerateSubmission:
    """Choices submitted by `generate()`, under the ids we gave."""

    def __init__(self, vllm: Vllm, engine: Any) -> None:
        self.ids: list[str] = []
        self.started: list[asyncio.Task[None]] = []
        self._vllm = vllm
        self._engine = engine

    async def cancel(self) -> None:
        """See `Submission`."""
        # A task that has not run yet has nothing in the engine that could be aborted.
        await asyncio.sleep(0)
        with contextlib.suppress(self._vllm.EngineDeadError):
            await self._engine.abort(self.ids)
        await asyncio.wait(self.started)
