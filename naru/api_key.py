"""The form of an API key: `sk-naru-<12 base62 public id>-<43 base62 secret>-<6 base62 crc32>`.

The checksum lets anybody tell a mistyped key without asking authsvc, and a secret scanner tell a key from noise. It covers
everything before it. The public id is not secret: it stands in logs, metrics and usage.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from naru.errors import invalid_api_key

_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "sk-naru-"
KEY_ID_LENGTH = 12
SECRET_LENGTH = 43
PATTERN = re.compile(r"sk-naru-([0-9A-Za-z]{12})-([0-9A-Za-z]{43})-([0-9A-Za-z]{6})")
"""Matches a key inside any text; for secret scanners too."""


@dataclass(frozen=True, slots=True)
class ParsedKey:
    """A key whose checksum is right. `secret` is never logged: it is left out of the representation."""

    key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"ParsedKey(key_id={self.key_id!r})"


def generate(random_bytes: Callable[[int], bytes]) -> str:
    """Makes a key from `random_bytes(n)`, such as `os.urandom`: 256 random bits of secret, 71 of public id."""
    return format_key(base62(random_bytes, KEY_ID_LENGTH), base62(random_bytes, SECRET_LENGTH))


def format_key(key_id: str, secret: str) -> str:
    """Puts the parts together and adds the checksum."""
    body = f"{PREFIX}{key_id}-{secret}"
    return f"{body}-{_checksum(body)}"


def parse(text: str) -> ParsedKey:
    """Takes a key apart. Raises NaruError INVALID_API_KEY unless form and checksum are right."""
    match = PATTERN.fullmatch(text)
    if match is None or _checksum(text[:-7]) != match[3]:
        raise invalid_api_key()
    return ParsedKey(match[1], match[2])


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    digits = ""
    for _ in range(6):
        number, digit = divmod(number, 62)
        digits = _ALPHABET[digit] + digits
    return digits


def base62(random_bytes: Callable[[int], bytes], length: int) -> str:
    """Random letters and digits. Unbiased: bytes from 248 up are thrown away."""
    digits: list[str] = []
    while len(digits) < length:
        digits += [_ALPHABET[byte % 62] for byte in random_bytes(length) if byte < 248]
    return "".join(digits[:length])
