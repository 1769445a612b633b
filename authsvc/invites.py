"""The codes of invites: pure. `nri-<invite id>-<secret>`; only a digest of the secret is kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from authsvc.keys import Peppers, SecretDigest
from naru import api_key

INVITE_SECONDS = 7 * 24 * 3600.0
_PATTERN = re.compile(r"nri-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})-([0-9A-Za-z]{43})")
_PURPOSE = "naru invite"


@dataclass(frozen=True, slots=True)
class InviteCode:
    """A code taken apart. `secret` is left out of the representation."""

    invite_id: str
    secret: str

    def __repr__(self) -> str:
        return f"InviteCode(invite_id={self.invite_id!r})"

    @property
    def text(self) -> str:
        """The code as its holder has it."""
        return f"nri-{self.invite_id}-{self.secret}"


def new_code(invite_id: str, random_bytes: Callable[[int], bytes]) -> InviteCode:
    """A code, from `random_bytes(n)` such as `os.urandom`."""
    return InviteCode(invite_id, api_key.base62(random_bytes, api_key.SECRET_LENGTH))


def parse_code(text: str) -> InviteCode | None:
    """The code; None for what has not its form."""
    match = _PATTERN.fullmatch(text)
    return None if match is None else InviteCode(match[1], match[2])


def digest(code: InviteCode, peppers: Peppers) -> SecretDigest:
    """What is stored of it."""
    return peppers.digest(f"{_PURPOSE} {code.text}")


def matches(code: InviteCode, peppers: Peppers, stored: SecretDigest | None) -> bool:
    """Whether it is the one that `stored` was made from, in constant time, and in the same time when there is none."""
    return peppers.matches(f"{_PURPOSE} {code.text}", stored)
