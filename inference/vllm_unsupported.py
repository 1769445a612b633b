"""Fields of a request that vLLM's classes would take, or pass over, but whose effect Naru cannot deliver.

A request that uses one is refused and told why; it is never answered as if the field had not been there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from inference.openai_body import not_supported

_STRUCTURED = "is not supported; use `response_format` or `structured_outputs`."
_MEDIA = "is not supported; this model reads and writes text only."
_INTERNAL = "is not supported; it is set by the service."

_UNSUPPORTED: dict[str, str] = {
    "echo": "is not supported; the prompt is not returned.",
    "prompt_logprobs": "is not supported; log probabilities are returned for generated tokens only.",
    "use_beam_search": "is not supported.",
    "prompt_embeds": "is not supported; send text or token ids.",
    "return_token_offsets": "is not supported.",
    "return_prompt_text": "is not supported.",
    "return_mm_kwargs": _MEDIA,
    "chat_template": "is not supported; the template of the served model is used.",
    "functions": "is not supported.",
    "function_call": "is not supported.",
    "web_search_options": "is not supported.",
    "audio": _MEDIA,
    "media_io_kwargs": _MEDIA,
    "mm_processor_kwargs": _MEDIA,
    "kv_transfer_params": _INTERNAL,
    "ec_transfer_params": _INTERNAL,
    "guided_json": _STRUCTURED,
    "guided_regex": _STRUCTURED,
    "guided_choice": _STRUCTURED,
    "guided_grammar": _STRUCTURED,
}
_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "prompt_logprobs": lambda value: value is None,
    "function_call": lambda value: value in (None, "none"),
}


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Checks the body for what cannot be delivered.

    Raises:
        NaruError: NOT_SUPPORTED, naming the field.
    """
    for field, why in _UNSUPPORTED.items():
        if field in body and not _HARMLESS.get(field, lambda value: not value)(body[field]):
            raise not_supported(field, f"`{field}` {why}")
    _refuse_best_of(body)
    _refuse_tools(body)
    modalities = body.get("modalities")
    if modalities is not None and modalities != ["text"]:
        raise not_supported("modalities", f"`modalities` other than text {_MEDIA}")
    template = body.get("chat_template_kwargs")
    if isinstance(template, Mapping) and template.get("chat_template") is not None:
        raise not_supported("chat_template_kwargs.chat_template", "`chat_template` is not supported in a request.")


def _refuse_best_of(body: Mapping[str, Any]) -> None:
    n = body.get("n") or 1
    if body.get("best_of") not in (None, n):
        raise not_supported("best_of", "`best_of` other than `n` is not supported.")


def _refuse_tools(body: Mapping[str, Any]) -> None:
    if body.get("tools") and body.get("tool_choice", "auto") != "none":
        field = "tool_choice" if "tool_choice" in body else "tools"
        raise not_supported(
            field, 'Calling tools is not supported with this model; `tools` need `tool_choice: "none"`.'
        )
