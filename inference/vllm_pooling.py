"""From a request for vectors or scores to what vLLM's engine takes, for models that pool: they generate no text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from inference.engine import POOLING_KINDS, EngineRequest, InputKind, PreparedRequest
from inference.openai_body import not_supported
from inference.pooling_body import PoolingBody, read_pooling_body
from inference.vllm_compat import Vllm
from inference.vllm_errors import to_naru_error
from inference.vllm_payload import EngineChoice, set_cache_salt

_FIELDS = (
    "add_special_tokens",
    "dimensions",
    "padding",
    "truncate_prompt_tokens",
    "truncation_side",
    "use_activation",
)
"""What vLLM's request class is told; how vectors are written down is the edge's business."""


@dataclass(frozen=True, slots=True)
class PoolingPayload:
    """What `submit` needs of a prepared request.

    Attributes:
        choices: One per input of the model.
        pairs: Which inputs' vectors are compared; none where the outputs themselves are wanted.
        scores: Whether what the engine puts out is a score instead of a vector.
    """

    choices: tuple[EngineChoice, ...]
    priority: int
    pairs: tuple[tuple[int, int], ...] = ()
    scores: bool = False


@dataclass(frozen=True, slots=True)
class PoolingPrompt:
    """An input of the model, as vLLM has it: the prompt, and its PoolingParams."""

    prompt: Any
    params: Any


class PoolingPrompts(Protocol):
    """What a kind of model makes of texts.

    Attributes:
        task: vLLM's name of what the model does.
        scores: Whether its outputs are scores of pairs instead of vectors.
    """

    @property
    def task(self) -> str:
        """See above."""

    @property
    def scores(self) -> bool:
        """See above."""

    async def make(self, kind: InputKind, asked: PoolingBody, fields: dict[str, Any]) -> list[PoolingPrompt]:
        """The model's inputs. Raises what vLLM raises for bad ones, or NaruError."""


class VllmPooler:
    """Prepares requests for a running engine whose model pools.

    Args:
        vllm: vLLM's names.
        engine: The AsyncLLM.
        supported_tasks: What the engine answered to `get_supported_tasks`.
        renderer: The OnlineRenderer.
        prompts: What the model makes of texts.
        lora_request: What vLLM calls the adapter that a request names; None for the base model.
    """

    def __init__(
        self,
        vllm: Vllm,
        engine: Any,
        supported_tasks: Any,
        *,
        renderer: Any,
        prompts: PoolingPrompts,
        lora_request: Callable[[str], Any] = lambda _: None,
    ) -> None:
        self._vllm = vllm
        self._engine = engine
        self._supported_tasks = supported_tasks
        self._renderer = renderer
        self._prompts = prompts
        self._lora_request = lora_request
        self._model_config = engine.model_config

    @property
    def online(self) -> Any:
        """The OnlineRenderer."""
        return self._renderer

    async def warm_up(self, prompt: Any, request_id: str) -> None:
        """Runs one request through the engine."""
        async for _ in self._engine.encode(prompt, self._vllm.PoolingParams(task=self._prompts.task), request_id):
            pass

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Tokenises and validates a request.

        Raises:
            NaruError: The caller's fault, naming the field; or no capacity.
        """
        if request.kind not in POOLING_KINDS:
            raise not_supported("model", "The model makes embeddings or scores; it does not generate text.")
        # Of thousands of texts, reading them would be felt by everybody on the event loop.
        asked = await asyncio.to_thread(read_pooling_body, request)
        try:
            return await self._prepare(request, asked)
        except Exception as error:  # vLLM raises many kinds for bad input; what is none of them goes on unchanged
            known = to_naru_error(error, self._vllm, asked.fields, int(self._model_config.max_model_len))
            if known is None:
                raise
            # Not "from error": its text may hold the input, which must not reach a log.
            raise known from None

    async def _prepare(self, request: EngineRequest, asked: PoolingBody) -> PreparedRequest:
        if asked.fields.get("dimensions") is not None and not self._model_config.is_matryoshka:
            raise not_supported("dimensions", "The model's embeddings cannot be shortened: leave `dimensions` out.")
        fields = {name: asked.fields[name] for name in _FIELDS if name in asked.fields}
        prompts = await self._prompts.make(request.kind, asked, fields)
        choices = await asyncio.to_thread(partial(self._choices, prompts, request))
        pairs = () if self._prompts.scores else asked.pairs()
        return PreparedRequest(
            prompt_tokens=sum(len(choice.core_request.prompt_token_ids) for choice in choices),
            choices=len(pairs) or len(choices),
            payload=PoolingPayload(tuple(choices), request.priority, pairs, scores=self._prompts.scores),
        )

    def _choices(self, prompts: list[PoolingPrompt], request: EngineRequest) -> list[EngineChoice]:
        choices = []
        for index, one in enumerate(prompts):
            set_cache_salt(one.prompt, request.cache_salt, None)
            core_request = self._engine.input_processor.process_inputs(
                "",
                one.prompt,
                one.params,
                supported_tasks=self._supported_tasks,
                lora_request=self._lora_request(request.model),
                priority=request.priority,
            )
            choices.append(EngineChoice(index, one.prompt, one.params, core_request))
        return choices
