"""How many tokens a prompt may have, before anybody has counted them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_IMAGE_TOKENS = 1_024
_TEMPLATE_TOKENS = 32
_FRAME_TOKENS = 4
"""At most what a tokenizer puts around a text."""
_BASE64 = re.compile(rb";base64,[A-Za-z0-9+/=_\\-]*")
_ASCII = bytes(range(128))


def estimate_prompt_tokens(text: bytes) -> int:
    r"""Estimates the tokens of a prompt from its UTF-8 or JSON bytes, leaning upwards.

    Two tokens per five bytes of ASCII (English has four to five bytes per token, dense code a little over two), one per
    byte of everything else and three per \u escape (a small tokenizer takes nearly three tokens for a Korean syllable of
    three bytes), 1,024 per embedded base64 medium instead of its bytes, and 32 for what a chat template adds. Too low an
    estimate, as for a page of digits, costs a second reservation; too high a one only holds capacity until the request
    is settled.
    """
    return _TEMPLATE_TOKENS + _text_tokens(text)


def estimate_input_tokens(inputs: Iterable[str | Sequence[int]]) -> int:
    """Estimates the tokens of texts that no chat template touches; as `estimate_prompt_tokens`. Token ids are counted."""
    return sum(
        _FRAME_TOKENS + _text_tokens(one.encode(errors="replace")) if isinstance(one, str) else len(one)
        for one in inputs
    )


def _text_tokens(text: bytes) -> int:
    media = 0
    if b";base64," in text:
        text, media = _BASE64.subn(b"", text)
    wide = len(text.translate(None, _ASCII))
    escapes = text.count(b"\\u")
    narrow = max(0, len(text) - wide - 6 * escapes)
    return (2 * narrow + 4) // 5 + wide + 3 * escapes + media * _IMAGE_TOKENS
