"""Pages of lists that are ordered by a name: the token is the last name of the page before, and what was asked for."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from naru.errors import invalid_argument

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Items, and where the next page begins; an empty token: this was the last."""

    items: tuple[Item, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which page is asked for, and of which list. `size` 0: 50."""

    size: int
    token: str
    filters: tuple[str, ...] = ()

    @property
    def limit(self) -> int:
        """How many items to read: one more than the page has. Raises NaruError INVALID_ARGUMENT for a negative size."""
        if self.size < 0:
            raise invalid_argument("page_size", "page_size must not be negative.")
        return min(self.size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX) + 1

    @property
    def after(self) -> str:
        """The name to begin after; empty for the first page. Raises NaruError INVALID_ARGUMENT for another list's token."""
        if not self.token:
            return ""
        try:
            name, *filters = json.loads(base64.b64decode(self.token, altchars=b"-_", validate=True))
        except (ValueError, TypeError, RecursionError):
            name, filters = None, []
        if not isinstance(name, str) or not name or "\0" in name or filters != [*self.filters]:
            raise invalid_argument(
                "page_token", "page_token must be the next_page_token of the page before, with the same filters."
            )
        return name

    def page(self, items: Sequence[Item], name: Callable[[Item], str]) -> Page[Item]:
        """The page, from up to `limit` items."""
        shown = tuple(items[: self.limit - 1])
        if len(items) == len(shown):
            return Page(shown, "")
        token = json.dumps([name(shown[-1]), *self.filters]).encode()
        return Page(shown, base64.urlsafe_b64encode(token).decode())
