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
from inference.vllm_control import VllmControl
from inference.vllm_errors import to_naru_error
from inference.vllm_outputs import Outputs as TextOutputs
from inference.vllm_payload import EnginePayload
from inference.vllm_pooling import PoolingPayload, VllmPooler
from inference.vllm_pooling_outputs import PoolingOutputs
from inference.vllm_pooling_prompts import make_pooler
from inference.vllm_render import VllmRenderer, make_renderer
from inference.vllm_settings import VllmEngineConfig, cpu_environment, engine_arguments, environment
from inference.vllm_submit import GenerateSubmitter, Outputs, StepSubmitter, Submission, Submitter
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

    async def taken(self) -> None:
        """See `EngineHandle.taken`. At once: what vLLM does not take, `submit` refuses."""

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
        self._renderer: VllmRenderer | VllmPooler | None = None
        self._submitter: Submitter | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._control: VllmControl | None = None
        self._count = EngineCount()

    async def start(self) -> None:
        """Loads the model and runs one warm-up request. Blocks the loop, on which the engine's sockets then live.

        Raises:
            VllmMismatchError: The installed vLLM is not one that fits.
            ValueError: `engine_args` names an argument that vLLM does not have, or the model can do nothing that is served.
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
        if not isinstance(payload, EnginePayload | PoolingPayload):
            raise TypeError("The request was prepared by another engine.")
        if self._vllm is None or self._submitter is None:
            raise unavailable("inference", "The engine is not running.")
        outputs = self._outputs(payload, sink)
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
        return self._models + (() if self._control is None else self._control.adapters())

    def control(self) -> VllmControl | None:
        """See `Engine.control`. None before `start` and after `shutdown` too."""
        return self._control

    def counters(self) -> EngineCounters:
        """See `Engine.counters`. A prompt is as long as vLLM's output says that it was."""
        return self._count.ended

    def slots(self) -> int:
        """See `Engine.slots`: what every one of the engine's data-parallel ranks runs. Not before `start`."""
        config = self._engine.vllm_config
        parallel = config.parallel_config
        ranks = parallel.data_parallel_size_local if parallel.local_engines_only else parallel.data_parallel_size
        return int(config.scheduler_config.max_num_seqs * ranks)

    def unfinished_requests(self) -> int:
        """See `Engine.unfinished_requests`."""
        return 0 if self._engine is None else int(self._engine.get_num_unfinished_requests())

    def healthy(self) -> bool:
        """See `Engine.healthy`. False before `start` and after `shutdown` too."""
        return self._engine is not None and not self._engine.errored

    def available(self) -> bool:
        """See `Engine.available`. All it needs is in this process and its own."""
        return True

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
        self._renderer = self._submitter = self._control = None
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

    def _outputs(self, payload: EnginePayload | PoolingPayload, sink: Sink) -> Outputs:
        choices = len(payload.choices)
        if isinstance(payload, PoolingPayload):
            counted = self._count.begin(choices, 1)
            return PoolingOutputs(choices, payload.pairs, sink, counted, self._logger, scores=payload.scores)
        counted = self._count.begin(choices, choices // payload.prompts)
        return TextOutputs(choices, payload.options, sink, counted, self._logger, readings=payload.readings)

    async def _build(self, vllm: Vllm) -> None:
        if vllm.current_platform.is_cpu():
            self._set_variables(cpu_environment())
        arguments = _engine_args(vllm, self._arguments(vllm))
        engine = vllm.AsyncLLM.from_engine_args(arguments, usage_context=vllm.UsageContext.OPENAI_API_SERVER)
        self._vllm, self._engine = vllm, engine
        self._submitter = self._choose_submitter(vllm, engine)
        tasks = await engine.get_supported_tasks()
        base = ServedModel(
            name=self._config.served_name,
            owned_by="naru",
            context_tokens=int(engine.model_config.max_model_len),
            create_time=time.time(),
        )
        self._control = VllmControl(vllm, engine, base, self._logger)
        self._renderer = await self._make_renderer(vllm, engine, tasks, self._control.lora_request)
        self._models = (base,)

    def _arguments(self, vllm: Vllm) -> dict[str, object]:
        plain = engine_arguments(self._config, on_cpu=False, bfloat16_is_fast=False)
        if not vllm.current_platform.is_cpu():
            return plain
        # What fits a machine without a GPU depends on what the model is.
        model = _engine_args(vllm, plain).create_model_config()
        return engine_arguments(
            self._config,
            on_cpu=True,
            bfloat16_is_fast=vllm_compat.bfloat16_is_fast(),
            pools=model.runner_type == "pooling",
            longest=int(model.max_model_len),
        )

    async def _make_renderer(
        self, vllm: Vllm, engine: Any, tasks: Any, lora_request: Callable[[str], Any]
    ) -> VllmRenderer | VllmPooler:
        """What prepares requests, and one request through the engine to warm it up."""
        prompt = vllm.tokens_input([1] * _WARM_UP_PROMPT_TOKENS)
        if "generate" in tasks:
            renderer = make_renderer(vllm, engine, tasks, self._config.parsers, self._logger, lora_request=lora_request)
            renderer.warm_up()
            params = vllm.SamplingParams(max_tokens=_WARM_UP_OUTPUT_TOKENS, ignore_eos=True)
            async for _ in engine.generate(prompt, params, self._new_id()):
                pass
            return renderer
        pooler = make_pooler(vllm, engine, tasks, lora_request)
        await pooler.warm_up(prompt, self._new_id())
        return pooler

    def _tokenizer(self) -> VllmTokenizer:
        if self._vllm is None or self._renderer is None or not self.healthy():
            raise unavailable("inference", "The engine is not running.")
        return VllmTokenizer(self._vllm, self._renderer.online)

    def _set_variables(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self._environ.setdefault(name, value)

    def _choose_submitter(self, vllm: Vllm, engine: Any) -> Submitter:
        if vllm_compat.per_step_hook_available(engine):
            return StepSubmitter(vllm, engine, self._new_id, vllm_compat.text_hook(engine))
        self._logger.warning(
            "vllm_step_hook_missing", vllm=vllm.version, effect="a task per request, streams cost more"
        )
        return GenerateSubmitter(vllm, engine, self._new_id)


def _engine_args(vllm: Vllm, arguments: dict[str, object]) -> Any:
    unknown = [name for name in arguments if name not in vllm.AsyncEngineArgs.__dataclass_fields__]
    if unknown:
        raise ValueError(f"vLLM {vllm.version} has no engine argument {', '.join(sorted(unknown))}.")
    return vllm.AsyncEngineArgs(**arguments)
