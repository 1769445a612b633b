"""Fields of a request that vLLM's classes would take, or pass over, but whose effect Naru cannot deliver.

A request that uses one is refused and told why; it is never answered as if the field had not been there. Fields that change
nothing in an answer, such as whom it is for, are taken: docs/compatibility.md lists all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.grammar_limits import check_grammars
from inference.openai_body import not_supported
from naru.errors import invalid_argument

_STRUCTURED = "is not supported; use `response_format` or `structured_outputs`."
_MEDIA = "is not supported; this model reads and writes text only."
_INTERNAL = "is not supported; it is set by the service."
_MOST_METADATA = 16


def _nothing(value: object) -> bool:
    return not value


def _one_of(*values: object) -> Callable[[object], bool]:
    return lambda value: value is None or value in values


@dataclass(frozen=True, slots=True)
class _Rule:
    """What is said of a field, unless its value asks for nothing that Naru does not do anyway."""

    why: str
    harmless: Callable[[object], bool] = _nothing


_RULES: dict[str, _Rule] = {
    "use_beam_search": _Rule("is not supported; the engine would run it beside everybody's requests, unmetered."),
    "length_penalty": _Rule("is not supported; it belongs to beam search, which is not.", _one_of(1)),
    "prompt_embeds": _Rule("is not supported; send text or token ids."),
    "return_token_offsets": _Rule("is not supported."),
    "return_prompt_text": _Rule("is not supported; ask for `return_token_ids`."),
    "return_mm_kwargs": _Rule(_MEDIA),
    "chat_template": _Rule("is not supported; the template of the served model is used."),
    "functions": _Rule("is not supported; use `tools`."),
    "function_call": _Rule("is not supported; use `tool_choice`.", _one_of("none")),
    "moderation": _Rule("is not supported; nothing here judges what is said.", _one_of()),
    "web_search_options": _Rule("is not supported; the model reads nothing but the request.", _one_of()),
    "audio": _Rule(_MEDIA),
    "modalities": _Rule(_MEDIA, _one_of(["text"])),
    "media_io_kwargs": _Rule(_MEDIA),
    "mm_processor_kwargs": _Rule(_MEDIA),
    "kv_transfer_params": _Rule(_INTERNAL),
    "ec_transfer_params": _Rule(_INTERNAL),
    "store": _Rule("is not supported; answers are not kept."),
    "service_tier": _Rule(
        "other than auto and default is not supported; tiers belong to keys.", _one_of("auto", "default")
    ),
    "verbosity": _Rule("other than medium is not supported; say in the messages how long to be.", _one_of("medium")),
    "guided_json": _Rule(_STRUCTURED),
    "guided_regex": _Rule(_STRUCTURED),
    "guided_choice": _Rule(_STRUCTURED),
    "guided_grammar": _Rule(_STRUCTURED),
}

_STRUCTURES = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
_STRUCTURE_OPTIONS = ("disable_any_whitespace", "disable_additional_properties", "whitespace_pattern")
_LARGEST_INTEGER = 2**63 - 1
"""What grammars are made of holds no larger one: it would be written as 9.2e18."""

_INTERNAL_ARGUMENTS = ("kv_transfer_params", "ec_transfer_params", "kv_cache_report_mode")
"""What the engine looks for among `vllm_xargs`, where a client could otherwise set it."""

_MOST_TOKENS = {"allowed_token_ids": 1024, "logit_bias": 1024, "stop_token_ids": 120}
"""As many as every one of the engine's model runners has room for; one more ends the engine where it has not."""

_TEXTS = ("user", "safety_identifier", "prompt_cache_key")
"""Taken without effect: they tell OpenAI whom an answer is for, and where its prompt may be cached."""


