"""Refresh tokens: pure.

`nrt-<session id>-<generation>-<secret>`: the first two say which token it is, the secret proves it. The secret of a successor
is made from the one before under the pepper, so a lost answer can be given again though nothing but digests is kept.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass

from authsvc.keys import Peppers, SecretDigest
from naru import api_key

_PATTERN = re.compile(r"nrt-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([1-9][0-9]{0,8})-([0-9A-Za-z_-]{43})")
_PURPOSE = "naru refresh token"


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A token taken apart. `secret` is left out of the representation."""

    session_id: str
    generation: int
    secret: str

    def __repr__(self) -> str:
        return f"RefreshToken(session_id={self.session_id!r}, generation={self.generation})"

    @property
    def text(self) -> str:
        """The token as its holder has it."""
        return f"nrt-{self.session_id}-{self.generation}-{self.secret}"


def parse(text: str) -> RefreshToken | None:
    """The token; None for what has not its form."""
    match = _PATTERN.fullmatch(text)
    return None if match is None else RefreshToken(match[1], int(match[2]), match[3])


def first(session_id: str, random_bytes: Callable[[int], bytes]) -> RefreshToken:
    """The token that a session begins with, from `random_bytes(n)` such as `os.urandom`."""
    return RefreshToken(session_id, 1, api_key.base62(random_bytes, api_key.SECRET_LENGTH))


def successor(token: RefreshToken, peppers: Peppers, pepper_version: int) -> RefreshToken:
    """The token that follows: always the same one for a token and the pepper that its own digest was made with."""
    made = peppers.derive(pepper_version, f"{_PURPOSE} successor", token.text)
    secret = base64.urlsafe_b64encode(made).rstrip(b"=").decode()
    return RefreshToken(token.session_id, token.generation + 1, secret)


def digest(token: RefreshToken, peppers: Peppers) -> SecretDigest:
    """What is stored of it."""
    return peppers.digest(f"{_PURPOSE} {token.text}")


def matches(token: RefreshToken, peppers: Peppers, stored: SecretDigest | None) -> bool:
    """Whether it is the one that `stored` was made from, in constant time, and in the same time when there is none."""
    return peppers.matches(f"{_PURPOSE} {token.text}", stored)
