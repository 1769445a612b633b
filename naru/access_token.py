"""The form of a user's access token: a JWT in compact form. What is in it is for authsvc alone to judge."""

from __future__ import annotations

import re

from naru import api_key
from naru.errors import invalid_api_key

CHARACTERS_MAX = 8_192
_PATTERN = re.compile(r"eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")


def looks_like(credential: str) -> bool:
    """Whether it has the form of a signed JWT: three parts in base64url, the first a JSON object."""
    return len(credential) <= CHARACTERS_MAX and _PATTERN.fullmatch(credential) is not None


def check_credential(credential: str) -> None:
    """Raises NaruError INVALID_API_KEY for what is neither a key with a right checksum nor in the form of a token."""
    if len(credential) > CHARACTERS_MAX:
        raise invalid_api_key()
    if not looks_like(credential):
        api_key.parse(credential)
