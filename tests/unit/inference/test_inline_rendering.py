"""Which requests are rendered on the event loop, and which prompts are tokenised without a detour."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from inference.engine import InputKind
from inference.vllm_inline_renderer import ShortPrompts, is_short, usual_tokenizer
from tests.support.heard import openai_request

CHAT, COMPLETION = InputKind.OPENAI_CHAT, InputKind.OPENAI_COMPLETION


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": None}, {"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("kind", "body", "short"),
    [
        (CHAT, said("Hello"), True),
        (COMPLETION, {"prompt": "Hello"}, True),
        (CHAT, said("Hello" * 1_000), False),
        (COMPLETION, {"prompt": "Hello" * 1_000}, False),
        (CHAT, said([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]), False),
        (CHAT, said("Hello") | {"chat_template_kwargs": {"times": 10**9}}, False),
        (COMPLETION, {"prompt": "Hello", "messages": [1]}, True),
        (COMPLETION, {"prompt": "Hello", "messages": 1}, True),
    ],
    ids=[
        "chat",
        "completion",
        "long chat",
        "long completion",
        "image",
        "a template's own arguments",
        "a completion with messages",
        "a completion with a message",
    ],
)
def test_only_what_is_quickly_done_is_done_at_once(kind: InputKind, body: dict[str, Any], short: bool) -> None:
    assert is_short(openai_request(kind, **body), body) is short


class Tokenizer:
    """A `tokenizers.Tokenizer`: one token a character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        return SimpleNamespace(ids=[1] * add_special_tokens + [ord(character) for character in text])


class Renderer:
    """Says what it was asked for."""

    def _wants_offsets(self, prompt: Any, params: Any) -> bool:
        return bool(params.offsets)

    def _tokenize_prompt(self, prompt: Any, params: Any) -> str:
        return "vLLM's way"

    def _build_tokens_prompt(self, token_ids: list[int], prompt: Any) -> list[int]:
        return token_ids


def tokenized(text: str, *, offsets: bool = False, **options: Any) -> Any:
    params = SimpleNamespace(offsets=offsets, get_encode_kwargs=lambda: {"add_special_tokens": True} | options)
    return ShortPrompts(Renderer(), Tokenizer()).tokenize({"prompt": text}, params)


def test_only_what_cannot_be_cut_is_tokenised_without_a_detour() -> None:
    assert tokenized("ab") == [1, 97, 98]
    assert tokenized("ab", add_special_tokens=False) == [97, 98]
    assert tokenized("ab", max_length=24) == [1, 97, 98]
    assert tokenized("ab", max_length=23) == "vLLM's way"
    assert tokenized("ab", offsets=True) == "vLLM's way"


def test_a_model_s_own_tokeniser_is_left_to_itself() -> None:
    """What a class of its own does on the way from text to tokens is not known."""

    class Own:
        _tokenizer = Tokenizer()

        def __call__(self, text: str) -> None:
            """Something of its own."""

    assert usual_tokenizer(Own()) is None
    assert usual_tokenizer(object()) is None
