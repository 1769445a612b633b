"""What the simulated engine says, and how it counts: pure, and the same for the same request every time."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

from naru.errors import invalid_argument

_TOKEN = re.compile(r"\s*\S{1,8}")
_FRAME = ("<message>", "<role>", "</role>", "</message>")
"""What a chat template would put around a message."""

_POEM = (
    "ferry river landing boat water morning quiet stone bridge lantern reed current crossing shore rope bell "
    "mist heron willow oar passenger market road village evening song tide pier lamp basket letter horizon"
)
WORDS = tuple(_POEM.split())
_IDS = {word: number for number, word in enumerate(WORDS)}


@dataclass(frozen=True, slots=True)
class Answer:
    """One choice before it is generated.

    Attributes:
        tokens: Id and text of every token that will be generated.
        finish_reason: How it ends.
        text_length: Characters of its text; fewer than the tokens have when a stop text cuts them.
    """

    tokens: tuple[tuple[int, str], ...]
    finish_reason: str
    text_length: int
    stop_text: str = ""


def pieces(prompt: str | Sequence[Mapping[str, Any]]) -> list[str]:
    """The texts of the tokens of a text or a conversation: one per eight characters of a word, begun ones included."""
    if isinstance(prompt, str):
        return _TOKEN.findall(prompt) or [""]
    return [piece for message in prompt for piece in (*_FRAME, *pieces(message_text(message)))]


def token_id(piece: str) -> int:
    """The id of a token: a word's own, or a number that stands for anything else and cannot be turned back."""
    word = piece.strip()
    return _IDS[word] if word in _IDS else len(WORDS) + zlib.crc32(piece.encode("utf-8", "replace")) % 2**31


def text_of(token_ids: Sequence[int]) -> str:
    """The text of tokens. Raises NaruError INVALID_ARGUMENT for other tokens than words."""
    if any(token_id >= len(WORDS) for token_id in token_ids):
        raise invalid_argument("tokens", f"`tokens` must be ids from 0 to {len(WORDS) - 1}.")
    return " ".join(WORDS[token_id] for token_id in token_ids)


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


@lru_cache(maxsize=16)
def first_words(seed: str, count: int) -> tuple[tuple[int, str], ...]:
    """So many of `words`; benches ask the same again and again, and mean to measure what is around the engine."""
    return tuple(islice(words(seed), count))


def answer_up_to_stop(tokens: tuple[tuple[int, str], ...], stops: tuple[str, ...], finish_reason: str) -> Answer:
    """The answer up to the token that completes a stop text."""
    text = "".join(part for _, part in tokens)
    cut = _cut_at_stop(text, stops)
    if cut is None:
        return Answer(tokens, finish_reason, len(text))
    start, stop = cut
    used, length = 0, 0
    while length < start + len(stop):
        length += len(tokens[used][1])
        used += 1
    return Answer(tokens[:used], "stop", start, stop)


def _cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[int, str] | None:
    """Where the earliest stop text begins, and which it is; None when there is none."""
    found = [(text.find(stop), stop) for stop in stops if stop in text]
    return min(found) if found else None
