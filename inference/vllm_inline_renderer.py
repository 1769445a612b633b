"""Rendering short requests at once.

vLLM renders a conversation and tokenises it in threads, so that long ones hold nobody up. For a short one the two ways there
and back take several times as long as the work, and make everybody's tokens wait for the interpreter's lock. Nor does a short
one need what transformers does around a tokeniser for batches, pairs, padding and cutting.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.engine import EngineRequest, InputKind

_SHORT_BODY = 2 * 1024
"""Bytes of JSON up to which rendering and tokenising take well below a millisecond."""

_TOKENS_PER_CHARACTER, _SPECIAL_TOKENS = 4, 16
"""At most: bytes in UTF-8, each a token; and tokens that a tokeniser adds of its own. What a normaliser makes more of, vLLM cuts
or refuses after tokenising, as it does all prompts."""

_USUAL = {
    "__call__": {"transformers.tokenization_utils_base", "vllm.tokenizers.hf"},
    "_encode_plus": {"transformers.tokenization_utils_base", "transformers.tokenization_utils_tokenizers"},
}
"""The modules that define what leads from text to the tokeniser. A model's own class may do more on the way."""


@dataclass(frozen=True, slots=True)
class ChatRendering:
    """How a conversation is rendered: what else vLLM's renderer is given with it."""

    parameters: tuple[Any, ...]
    options: Mapping[str, Any]


class InlineRenderer:
    """vLLM's renderer, which here does on the event loop what it is asked for.

    Args:
        renderer: Of the engine.

    Attributes:
        last_chat: Which conversation was rendered last, by its `id`, and how. It is not kept itself: it is somebody's.
    """

    def __init__(self, renderer: Any) -> None:
        self.last_chat: tuple[int, ChatRendering | None] = 0, None
        self._renderer = renderer
        tokenizer = usual_tokenizer(renderer.tokenizer)
        if tokenizer is not None:
            self._renderer = copy.copy(renderer)
            self._renderer._tokenize_prompt = ShortPrompts(renderer, tokenizer).tokenize

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    async def render_chat_async(self, conversations: Sequence[Any], *parameters: Any, **options: Any) -> Any:
        """What the renderer's method of this name returns."""
        self.last_chat = id(conversations[-1]), ChatRendering(parameters, options)
        return self._renderer.render_chat(conversations, *parameters, **options)

    def render_like(self, conversation: list[Any], rendering: ChatRendering) -> Any:
        """The prompt of a conversation that is rendered as one before it was."""
        _, (prompt,) = self._renderer.render_chat([conversation], *rendering.parameters, **rendering.options)
        return prompt

    async def render_cmpl_async(self, *arguments: Any, **options: Any) -> Any:
        """What the renderer's method of this name returns."""
        return self._renderer.render_cmpl(*arguments, **options)


class ShortPrompts:
    """Tokenises prompts; those that cannot be too long without asking whether they are.

    Args:
        renderer: Does what is unusual.
        tokenizer: The `tokenizers.Tokenizer` of the renderer's, nobody else's.
    """

    def __init__(self, renderer: Any, tokenizer: Any) -> None:
        self._renderer = renderer
        self._tokenizer = tokenizer

    def tokenize(self, prompt: Any, params: Any) -> Any:
        """What `BaseRenderer._tokenize_prompt` returns (vllm/renderers/base.py:628)."""
        text = prompt["prompt"]
        options = params.get_encode_kwargs()
        most = options.get("max_length")
        may_be_cut = most is not None and _TOKENS_PER_CHARACTER * len(text) + _SPECIAL_TOKENS > most
        if may_be_cut or self._renderer._wants_offsets(prompt, params):
            return self._renderer._tokenize_prompt(prompt, params)
        encoded = self._tokenizer.encode(text, add_special_tokens=options["add_special_tokens"])
        return self._renderer._build_tokens_prompt(encoded.ids, prompt)


def usual_tokenizer(tokenizer: Any) -> Any:
    """A copy of the `tokenizers.Tokenizer` behind a tokeniser of transformers; None where there is none, or more around it."""
    backend = getattr(tokenizer, "_tokenizer", None)
    if backend is None or hasattr(tokenizer, "_switch_to_input_mode"):
        return None
    for method, modules in _USUAL.items():
        if not {kind.__module__ for kind in type(tokenizer).__mro__ if method in vars(kind)} <= modules:
            return None
    own = copy.deepcopy(backend)
    own.no_truncation()
    own.no_padding()
    own.encode_special_tokens = tokenizer.split_special_tokens
    return own


def is_short(request: EngineRequest, body: Mapping[str, Any]) -> bool:
    """Whether it may be rendered on the event loop: OpenAI's JSON, of a few words, nothing of it to be fetched or decoded."""
    if not 0 < len(request.openai_json) <= _SHORT_BODY or body.get("chat_template_kwargs"):
        return False
    # A completion may hold messages too, which nobody has checked and nobody reads.
    messages = body["messages"] if request.kind is InputKind.OPENAI_CHAT else ()
    return all(isinstance(message.get("content"), str | None) for message in messages)
