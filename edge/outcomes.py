"""What is kept of an answer whose request has an idempotency key, so that it can be given again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from edge.accounts import Idempotency
from naru.errors import invalid_argument

HEADER = "Idempotency-Key"
MAX_KEY = 255
"""Most characters of a key."""
MAX_OUTCOME_BYTES = 262_144
"""Most bytes of an outcome that are kept."""


class Answer(msgspec.Struct, frozen=True):
    """A complete answer. `headers` are those that do not depend on when it is given."""

    request_id: str
    headers: dict[str, str]
    body: bytes


class Recording:
    """An answer while it is written: bounded, and nothing at all unless it is `wanted`."""

    def __init__(self, *, wanted: bool) -> None:
        self._chunks: list[bytes] = []
        self._size = 0
        self._wanted = wanted

    def add(self, chunk: bytes) -> None:
        """Takes what the client was sent."""
        if self._wanted:
            self._size += len(chunk)
            if self._size > MAX_OUTCOME_BYTES:
                self._wanted = False
                self._chunks.clear()
            else:
                self._chunks.append(chunk)

    def encode(self, request_id: str, headers: dict[str, str]) -> bytes | None:
        """The whole answer, to be kept; None when it is larger than what is kept."""
        if not self._wanted:
            return None
        encoded = msgspec.msgpack.encode(Answer(request_id, headers, b"".join(self._chunks)))
        return encoded if len(encoded) <= MAX_OUTCOME_BYTES else None


def decode(outcome: bytes) -> Answer:
    """The answer that was kept."""
    return msgspec.msgpack.decode(outcome, type=Answer)


def read_key(values: Sequence[str]) -> str | None:
    """The idempotency key of a request, given all its headers of that name. Raises NaruError INVALID_ARGUMENT."""
    if not values:
        return None
    key = values[0]
    if len(values) > 1 or not 1 <= len(key) <= MAX_KEY or not (key.isascii() and key.isprintable()):
        raise invalid_argument(
            HEADER, f"{HEADER} must be given once and have 1 to {MAX_KEY} printable ASCII characters."
        )
    return key


def identify(key: str, endpoint: str, body: bytes, *, stream: bool) -> Idempotency:
    """The key with a digest of what was asked: the same path by another name is the same, if it streams as well."""
    digest = hashlib.sha256(f"{endpoint}\n{'stream' if stream else 'whole'}\n".encode())
    digest.update(body)
    return Idempotency(key, digest.digest())
