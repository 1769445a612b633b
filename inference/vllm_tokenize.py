"""Tokens as `vllm serve` tells them at /tokenize and /detokenize: by vLLM's own request classes and renderer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from inference.engine import EngineRequest, Tokens
from inference.openai_body import is_chat, read_body
from inference.vllm_compat import Vllm
from inference.vllm_errors import to_naru_error
from inference.vllm_unsupported import refuse_unsupported
from naru.errors import invalid_argument

_TEMPLATE_FIELDS = ("chat_template", "chat_template_kwargs", "media_io_kwargs", "mm_processor_kwargs")
"""Of those that are refused in a request that generates, the ones that matter here."""


class VllmTokenizer:
    """Tells the tokens of a running engine's model.

    Args:
        vllm: vLLM's names.
        renderer: The OnlineRenderer that renders what is generated from, so that both have the same tokens.
    """

    def __init__(self, vllm: Vllm, renderer: Any) -> None:
        self._vllm = vllm
        self._renderer = renderer

    async def tokenize(self, request: EngineRequest, *, strings: bool) -> Tokens:
        """See `Engine.tokenize`. Templates and tokenizes on the renderer's threads."""
        body: dict[str, Any] = {}
        try:
            # Bodies are up to half a megabyte, which would be felt by everybody on the event loop.
            body = await asyncio.to_thread(read_body, request)
            refuse_unsupported({name: value for name, value in body.items() if name in _TEMPLATE_FIELDS})
            prompts = await (self._conversation(body) if is_chat(request) else self._text(body))
            components = [self._vllm.extract_prompt_components(self._renderer.model_config, one) for one in prompts]
            token_ids = [token_id for one in components for token_id in one.token_ids or ()]
            if not strings:
                return Tokens(token_ids)
            tokenizer = self._renderer.renderer.get_tokenizer()
            return Tokens(token_ids, await asyncio.to_thread(tokenizer.convert_ids_to_tokens, token_ids))
        except Exception as error:  # vLLM raises many kinds for bad input; what is none of them goes on unchanged
            known = to_naru_error(error, self._vllm, body, 0)
            if known is None:
                raise
            # Not "from error": its text may hold the prompt, which must not reach a log.
            raise known from None

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Engine.detokenize`."""
        size = len(self._renderer.renderer.get_tokenizer())
        if token_ids and max(token_ids) >= size:
            raise invalid_argument("tokens", f"`tokens` must be ids from 0 to {size - 1}.")
        request = self._vllm.DetokenizeRequest(tokens=list(token_ids))
        prompt = await self._renderer.renderer.tokenize_prompt_async(
            self._vllm.TokensPrompt(prompt_token_ids=request.tokens),
            request.build_tok_params(self._renderer.model_config),
        )
        return str(prompt["prompt"])

    async def _conversation(self, body: dict[str, Any]) -> Any:
        renderer = self._renderer
        request = await asyncio.to_thread(partial(self._vllm.TokenizeChatRequest.model_validate, body))
        _, prompts = await renderer.preprocess_chat(
            request,
            request.messages,
            default_template=renderer.chat_template,
            default_template_content_format=renderer.chat_template_content_format,
            default_template_kwargs=renderer.default_chat_template_kwargs,
            tool_dicts=None if request.tools is None else [tool.model_dump() for tool in request.tools],
            skip_mm_cache=True,
        )
        return prompts

    async def _text(self, body: dict[str, Any]) -> Any:
        request = self._vllm.TokenizeCompletionRequest.model_validate(body)
        return await self._renderer.preprocess_completion(
            request, prompt_input=request.prompt, prompt_embeds=None, skip_mm_cache=True
        )
