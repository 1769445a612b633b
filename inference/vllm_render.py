"""From a request to what vLLM's engine takes, by vLLM's own classes and renderer; off the event loop where that is long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from msgspec.structs import replace

from inference.engine import EngineRequest, PreparedRequest
from inference.openai_body import (
    asked_max_tokens,
    check_body,
    choices_per_prompt,
    decode_body,
    is_chat,
    not_supported,
    too_long,
)
from inference.parser_families import ParserNames
from inference.vllm_compat import Vllm, most_bad_word_tokens, renders_inline
from inference.vllm_errors import from_response, to_naru_error
from inference.vllm_inline_renderer import InlineRenderer, is_short
from inference.vllm_outputs import OutputOptions, Reading
from inference.vllm_parsers import Parsers
from inference.vllm_payload import EngineChoice, EnginePayload, fan_out, set_cache_salt
from inference.vllm_repeats import Repeats, kind_of
from inference.vllm_unsupported import refuse_long_bad_words, refuse_unsupported, refuse_what_the_model_lacks
from naru.errors import invalid_argument
from naru.logs import Logger

_LONG_BODY = 64 * 1024
"""Bytes of JSON from which decoding it would be felt by everybody on the event loop."""

_MOST_PROMPT_CANDIDATES = 100_000
"""Log probabilities of prompt tokens that one request may ask for; to write more of them down would hold up everybody."""


class VllmRenderer:
    """Prepares requests for a running engine.

    Args:
        vllm: vLLM's names.
        engine: The AsyncLLM.
        supported_tasks: What the engine answered to `get_supported_tasks`.
        parsers: What reads tool calls and reasoning out of answers.

        lora_request: What vLLM calls the adapter that a request names; None for the base model.

    Raises:
        ValueError: A parser is not known, or not for this model.
    """

    def __init__(
        self,
        vllm: Vllm,
        engine: Any,
        supported_tasks: Any,
        parsers: ParserNames,
        lora_request: Callable[[str], Any] = lambda _: None,
    ) -> None:
        self._vllm = vllm
        self._engine = engine
        self._supported_tasks = supported_tasks
        self._lora_request = lora_request
        self._model_config = engine.model_config
        self._context_tokens = int(engine.model_config.max_model_len)
        self._defaults: dict[str, Any] = engine.model_config.get_diff_sampling_param()
        self._most_tokens = self._operator_limit()
        self._tokenizer = engine.renderer.tokenizer
        self._chat_template = str(getattr(self._tokenizer, "chat_template", None) or "")
        self._renderer = _online_renderer(vllm, engine, engine.renderer, parsers)
        self._inline, self._repeats = self._renderer, None
        if renders_inline(engine.renderer):
            inline = InlineRenderer(engine.renderer)
            self._inline = _online_renderer(vllm, engine, inline, parsers)
            self._repeats = Repeats(inline, self._context_tokens, partial(self._room, None))
        self._parsers = Parsers(vllm, self._renderer, self._tokenizer, engine.model_config)
        self._grammar_backend: str | None = None

    @property
    def online(self) -> Any:
        """The OnlineRenderer."""
        return self._renderer

    def warm_up(self) -> None:
        """Compiles the chat template, so that the first request does not wait for it, and learns what keeps grammars."""
        self._renderer.warmup()
        plain = self._vllm.CompletionRequest.model_validate({"prompt": "a", "structured_outputs": {"regex": "a"}})
        params = plain.to_sampling_params(1, self._defaults)
        processor = self._engine.input_processor
        processor.process_inputs("", self._vllm.tokens_input([1]), params, supported_tasks=self._supported_tasks)
        self._grammar_backend = params.structured_outputs._backend

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Renders, tokenises and validates a request.

        Raises:
            NaruError: The caller's fault, naming the field; or no capacity.
        """
        body: dict[str, Any] = {}
        try:
            body = await self._off_loop_if_long(request, partial(decode_body, request))
            kind = None if self._repeats is None else kind_of(request, body)
            return self._again(kind, request, body) or await self._prepare(kind, request, body)
        except Exception as error:  # vLLM raises many kinds for bad input; what is none of them goes on unchanged
            known = to_naru_error(error, self._vllm, body, self._context_tokens)
            if known is None:
                raise
            # Not "from error": its text may hold the prompt, which must not reach a log.
            raise known from None

    def _again(self, kind: str | None, request: EngineRequest, body: Mapping[str, Any]) -> PreparedRequest | None:
        return None if self._repeats is None or kind is None else self._repeats.prepare(kind, request, body)

    async def _prepare(self, kind: str | None, request: EngineRequest, body: dict[str, Any]) -> PreparedRequest:
        await self._off_loop_if_long(request, partial(_check, request, body))
        chat = is_chat(request)
        refuse_what_the_model_lacks(body, callable_tools=self._parsers.tool_calls, chat_template=self._chat_template)
        typed = await self._off_loop_if_long(request, partial(self._typed, request, body))
        renderer = self._inline if is_short(request, body) else self._renderer
        conversation, prompts = await self._render(renderer, typed, body, chat)
        options = _output_options(body, chat, stream=request.stream)
        echo = _chat_echo(typed, conversation) if chat else None
        choices: list[EngineChoice] = []
        readings: list[Reading] = []
        prompt_tokens = 0
        for prompt in prompts:
            length = self._vllm.extract_prompt_len(self._model_config, prompt)
            prompt_tokens += length
            set_cache_salt(prompt, request.cache_salt, body.get("cache_salt"))
            params = self._sampling_params(typed, body, chat, length, request.output_token_cap)
            self._check_prompt_logprobs(params.prompt_logprobs, prompt_tokens * choices_per_prompt(body), body)
            parsed = chat and self._parsers.wanted(typed)
            if parsed:
                # One step at a time, also for an answer that is not streamed: see ChoiceParser.
                params.output_kind = self._vllm.RequestOutputKind.DELTA
            core_request = await self._validate(prompt, params, request)
            if core_request.sampling_params.structured_outputs is not None:
                options = replace(options, grammar=self._grammar_field(core_request.sampling_params, body))
            if parsed:
                self._parsers.tell_engine(core_request, typed)
            made = fan_out(len(choices), choices_per_prompt(body), prompt, core_request)
            choices += made
            if not chat and typed.echo:
                echo = self._echoed(prompt, core_request)
            if parsed or echo is not None or options.tells_prompt:
                readings += [self._reading(typed, core_request, echo, chat=chat, parsed=parsed) for _ in made]
        payload = EnginePayload(tuple(choices), options, request.priority, len(prompts), tuple(readings))
        if self._repeats is not None and kind is not None:
            self._repeats.learn(kind, body, typed.messages, payload)
        return PreparedRequest(prompt_tokens=prompt_tokens, choices=len(choices), payload=payload)

    def _grammar_field(self, params: Any, body: Mapping[str, Any]) -> str:
        """The field that brought a grammar. Raises NaruError NOT_SUPPORTED for what only another library could keep.

        vLLM chooses a library for each request, but its engine has only one: the first request's, for good. Left to
        itself, one client's first request would choose for everybody, and what does not fit would fail in the engine.
        """
        field = next((name for name in ("structured_outputs", "response_format") if body.get(name)), "tools")
        if params.structured_outputs._backend != self._grammar_backend:
            raise not_supported(field, f"`{field}` holds a schema, pattern or grammar that the engine cannot keep to.")
        return field

    def _check_prompt_logprobs(self, asked: int | None, prompt_tokens: int, body: Mapping[str, Any]) -> None:
        """`prompt_tokens`: of all prompts so far, once per choice, as often as they are told."""
        if asked is None:
            return
        each = asked + 1 if asked >= 0 else int(self._model_config.get_vocab_size())
        if prompt_tokens * each > _MOST_PROMPT_CANDIDATES:
            field = "prompt_logprobs" if body.get("prompt_logprobs") is not None else "logprobs"
            raise invalid_argument(
                field,
                f"`{field}` of {asked} for {prompt_tokens} tokens of prompts is too much: at most "
                f"{_MOST_PROMPT_CANDIDATES} log probabilities of prompt tokens can be told, over all choices.",
            )

    def _echoed(self, prompt: Any, core_request: Any) -> str:
        """The text of a prompt, which may have come as token ids."""
        text = prompt.get("prompt")
        return text if isinstance(text, str) else str(self._tokenizer.decode(list(core_request.prompt_token_ids)))

    def _reading(self, typed: Any, core_request: Any, echo: str | None, *, chat: bool, parsed: bool) -> Reading:
        token_ids = core_request.prompt_token_ids or ()
        return Reading(
            decode=self._decode,
            echo=echo,
            echo_tokens=echo is not None and not chat,
            generates=chat or not (typed.echo and typed.max_tokens == 0),
            parser=self._parsers.make(typed, token_ids, whole=not typed.stream) if parsed else None,
        )

    def _decode(self, token_id: int) -> str:
        return str(self._tokenizer.decode([token_id]))

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
        # Every choice becomes an engine request of its own, so vLLM's classes see n = 1. Token ids are told by us.
        fields = {**body, "n": 1, "stream": request.stream, "return_token_ids": False}
        kind = self._vllm.ChatCompletionRequest if is_chat(request) else self._vllm.CompletionRequest
        return kind.model_validate(fields)

    async def _render(
        self, renderer: Any, typed: Any, body: Mapping[str, Any], chat: bool
    ) -> tuple[list[Any], list[Any]]:
        """The conversation as the model is told it (none for a completion), and the prompts."""
        rendered = await (renderer.render_chat(typed) if chat else renderer.render_completion(typed))
        if isinstance(rendered, self._vllm.ErrorResponse):
            raise from_response(rendered, body)
        return (list(rendered[0]), list(rendered[1])) if chat else ([], list(rendered))

    def _sampling_params(
        self, typed: Any, body: Mapping[str, Any], chat: bool, prompt_tokens: int, cap: int | None
    ) -> Any:
        asked = asked_max_tokens(body, chat)
        field = "messages" if chat else "prompt"
        # Whoever has the prompt cut to what fits takes what room is left.
        cut = body.get("truncate_prompt_tokens") is not None
        if asked is not None and not cut and prompt_tokens + asked[1] > self._context_tokens:
            raise too_long(field, prompt_tokens, self._context_tokens, asked[1])
        if prompt_tokens >= self._context_tokens:
            raise too_long(field, prompt_tokens, self._context_tokens)
        asked_tokens = asked[1] if asked is not None else None
        if asked_tokens is None and not chat:
            asked_tokens = self._vllm.CompletionRequest.model_fields["max_tokens"].default
        most = self._room(asked_tokens, prompt_tokens)
        params = typed.to_sampling_params(most if cap is None else min(most, cap), self._defaults)
        if body.get("prompt_logprobs") is None and (chat or body.get("logprobs") is None):
            # An echo of a conversation would ask for them too, and whoever asks for them gets nothing from the cache.
            # vLLM's parameters have noted that already.
            params.prompt_logprobs = None
            params.skip_reading_prefix_cache = False
        params.skip_clone = True
        return params

    def _room(self, asked_tokens: int | None, prompt_tokens: int) -> int:
        most: int = self._vllm.get_max_tokens(
            self._context_tokens, asked_tokens, prompt_tokens, self._defaults, override_max_tokens=self._most_tokens
        )
        return most

    async def _validate(self, prompt: Any, params: Any, request: EngineRequest) -> Any:
        processor = self._engine.input_processor
        validate = partial(
            processor.process_inputs,
            "",
            prompt,
            params,
            supported_tasks=self._supported_tasks,
            lora_request=self._lora_request(request.model),
            priority=request.priority,
        )
        # Compiling a grammar and tokenising bad words takes long enough to hold up everybody's tokens.
        if params.structured_outputs is None and not params.bad_words:
            return validate()
        core_request = await asyncio.to_thread(validate)
        if params.bad_words:
            refuse_long_bad_words(core_request.sampling_params.bad_words_token_ids, most_bad_word_tokens())
        return core_request


