"""Requests that differ from one before them in what their messages say: what vLLM made of the rest is used again.

Most clients ask with the same parameters over and over. They make up more than half of what preparing a short conversation
takes: vLLM's class of requests, its parameters of a template and of sampling, and its checks of these.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from inference.engine import EngineRequest, InputKind, PreparedRequest
from inference.openai_body import asked_max_tokens, choices_per_prompt
from inference.vllm_inline_renderer import ChatRendering, InlineRenderer, is_short
from inference.vllm_outputs import OutputOptions
from inference.vllm_payload import EnginePayload, fan_out, set_cache_salt

_MOST_KNOWN = 256
_PLAIN_ROLES = ("system", "user", "assistant")
_MESSAGE_FIELDS = {"role", "content"}
_PLAIN_PROMPT = {"type", "prompt", "prompt_token_ids", "arrival_time", "cache_salt"}


@dataclass(frozen=True, slots=True)
class _Known:
    """What requests of one kind have in common.

    Attributes:
        rendering: How their messages become a prompt.
        core_request: An EngineCoreRequest, of which all but the prompt is everybody's.
        asked_tokens: How many each choice may generate, told by the client; None for as many as there is room for.
    """

    rendering: ChatRendering
    core_request: Any
    options: OutputOptions
    asked_tokens: int | None


class Repeats:
    """Prepares conversations like ones that came before.

    A conversation counts as like another when all but its messages is the same, these are plain texts, and the prompt leaves
    room for all that is asked for. No parameter depends on the prompt then but how much may be generated, where nobody asked for
    less than there is room for. Everything else is vLLM's to prepare.

    Args:
        renderer: Makes a prompt of messages, as it did for the one of the kind that is known.
        context_tokens: Prompt and answer together, at most.
        most_tokens: How many tokens a choice may have after a prompt of so many, where nobody asked for less.
    """

    def __init__(self, renderer: InlineRenderer, context_tokens: int, most_tokens: Callable[[int], int]) -> None:
        self._renderer = renderer
        self._context_tokens = context_tokens
        self._most_tokens = most_tokens
        self._known: dict[str, _Known | None] = {}

    def prepare(self, kind: str, request: EngineRequest, body: Mapping[str, Any]) -> PreparedRequest | None:
        """What vLLM would have made of it; None when it is to be asked. Never raises.

        Args:
            kind: What `kind_of` says of it.
            request: What was asked.
            body: Its JSON, which nobody has checked.
        """
        known = self._known.get(kind)
        if known is None:
            return None
        try:
            prompt = self._renderer.render_like(body["messages"], known.rendering)
        except Exception:  # noqa: BLE001 -- vLLM finds the same, where what is wrong becomes the caller's error
            return None
        prompt_tokens = len(prompt["prompt_token_ids"])
        core_request = copy.copy(known.core_request)
        if not 0 < prompt_tokens <= self._context_tokens - (known.asked_tokens or 1):
            return None
        if known.asked_tokens is None:
            params = core_request.sampling_params = copy.copy(core_request.sampling_params)
            most, cap = self._most_tokens(prompt_tokens), request.output_token_cap
            params.max_tokens = most if cap is None else min(most, cap)
            if params.min_tokens > params.max_tokens:
                return None
        set_cache_salt(prompt, request.cache_salt, body.get("cache_salt"))
        core_request.prompt_token_ids = prompt["prompt_token_ids"]
        core_request.arrival_time = prompt["arrival_time"]
        core_request.cache_salt = prompt.get("cache_salt")
        choices = fan_out(0, choices_per_prompt(body), prompt, core_request)
        payload = EnginePayload(tuple(choices), known.options, request.priority, prompts=1)
        return PreparedRequest(prompt_tokens=prompt_tokens, choices=len(choices), payload=payload)

    def learn(self, kind: str, body: Mapping[str, Any], messages: object, payload: EnginePayload) -> None:
        """Remembers what vLLM made of the second request of a kind, where that may be used again.

        Args:
            kind: What `kind_of` says of it.
            body: Its JSON, checked.
            messages: Its messages, as vLLM's class has them.
            payload: What was made of it, and not submitted yet.
        """
        if kind not in self._known:
            # Once is no repetition: whoever never asks alike pays for nothing that is kept.
            if len(self._known) >= _MOST_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[kind] = None
            return
        asked = asked_max_tokens(body, chat=True)
        conversation, rendering = self._renderer.last_chat
        # Another one may have been rendered meanwhile; and what vLLM changes in messages it would have to change again.
        if rendering is None or conversation != id(messages) or messages != body["messages"]:
            return
        # Where a prompt is cut to what fits, a long one leaves less room than was asked for, which a shorter one would inherit.
        if body.get("truncate_prompt_tokens") is not None:
            return
        if body.get("echo") or not _of_parameters_only(payload):
            return
        core_request = copy.copy(payload.choices[0].core_request)
        core_request.prompt_token_ids = None  # nobody's prompt is kept
        self._known[kind] = _Known(rendering, core_request, payload.options, None if asked is None else asked[1])


def kind_of(request: EngineRequest, body: Mapping[str, Any]) -> str | None:
    """What is the same for all requests that are alike, as text; None for one that is like no other.

    Args:
        request: What was asked.
        body: Its JSON, which nobody has checked.
    """
    if request.kind is not InputKind.OPENAI_CHAT or not _plain(body.get("messages")) or not is_short(request, body):
        return None
    parameters = {name: value for name, value in body.items() if name != "messages"}
    if not all(map(_is_flat, parameters.values())):
        return None
    # As text: 1, 1.0 and true are equal and mean different things.
    return repr((request.model, request.stream, request.output_token_cap, request.priority, parameters))


def _plain(messages: object) -> bool:
    return (
        isinstance(messages, list)
        and bool(messages)
        and all(
            isinstance(one, dict)
            and one.keys() == _MESSAGE_FIELDS
            and one["role"] in _PLAIN_ROLES
            and isinstance(one["content"], str)
            for one in messages
        )
    )


def _is_flat(value: object) -> bool:
    """Whether it is one value, or a list or an object of such: what is deeper is a schema or a tool, and no parameter."""
    if isinstance(value, dict):
        value = list(value.values())
    return not any(isinstance(item, list | dict) for item in value) if isinstance(value, list) else True


def _of_parameters_only(payload: EnginePayload) -> bool:
    """Whether nothing but the prompt itself came of the messages."""
    first = payload.choices[0]
    core, params = first.core_request, first.params
    plain_prompt = first.prompt.get("type") == "token" and first.prompt.keys() <= _PLAIN_PROMPT
    free = params.structured_outputs is None and params.prompt_logprobs is None
    return plain_prompt and free and core.lora_request is None and not payload.readings
