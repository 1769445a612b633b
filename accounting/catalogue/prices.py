"""Setting prices, and deleting those that have not begun."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields

from accounting import checks
from accounting.catalogue.catalogue import Price
from accounting.catalogue.management import (
    MICROS,
    Page,
    Refresh,
    check_id,
    check_request_id,
    failed_precondition,
    other_request,
    page_of,
    requested_id,
)
from accounting.catalogue.store import CatalogueStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Caller, Role
from naru.paging import page_size, read_token
from naru.pricing import MAX_UNIT_PRICE, UnitPrices

NOTICE_MICROS = 2 * MICROS
"""How far ahead a price begins at least: by then every process knows it, so what was used is never priced anew.

By the later of our clock and the limiter's, which usage is booked by.
"""


@dataclass(frozen=True, slots=True)
class PriceWish:
    """A price to be set. `effective_time` in microseconds since the Unix epoch; None: as soon as possible."""

    model: str
    unit_prices: UnitPrices
    workspace_id: str = ""
    effective_time: int | None = None


class PriceManager:
    """Decides about prices.

    Args:
        store: Where prices are kept.
        refresh: Makes a change known on this process.
        clock: Tells the time.
        limiter_time: Tells the limiter's, in microseconds since the Unix epoch.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        store: CatalogueStore,
        refresh: Refresh,
        clock: Clock,
        limiter_time: Callable[[], Awaitable[int]],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._refresh = refresh
        self._clock = clock
        self._limiter_time = limiter_time
        self._new_id = new_id

    async def create(self, caller: Caller, wish: PriceWish, request_id: str = "") -> Price:
        """Sets a price from a time on; the same request again returns the one made before.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; ALREADY_EXISTS when another price of the model and workspace begins
                at that time, or for a request id used with another price; SERVICE_UNAVAILABLE.
        """
        check_request_id(request_id)
        _check(wish)
        price_id = requested_id("price", caller, request_id, self._new_id)
        notice = await self._notice()

        def make() -> Price:
            now = self._now()
            begins = now + notice if wish.effective_time is None else wish.effective_time
            if begins < now + notice:
                raise invalid_argument("price.effective_time", "price.effective_time must be at least 2 seconds ahead.")
            return Price(price_id, wish.model, wish.workspace_id, wish.unit_prices, begins, now)

        price, added = await self._store.add_price(price_id, make)
        if not added and not _is_wished(price, wish):
            raise other_request("price", request_id)
        await self._refresh()
        return price

    async def list_page(
        self, caller: Caller, *, size: int, token: str, model: str = "", workspace_id: str = ""
    ) -> Page[Price]:
        """One page of the prices that the caller may see, those that begin last first.

        Administrators and services see all; everybody else sees none of other workspaces than their own.

        Raises NaruError INVALID_ARGUMENT for a negative size or a token of another list; SERVICE_UNAVAILABLE.
        """
        size = page_size(size)
        checks.text("model", model, checks.MAX_MODEL)
        checks.text("workspace_id", workspace_id)
        principal = caller.principal
        visible_to = None if principal is None or principal.role is Role.ADMIN else principal.workspace_id
        filters = (model, workspace_id, visible_to)
        after = read_token(filters, token, (int, str))
        prices = await self._store.prices(
            model=model, workspace_id=workspace_id, visible_to=visible_to, after=after, limit=size + 1
        )
        return page_of(prices, size, filters, lambda price: (price.effective_time, price.price_id))

    async def delete(self, price_id: str, request_id: str = "") -> None:
        """Deletes a price that does not begin within 2 seconds. One that is not there is no error.

        Raises:
            NaruError: INVALID_ARGUMENT; FAILED_PRECONDITION for a price that has begun, or that some process may have begun
                with before it hears of this; SERVICE_UNAVAILABLE.
        """
        check_request_id(request_id)
        check_id("price_id", price_id)
        notice = await self._notice()

        def check(price: Price) -> None:
            if price.effective_time < self._now() + notice:
                raise failed_precondition(
                    "price", price_id, "This price has begun, or begins within 2 seconds: set a new one instead."
                )

        await self._store.delete_price(price_id, check)
        await self._refresh()

    async def _notice(self) -> int:
        """How far ahead of our clock a price begins at least. While the limiter is away, nothing is known of its clock."""
        now = self._now()
        try:
            ahead = await self._limiter_time() - now
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            ahead = 0
        return NOTICE_MICROS + max(ahead, 0)

    def _now(self) -> int:
        return round(self._clock.time() * MICROS)


def _check(wish: PriceWish) -> None:
    if not 1 <= len(wish.model) <= checks.MAX_MODEL or not wish.model.isprintable():
        raise invalid_argument("price.model", f"price.model must have 1 to {checks.MAX_MODEL} characters.")
    if len(wish.workspace_id) > checks.MAX_ID or not wish.workspace_id.isprintable():
        raise invalid_argument(
            "price.workspace_id", f"price.workspace_id must have at most {checks.MAX_ID} characters."
        )
    for one in fields(wish.unit_prices):
        name = f"price.unit_prices.{one.name}"
        if not 0 <= getattr(wish.unit_prices, one.name) <= MAX_UNIT_PRICE:
            raise invalid_argument(name, f"{name} must be from 0 to {MAX_UNIT_PRICE:,} nano-units.")


def _is_wished(price: Price, wish: PriceWish) -> bool:
    return (price.model, price.workspace_id, price.unit_prices) == (
        wish.model,
        wish.workspace_id,
        wish.unit_prices,
    ) and wish.effective_time in (None, price.effective_time)
