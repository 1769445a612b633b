"""Pages of lists that are ordered by a name, in which each item has another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from naru.errors import invalid_argument
from naru.paging import read_token, write_token

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
        last = read_token(self.filters, self.token, (str,))
        return "" if last is None else str(last[0])

    def page(self, items: Sequence[Item], name: Callable[[Item], str]) -> Page[Item]:
        """The page, from up to `limit` items."""
        shown = tuple(items[: self.limit - 1])
        if len(items) == len(shown):
            return Page(shown, "")
        return Page(shown, write_token(self.filters, (name(shown[-1]),)))