def make_renderer(
    vllm: Vllm,
    engine: Any,
    supported_tasks: Any,
    parsers: ParserNames,
    logger: Logger,
    *,
    lora_request: Callable[[str], Any] = lambda _: None,
) -> VllmRenderer:
    """A VllmRenderer; without parsers where those that were guessed do not fit, as an old model's of a family may not.

    Raises ValueError as VllmRenderer does, for parsers that the operator named.
    """
    try:
        return VllmRenderer(vllm, engine, supported_tasks, parsers, lora_request)
    except ValueError as error:
        if not parsers.guessed:
            raise
        logger.warning("vllm_parsers_do_not_fit", problem=str(error), effect="tools cannot be called")
        return VllmRenderer(vllm, engine, supported_tasks, ParserNames(), lora_request)


def _online_renderer(vllm: Vllm, engine: Any, renderer: Any, parsers: ParserNames) -> Any:
    try:
        return vllm.OnlineRenderer(
            engine.model_config,
            renderer,
            request_logger=None,
            chat_template=None,
            chat_template_content_format="auto",
            enable_auto_tools=bool(parsers.tool_calls),
            tool_parser=parsers.tool_calls or None,
            reasoning_parser=parsers.reasoning or None,
        )
    except TypeError as error:
        raise ValueError(
            "NARU_INFERENCE_TOOL_CALL_PARSER and NARU_INFERENCE_REASONING_PARSER must name parsers of vLLM that fit "
            f"the model, or be none: {error}"
        ) from error


def _check(request: EngineRequest, body: Mapping[str, Any]) -> None:
    check_body(request, body)
    refuse_unsupported(body)


def _chat_echo(typed: Any, conversation: list[Any]) -> str | None:
    """The end of the conversation that the answer goes on from, where it is told again."""
    if not typed.echo or not conversation or conversation[-1].get("role") != "assistant":
        return None
    content = conversation[-1].get("content")
    if isinstance(content, list):
        content = "\n".join(str(part.get("text", "")) for part in content)
    return content or None


def _output_options(body: Mapping[str, Any], chat: bool, *, stream: bool) -> OutputOptions:
    top: int | None = body.get("logprobs")
    if chat:
        top = (body.get("top_logprobs") or 0) if top else None
    return OutputOptions(
        top_logprobs=-1 if top is not None and body.get("logprob_token_ids") else top,
        token_ids=bool(body.get("return_token_ids")),
        prompt_token_ids=bool(body.get("return_token_ids")),
        prompt_logprobs=not stream and (body.get("prompt_logprobs") is not None),
    )
