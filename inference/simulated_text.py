"""What the simulated engine says, and how it counts: pure, and the same for the same request every time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

_TOKEN = re.compile(r"\s*\S{1,8}")
_MESSAGE_TOKENS = 4
"""What a chat template would put around a message."""

_POEM = (
    "ferry river landing boat water morning quiet stone bridge lantern reed current crossing shore rope bell "
    "mist heron willow oar passenger market road village evening song tide pier lamp basket letter horizon"
)
WORDS = tuple(_POEM.split())


def count_text(text: str) -> int:
    """Tokens of a text: one per eight characters of a word, begun ones included; at least 1."""
    return max(1, len(_TOKEN.findall(text)))


def count_messages(messages: list[dict[str, Any]]) -> int:
    """Tokens of a conversation."""
    return sum(_MESSAGE_TOKENS + count_text(message_text(message)) for message in messages)


def message_text(message: Mapping[str, Any]) -> str:
    """All text of a message."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else " ".join(str(part.get("text", "")) for part in content)


def words(seed: str) -> Iterator[tuple[int, str]]:
    """The endless answer for a seed: token ids and texts, the first without a space before it."""
    state = int.from_bytes(hashlib.sha256(seed.encode("utf-8", "replace")).digest()[:8])
    space = ""
    while True:
        # The constants of Knuth's linear congruential generator; the high bits are the good ones.
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        token = state >> 59
        yield token, space + WORDS[token]
        space = " "


def cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Where the earliest stop text begins, and which it is; None when there is none."""
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    return min(found) if found else None
