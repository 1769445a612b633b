"""What a model that pools takes: a text each, for vectors, or a query and a document at once, for scores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from inference.engine import InputKind
from inference.openai_body import not_supported
from inference.pooling_body import PoolingBody
from inference.vllm_compat import Vllm, VllmScoring, load_scoring
from inference.vllm_pooling import PoolingPrompt, VllmPooler


class TextPrompts:
    """Makes a prompt of each text, for a vector.

    Args:
        vllm: vLLM's names.
        renderer: The OnlineRenderer.
    """

    task = "embed"
    scores = False

    def __init__(self, vllm: Vllm, renderer: Any) -> None:
        self._vllm = vllm
        self._renderer = renderer

    async def make(self, kind: InputKind, asked: PoolingBody, fields: dict[str, Any]) -> list[PoolingPrompt]:
        """See `PoolingPrompts.make`."""
        inputs = [one if isinstance(one, str) else list(one) for one in asked.inputs]
        typed = self._vllm.EmbeddingCompletionRequest.model_validate({**fields, "input": inputs})
        prompts = await self._renderer.preprocess_completion(typed, prompt_input=inputs, prompt_embeds=None)
        params = typed.to_pooling_params()
        return [PoolingPrompt(prompt, params) for prompt in prompts]


class PairPrompts:
    """Makes a prompt of each pair, for a score, with vLLM's own reader of pairs.

    Args:
        scoring: vLLM's names.
        engine: The AsyncLLM.
    """

    task = "classify"
    scores = True

    def __init__(self, scoring: VllmScoring, engine: Any) -> None:
        self._scoring = scoring
        self._model_config = engine.model_config
        self._reader = scoring.CrossEncoderIOProcessor(
            vllm_config=engine.vllm_config,
            renderer=engine.renderer,
            chat_template_config=scoring.ChatTemplateConfig(),
        )

    async def make(self, kind: InputKind, asked: PoolingBody, fields: dict[str, Any]) -> list[PoolingPrompt]:
        """See `PoolingPrompts.make`. On the renderer's threads, where all of vLLM's tokenising is done."""
        if kind is not InputKind.SCORE:
            raise not_supported("model", "The model scores pairs of texts; it makes no embeddings.")
        texts = asked.inputs
        pairs = asked.pairs()
        typed = self._scoring.ScoreQueriesDocumentsRequest.model_validate(
            {**fields, "queries": list(texts[: asked.queries]), "documents": list(texts[asked.queries :])}
        )
        both = {
            "tok_params": typed.build_tok_params(self._model_config),
            "params": typed.to_pooling_params(self.task),
            "chat_template": None,
            "max_tokens_per_query": 0,
            "max_tokens_per_doc": 0,
            "prompt_extras": None,
            "skip_mm_cache": False,
            "lora_requests": None,
            "priorities": 0,
        }
        # Thousands of tasks for thousands of pairs, but each is short, and a cancel ends them all.
        read = await asyncio.gather(
            *(
                self._reader.render_async({"data_1": texts[query], "data_2": texts[document], **both})
                for query, document in pairs
            )
        )
        return [PoolingPrompt(one["prompts"], one["params"]) for one in read]


def make_pooler(
    vllm: Vllm, engine: Any, supported_tasks: Collection[str], lora_request: Callable[[str], Any]
) -> VllmPooler:
    """What prepares requests for a running engine, by what its model can do.

    Args:
        vllm: vLLM's names.
        engine: The AsyncLLM.
        supported_tasks: What the engine answered to `get_supported_tasks`.
        lora_request: What vLLM calls the adapter that a request names; None for the base model.

    Raises:
        ValueError: It can do nothing that is served.
        VllmMismatchError: The installed vLLM does not read pairs as expected.
    """
    renderer = vllm.OnlineRenderer(
        engine.model_config,
        engine.renderer,
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
    )
    prompts: TextPrompts | PairPrompts
    if TextPrompts.task in supported_tasks:
        prompts = TextPrompts(vllm, renderer)
    elif PairPrompts.task in supported_tasks and getattr(engine.model_config.hf_config, "num_labels", 0) == 1:
        prompts = PairPrompts(load_scoring(vllm.version), engine)
    else:
        can = ", ".join(sorted(supported_tasks)) or "nothing"
        raise ValueError(f"The model can neither generate text nor make embeddings nor score pairs; it can: {can}.")
    return VllmPooler(vllm, engine, supported_tasks, renderer=renderer, prompts=prompts, lora_request=lora_request)
