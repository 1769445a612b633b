"""Pages of lists: tokens that name the last row of the page before, pure."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence

from naru.errors import NaruError, invalid_argument

_INTEGER_MAX = 2**63 - 1
_CHARACTERS_MAX = 512
_PAGE_SIZE_DEFAULT = 100
_PAGE_SIZE_MAX = 1_000

Position = tuple[int | str, ...]
"""Where a row stands in the order of its list."""


def page_size(asked: int) -> int:
    """How many rows a page has. Raises NaruError INVALID_ARGUMENT for less than 0."""
    if asked < 0:
        raise invalid_argument("page_size", "page_size must be at least 0.")
    return min(asked or _PAGE_SIZE_DEFAULT, _PAGE_SIZE_MAX)


def write_token(filters: Sequence[object], last: Position) -> str:
    """The token of the page after the row at `last` of a list with these filters."""
    return base64.urlsafe_b64encode(json.dumps([_digest(filters), *last]).encode()).decode()


def read_token(filters: Sequence[object], token: str, kinds: Sequence[type]) -> Position | None:
    """The position of the row after which the page begins, with values of `kinds`; None for the first page.

    Raises NaruError INVALID_ARGUMENT for a token of a list with other filters, or none of ours.
    """
    if token == "":
        return None
    try:
        digest, *found = json.loads(base64.b64decode(token.encode(), altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise _wrong() from None
    if digest != _digest(filters) or len(found) != len(kinds):
        raise _wrong()
    if not all(_fits(value, kind) for value, kind in zip(found, kinds, strict=True)):
        raise _wrong()
    return tuple(found)


def _fits(value: object, kind: type) -> bool:
    """Whether every database takes the value: a token comes from outside."""
    if kind is int:
        return type(value) is int and 0 <= value <= _INTEGER_MAX
    # A lone surrogate is a text in JSON and in Python, and in no database.
    return isinstance(value, str) and len(value) <= _CHARACTERS_MAX and not re.search("[\0\ud800-\udfff]", value)


def _digest(filters: Sequence[object]) -> str:
    return hashlib.sha256(repr(tuple(filters)).encode()).hexdigest()[:16]


def _wrong() -> NaruError:
    return invalid_argument(
        "page_token", "page_token must be the next_page_token of the page before, with its filters."
    )
