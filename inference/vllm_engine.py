"""The real engine: vLLM's AsyncLLM in this process."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from inference import vllm_compat
from inference.engine import EngineCounters, EngineHandle, EngineRequest, PreparedRequest, ServedModel, Sink, Tokens
from inference.engine_count import EngineCount
from inference.vllm_compat import Vllm
from inference.vllm_errors import to_naru_error
from inference.vllm_outputs import Outputs
from inference.vllm_render import EnginePayload, VllmRenderer, make_renderer
from inference.vllm_settings import VllmEngineConfig, cpu_environment, engine_arguments, environment
from inference.vllm_submit import GenerateSubmitter, StepSubmitter, Submission, Submitter
from inference.vllm_tokenize import VllmTokenizer
from naru.errors import unavailable
from naru.logs import Logger

_WARM_UP_PROMPT_TOKENS = 16
_WARM_UP_OUTPUT_TOKENS = 4
_SHUTDOWN_AFTER_FAILURE = 5.0


@dataclass(frozen=True, slots=True)
class VllmHandle:
    """A submitted request."""

    submission: Submission
    outputs: Outputs

    async def cancel(self) -> None:
        """See `EngineHandle.cancel`."""
        await self.submission.cancel()

    def abandon(self) -> None:
        """See `EngineHandle.abandon`."""
        self.outputs.mute()


class VllmEngine:
    """Keeps the promise of `inference.engine.Engine` with vLLM.

    Args:
        config: What to serve.
        environ: The process's variables. vLLM takes part of its settings from them; those the operator has not set are set
            before it is imported, and before its own process is started.
        new_id: Makes ids for the engine's requests.
        logger: Where it reports.
    """

    def __init__(
        self,
        config: VllmEngineConfig,
        *,
        environ: MutableMapping[str, str],
        new_id: Callable[[], str],
        logger: Logger,
    ) -> None:
        self._config = config
        self._environ = environ
        self._new_id = new_id
        self._logger = logger
        self._vllm: Vllm | None = None
        self._engine: Any = None
        self._renderer: VllmRenderer | None = None
        self._submitter: Submitter | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._count = EngineCount()

    async def start(self) -> None:
        """Loads the model and runs one warm-up request. Blocks the loop, on which the engine's sockets then live.

        Raises:
            VllmMismatchError: The installed vLLM is not one that fits.
            ValueError: `engine_args` names an argument that vLLM does not have.
            Exception: Whatever keeps vLLM from loading the model.
        """
        self._set_variables(environment(self._config))
        # Something that vLLM imports keeps the frames alive that imported it, so none of them may hold the engine.
        vllm = vllm_compat.load()
        try:
            await self._build(vllm)
        except BaseException:
            await self.shutdown(_SHUTDOWN_AFTER_FAILURE)
            raise
        vllm.freeze_gc_heap()

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """See `Engine.prepare`."""
        if self._renderer is None or not self.healthy():
            raise unavailable("inference", "The engine is not running.")
        return await self._renderer.prepare(request)

    async def submit(self, prepared: PreparedRequest, sink: Sink) -> EngineHandle:
        """See `Engine.submit`. The sink is called within the engine's loop over a step, so it must be quick."""
        payload = prepared.payload
        if not isinstance(payload, EnginePayload):
            raise TypeError("The request was prepared by another engine.")
        if self._vllm is None or self._submitter is None:
            raise unavailable("inference", "The engine is not running.")
        choices = len(payload.choices)
        counted = self._count.begin(choices, choices // payload.prompts)
        outputs = Outputs(choices, payload.options, sink, counted, self._logger, readings=payload.readings)
        try:
            submission = await self._submitter.submit(payload, outputs)
        except Exception as error:  # vLLM refuses in many ways; what is none of them goes on unchanged
            known = to_naru_error(error, self._vllm, {}, 0)
            if known is None:
                raise
            raise known from error
        return VllmHandle(submission, outputs)

    async def tokenize(self, request: EngineRequest, *, strings: bool) -> Tokens:
        """See `Engine.tokenize`."""
        return await self._tokenizer().tokenize(request, strings=strings)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Engine.detokenize`."""
        return await self._tokenizer().detokenize(token_ids)

    def models(self) -> tuple[ServedModel, ...]:
        """See `Engine.models`. Empty before `start`."""
        return self._models

    def counters(self) -> EngineCounters:
        """See `Engine.counters`. A prompt is as long as vLLM's output says that it was."""
        return self._count.ended

    def unfinished_requests(self) -> int:
        """See `Engine.unfinished_requests`."""
        return 0 if self._engine is None else int(self._engine.get_num_unfinished_requests())

    def healthy(self) -> bool:
        """See `Engine.healthy`. False before `start` and after `shutdown` too."""
        return self._engine is not None and not self._engine.errored

    async def responsive(self, timeout: float) -> bool:
        """See `Engine.responsive`. Asks the engine's process, which answers between two steps."""
        if not self.healthy():
            return False
        try:
            async with asyncio.timeout(timeout):
                await self._engine.is_paused()
        except Exception:  # noqa: BLE001 -- whatever went wrong, it did not answer
            return False
        return True

    async def shutdown(self, timeout: float) -> None:
        """See `Engine.shutdown`. What still runs ends with an error."""
        engine, self._engine = self._engine, None
        self._renderer = self._submitter = None
        if engine is None:
            return
        if not engine.get_num_unfinished_requests():
            # Nobody is left to be told that the engine ended, so vLLM need not log its end as an error.
            engine.output_handler.cancel()
        await asyncio.get_running_loop().run_in_executor(None, partial(engine.shutdown, timeout=timeout))
        # Its destructor shuts down once more, which fails noisily if it is left for the interpreter's own end.
        del engine
        gc.unfreeze()
        gc.collect()

    async def _build(self, vllm: Vllm) -> None:
        on_cpu = bool(vllm.current_platform.is_cpu())
        if on_cpu:
            self._set_variables(cpu_environment())
        bfloat16_is_fast = vllm_compat.bfloat16_is_fast()
        arguments = _engine_args(vllm, engine_arguments(self._config, on_cpu=on_cpu, bfloat16_is_fast=bfloat16_is_fast))
        engine = vllm.AsyncLLM.from_engine_args(arguments, usage_context=vllm.UsageContext.OPENAI_API_SERVER)
        self._vllm, self._engine = vllm, engine
        self._submitter = self._choose_submitter(vllm, engine)
        tasks = await engine.get_supported_tasks()
        self._renderer = make_renderer(vllm, engine, tasks, self._config.parsers, self._logger)
        self._renderer.warm_up()
        await self._warm_up(vllm, engine)
        self._models = (
            ServedModel(
                name=self._config.served_name,
                owned_by="naru",
                context_tokens=int(engine.model_config.max_model_len),
                create_time=time.time(),
            ),
        )

    def _tokenizer(self) -> VllmTokenizer:
        if self._vllm is None or self._renderer is None or not self.healthy():
            raise unavailable("inference", "The engine is not running.")
        return VllmTokenizer(self._vllm, self._renderer.online)

    def _set_variables(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self._environ.setdefault(name, value)

    def _choose_submitter(self, vllm: Vllm, engine: Any) -> Submitter:
        if vllm_compat.per_step_hook_available(engine):
            return StepSubmitter(vllm, engine, self._new_id)
        self._logger.warning(
            "vllm_step_hook_missing", vllm=vllm.version, effect="a task per request, streams cost more"
        )
        return GenerateSubmitter(vllm, engine, self._new_id)

    async def _warm_up(self, vllm: Vllm, engine: Any) -> None:
        prompt = vllm.tokens_input([1] * _WARM_UP_PROMPT_TOKENS)
        params = vllm.SamplingParams(max_tokens=_WARM_UP_OUTPUT_TOKENS, ignore_eos=True)
        async for _ in engine.generate(prompt, params, self._new_id()):
            pass


def _engine_args(vllm: Vllm, arguments: dict[str, object]) -> Any:
    unknown = [name for name in arguments if name not in vllm.AsyncEngineArgs.__dataclass_fields__]
    if unknown:
        raise ValueError(f"vLLM {vllm.version} has no engine argument {', '.join(sorted(unknown))}.")
    return vllm.AsyncEngineArgs(**arguments)