def refuse_unsupported(body: Mapping[str, Any]) -> None:
    """Checks the body for what cannot be delivered.

    Raises:
        NaruError: NOT_SUPPORTED or INVALID_ARGUMENT, naming the field.
    """
    for field, rule in _RULES.items():
        if field in body and not rule.harmless(body[field]):
            raise not_supported(field, f"`{field}` {rule.why}")
    n = body.get("n") or 1
    if body.get("best_of") not in (None, n):
        raise not_supported("best_of", "`best_of` other than `n` is not supported; ask for `n` and choose yourself.")
    if body.get("stream") and body.get("prompt_logprobs") is not None:
        raise invalid_argument("prompt_logprobs", "`prompt_logprobs` are not available when `stream` is true.")
    template = body.get("chat_template_kwargs")
    if isinstance(template, Mapping) and template.get("chat_template") is not None:
        raise not_supported("chat_template_kwargs.chat_template", "`chat_template` is not supported in a request.")
    arguments = body.get("vllm_xargs")
    internal = next(
        (name for name in _INTERNAL_ARGUMENTS if isinstance(arguments, Mapping) and name in arguments), None
    )
    if internal is not None:
        raise not_supported(f"vllm_xargs.{internal}", f"`{internal}` {_INTERNAL}")
    for field, most in _MOST_TOKENS.items():
        if isinstance(body.get(field), list | dict) and len(body[field]) > most:
            raise invalid_argument(field, f"`{field}` takes at most {most} tokens.")
    _check_taken(body)
    _check_structure(body)


def refuse_what_the_model_lacks(body: Mapping[str, Any], *, callable_tools: bool, chat_template: str) -> None:
    """Checks for what another model could do.

    Args:
        body: The request.
        callable_tools: Whether there is a parser of tool calls.
        chat_template: The template; a field it does not speak of would be passed over.

    Raises:
        NaruError: NOT_SUPPORTED, naming the field.
    """
    if body.get("documents") and "documents" not in chat_template:
        raise not_supported(
            "documents", "`documents` is not supported: this model's chat template has no place for them."
        )
    if not callable_tools and body.get("tools") and body.get("tool_choice", "auto") != "none":
        field = "tool_choice" if "tool_choice" in body else "tools"
        raise not_supported(
            field, 'Calling tools is not supported with this model; `tools` need `tool_choice: "none"`.'
        )


def refuse_long_bad_words(token_ids: Sequence[Sequence[int]] | None, most: int) -> None:
    """Checks what vLLM made of `bad_words`: of their tokens it asks only when the engine has the request.

    Args:
        token_ids: The tokens of each; None when there are none.
        most: As many as every one of the engine's model runners has room for; one more ends the engine where it has not.

    Raises:
        NaruError: INVALID_ARGUMENT, naming the field.
    """
    if sum(map(len, token_ids or ())) > most:
        raise invalid_argument("bad_words", f"`bad_words` take at most {most} tokens in all.")


def _check_taken(body: Mapping[str, Any]) -> None:
    for field in _TEXTS:
        if not isinstance(body.get(field), str | None):
            raise invalid_argument(field, f"`{field}` must be a string.")
    metadata = body.get("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise invalid_argument("metadata", "`metadata` must be an object of strings.")
    if len(metadata) > _MOST_METADATA:
        raise invalid_argument("metadata", f"`metadata` takes at most {_MOST_METADATA} entries.")


def _check_structure(body: Mapping[str, Any]) -> None:
    """Names what is wrong with a wish for structured output where vLLM would not, or would pass over it."""
    wish = body.get("structured_outputs")
    if isinstance(wish, dict):
        unknown = next((name for name in wish if name not in _STRUCTURES + _STRUCTURE_OPTIONS), None)
        if unknown is not None:
            raise invalid_argument("structured_outputs", f"`structured_outputs` has no {unknown[:40]!r}.")
        given = [name for name in _STRUCTURES if wish.get(name) not in (None, False)]
        if len(given) != 1 or wish[given[0]] in ([], ""):
            kinds = ", ".join(_STRUCTURES)
            raise invalid_argument("structured_outputs", f"`structured_outputs` must hold one of {kinds}, not empty.")
    shape = body.get("response_format")
    named = shape.get("json_schema") if isinstance(shape, dict) and shape.get("type") == "json_schema" else None
    if isinstance(named, dict) and not isinstance(named.get("schema"), dict | bool):
        field = "response_format.json_schema.schema"
        raise invalid_argument(field, f"`{field}` must be a JSON schema.")
    check_grammars(body)
    for field in ("structured_outputs", "response_format", "tools"):
        if body.get(field) and _holds_huge_integer(body[field]):
            raise invalid_argument(
                field, f"`{field}` holds an integer of more than 64 bits, which cannot be kept exactly."
            )


def _holds_huge_integer(value: object) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, int) and abs(item) > _LARGEST_INTEGER:
            return True
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return False
