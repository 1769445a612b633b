"""What an upstream is asked: the caller's own body, less what must be ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inference.engine import EngineRequest, InputKind
from inference.openai_body import asked_max_tokens, choices_per_prompt, is_chat, not_supported, prompts, read_body
from naru.prompt_estimate import estimate_prompt_tokens

_ELSEWHERE = "is not supported; which model answers, and where, is set by the service."
_TEXT_ONLY = "is not supported; only text is."
_REFUSED = {
    "models": _ELSEWHERE,
    "fallbacks": _ELSEWHERE,
    "route": _ELSEWHERE,
    "preset": _ELSEWHERE,
    "api_key": _ELSEWHERE,
    "api_base": _ELSEWHERE,
    "base_url": _ELSEWHERE,
    "extra_headers": _ELSEWHERE,
    "extra_body": _ELSEWHERE,
    "plugins": "is not supported; it would cost what no price here covers.",
    "web_search_options": "is not supported; it would cost what no price here covers.",
    "store": "is not supported; answers are not kept.",
    "use_beam_search": "is not supported; it would generate more than was reserved.",
    "moderation": "is not supported; what it finds could not be told.",
    "functions": "is not supported; use `tools`.",
    "function_call": "is not supported; use `tool_choice`.",
    "audio": _TEXT_ONLY,
    "prompt_embeds": _TEXT_ONLY,
    "kv_transfer_params": _ELSEWHERE,
    "ec_transfer_params": _ELSEWHERE,
    "prompt_logprobs": "is not supported with this model.",
}
_COMPLETION_TOKENS = 16
_TIERS = (None, "auto", "default")
_OWN = ("usage", "cache_salt", "priority", "request_id", "session_id")
"""What means something to this service alone: how usage is shown, and what keeps its callers apart."""


@dataclass(frozen=True, slots=True)
class UpstreamCall:
    """A request as it is sent.

    Attributes:
        path: Below the base URL.
        body: The JSON object.
        chat: Whether the answer's choices are messages.
        choices: How many choices the answer has, over all prompts.
        prompt_tokens: An estimate, leaning upwards: nobody counts before the upstream has answered.
        most_tokens: How many a choice may have; None when nobody set a limit.
    """

    path: str
    body: Mapping[str, Any]
    stream: bool
    chat: bool
    choices: int
    prompt_tokens: int
    most_tokens: int | None = None


def make_call(request: EngineRequest, model: str) -> UpstreamCall:
    """What to send for a request, of a model by the upstream's name.

    Raises:
        NaruError: INVALID_ARGUMENT or NOT_SUPPORTED, naming the field.
    """
    asked, chat = read_body(request), is_chat(request)
    _refuse_unsupported(asked)
    # Of its two names the cap has one: which of both an upstream would go by, nobody knows.
    dropped = ("stream_options", "max_tokens", "max_completion_tokens", *_OWN)
    body = {name: value for name, value in asked.items() if name not in dropped}
    body |= {"model": model, "stream": request.stream}
    if request.stream:
        body["stream_options"] = {"include_usage": True}
    cap = _cap(asked, chat, request.output_token_cap)
    body |= cap
    return UpstreamCall(
        path="/chat/completions" if chat else "/completions",
        body=body,
        stream=request.stream,
        chat=chat,
        choices=prompts(asked, chat) * choices_per_prompt(asked),
        prompt_tokens=_estimate(request, asked),
        most_tokens=next(iter(cap.values()), None),
    )


def _cap(body: Mapping[str, Any], chat: bool, cap: int | None) -> dict[str, int]:
    """The most tokens of a choice: what was asked for, what was granted, or OpenAI's default, which not all keep to."""
    asked = asked_max_tokens(body, chat) or (None if chat else ("max_tokens", _COMPLETION_TOKENS))
    if asked is None:
        # The newest of OpenAI's chat models know this name alone.
        return {} if cap is None else {"max_completion_tokens": cap}
    field, most = asked
    return {field: most if cap is None else min(most, cap)}


def _refuse_unsupported(body: Mapping[str, Any]) -> None:
    for field, why in _REFUSED.items():
        if body.get(field):
            raise not_supported(field, f"`{field}` {why}")
    if body.get("best_of") not in (None, choices_per_prompt(body)):
        raise not_supported("best_of", "`best_of` other than `n` is not supported; ask for `n` and choose yourself.")
    if body.get("service_tier") not in _TIERS:
        raise not_supported(
            "service_tier", "`service_tier` other than auto and default is not supported; tiers belong to keys."
        )
    if body.get("modalities") not in (None, ["text"]):
        raise not_supported("modalities", f"`modalities` {_TEXT_ONLY}")


def _estimate(request: EngineRequest, body: Mapping[str, Any]) -> int:
    """What the edge has reserved, or less: of the prompt alone, and as short as JSON can be."""
    if not is_chat(request):
        return _of_prompt(body["prompt"])
    if request.kind is InputKind.CHAT:
        return sum(estimate_prompt_tokens(f"{role} {text}".encode()) for role, text in request.messages)
    tools = body.get("tools")
    return estimate_prompt_tokens(_compact(body["messages"])) + (len(_compact(tools)) * 2 // 5 if tools else 0)


def _of_prompt(prompt: Any) -> int:
    if isinstance(prompt, str):
        return estimate_prompt_tokens(prompt.encode())
    return len(prompt) if isinstance(prompt[0], int) else sum(map(_of_prompt, prompt))


def _compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
