"""From a request to what vLLM's engine takes: vLLM's own request classes and renderer do the work, off the event loop."""

from __future__ import annotations

import asyncio
import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from inference.engine import EngineRequest, PreparedRequest
from inference.openai_body import asked_max_tokens, choices_per_prompt, is_chat, read_body, too_long
from inference.vllm_compat import Vllm
from inference.vllm_errors import from_response, to_naru_error
from inference.vllm_outputs import OutputOptions
from inference.vllm_unsupported import refuse_unsupported

_LONG_BODY = 64 * 1024
"""Bytes of JSON from which decoding it would be felt by everybody on the event loop."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One choice, ready to be submitted as an engine request of its own.

    Attributes:
        prompt: vLLM's rendered engine input.
        params: vLLM's SamplingParams with n = 1.
        core_request: The validated EngineCoreRequest.
    """

    index: int
    prompt: Any
    params: Any
    core_request: Any


@dataclass(frozen=True, slots=True)
class EnginePayload:
    """What `submit` needs of a prepared request; each of its `prompts` has as many choices as the others."""

    choices: tuple[EngineChoice, ...]
    options: OutputOptions
    priority: int
    prompts: int


class VllmRenderer:
    """Prepares requests for a running engine.

    Args:
        vllm: vLLM's names.
        engine: The AsyncLLM.
        supported_tasks: What the engine answered to `get_supported_tasks`.
    """

    def __init__(self, vllm: Vllm, engine: Any, supported_tasks: Any) -> None:
        self._vllm = vllm
        self._engine = engine
        self._supported_tasks = supported_tasks
        self._model_config = engine.model_config
        self._context_tokens = int(engine.model_config.max_model_len)
        self._defaults: dict[str, Any] = engine.model_config.get_diff_sampling_param()
        self._most_tokens = self._operator_limit()
        self._renderer = vllm.OnlineRenderer(
            engine.model_config,
            engine.renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
        )

    def warm_up(self) -> None:
        """Compiles the chat template, so that the first request does not wait for it."""
        self._renderer.warmup()

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Renders, tokenises and validates a request.

        Raises:
            NaruError: The caller's fault, naming the field; or no capacity.
        """
        body: dict[str, Any] = {}
        try:
            chat = is_chat(request)
            body = await self._off_loop_if_long(request, partial(read_body, request))
            refuse_unsupported(body)
            typed = await self._off_loop_if_long(request, partial(self._typed, request, body))
            prompts = await self._render(typed, body, chat)
            choices: list[EngineChoice] = []
            prompt_tokens = 0
            for prompt in prompts:
                length = self._vllm.extract_prompt_len(self._model_config, prompt)
                prompt_tokens += length
                _set_cache_salt(prompt, request.cache_salt, body.get("cache_salt"))
                params = self._sampling_params(typed, body, chat, length, request.output_token_cap)
                core_request = await self._validate(prompt, params, request.priority)
                choices += _fan_out(len(choices), choices_per_prompt(body), prompt, core_request)
        except Exception as error:  # vLLM raises many kinds for bad input; what is none of them goes on unchanged
            known = to_naru_error(error, self._vllm, body, self._context_tokens)
            if known is None:
                raise
            # Not "from error": its text may hold the prompt, which must not reach a log.
            raise known from None
        options = _output_options(body, chat)
        payload = EnginePayload(tuple(choices), options, request.priority, len(prompts))
        return PreparedRequest(prompt_tokens=prompt_tokens, choices=len(choices), payload=payload)

    def _operator_limit(self) -> int | None:
        """The most output tokens that the model's configuration allows, found as `vllm serve` finds it."""
        if self._model_config.generation_config not in ("auto", "vllm"):
            limit = self._defaults.get("max_tokens")
        else:
            limit = self._model_config.override_generation_config.get("max_new_tokens")
        return None if limit is None else int(limit)

    async def _off_loop_if_long(self, request: EngineRequest, work: Callable[[], Any]) -> Any:
        if len(request.openai_json) > _LONG_BODY:
            return await asyncio.to_thread(work)
        return work()

    def _typed(self, request: EngineRequest, body: Mapping[str, Any]) -> Any:
        # Every choice becomes an engine request of its own, so vLLM's classes see n = 1.
        fields = {**body, "n": 1, "stream": request.stream}
        kind = self._vllm.ChatCompletionRequest if is_chat(request) else self._vllm.CompletionRequest
        return kind.model_validate(fields)

    async def _render(self, typed: Any, body: Mapping[str, Any], chat: bool) -> list[Any]:
        if chat:
            rendered = await self._renderer.render_chat(typed)
        else:
            rendered = await self._renderer.render_completion(typed)
        if isinstance(rendered, self._vllm.ErrorResponse):
            raise from_response(rendered, body)
        return list(rendered[1] if chat else rendered)

    def _sampling_params(
        self, typed: Any, body: Mapping[str, Any], chat: bool, prompt_tokens: int, cap: int | None
    ) -> Any:
        asked = asked_max_tokens(body, chat)
        field = "messages" if chat else "prompt"
        if prompt_tokens >= self._context_tokens:
            raise too_long(field, prompt_tokens, self._context_tokens)
        if asked is not None and prompt_tokens + asked[1] > self._context_tokens:
            raise too_long(field, prompt_tokens, self._context_tokens, asked[1])
        asked_tokens = asked[1] if asked is not None else None
        if asked_tokens is None and not chat:
            asked_tokens = self._vllm.CompletionRequest.model_fields["max_tokens"].default
        most = self._vllm.get_max_tokens(
            self._context_tokens, asked_tokens, prompt_tokens, self._defaults, override_max_tokens=self._most_tokens
        )
        params = typed.to_sampling_params(most if cap is None else min(most, cap), self._defaults)
        params.skip_clone = True
        return params

    async def _validate(self, prompt: Any, params: Any, priority: int) -> Any:
        processor = self._engine.input_processor
        validate = partial(
            processor.process_inputs, "", prompt, params, supported_tasks=self._supported_tasks, priority=priority
        )
        # Compiling a grammar and tokenising bad words takes long enough to hold up everybody's tokens.
        if params.structured_outputs is not None or params.bad_words:
            return await asyncio.to_thread(validate)
        return validate()


def _fan_out(first: int, count: int, prompt: Any, core_request: Any) -> list[EngineChoice]:
    """`count` requests of one choice each; a seeded one gets seed, seed + 1, ... as vLLM's own children do."""
    choices = []
    for number in range(count):
        request, params = core_request, core_request.sampling_params
        if number > 0:
            request = copy.copy(core_request)
            if params.seed is not None:
                params = copy.copy(params)
                params.seed += number
                request.sampling_params = params
        choices.append(EngineChoice(first + number, prompt, params, request))
    return choices


def _set_cache_salt(prompt: Any, tenant: str, client: str | None) -> None:
    """Keeps tenants from finding each other's prompts in the prefix cache; a client's salt only separates further."""
    if tenant and client:
        prompt["cache_salt"] = hashlib.sha256(f"{len(tenant)}:{tenant}{client}".encode()).hexdigest()
    elif tenant or client:
        prompt["cache_salt"] = tenant or client


def _output_options(body: Mapping[str, Any], chat: bool) -> OutputOptions:
    top: int | None = body.get("logprobs")
    if chat:
        top = (body.get("top_logprobs") or 0) if top else None
    return OutputOptions(
        top_logprobs=-1 if top is not None and body.get("logprob_token_ids") else top,
        token_ids=bool(body.get("return_token_ids")),
        tokens_as_ids=bool(body.get("return_tokens_as_token_ids")),
    )
