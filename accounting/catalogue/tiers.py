"""Making, changing and deleting tiers."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace

from accounting.catalogue.keeper import tiers_in_force
from accounting.catalogue.management import (
    MICROS,
    Page,
    Refresh,
    already_exists,
    check_request_id,
    failed_precondition,
    page_of,
)
from accounting.catalogue.store import CatalogueStore
from accounting.catalogue.tier_file import BUILT_IN
from accounting.limits import Tier, check_tier
from naru.clock import Clock
from naru.errors import NaruError, invalid_argument, not_found
from naru.paging import page_size, read_token

_NAME = re.compile("[a-z][a-z0-9_-]{0,63}")


class TierManager:
    """Decides about tiers.

    There are three layers. Tiers of the configuration's file come first and cannot be changed here. Next are those that were
    made or changed here. Last are the built-in ones: they can be changed, and deleting one of them takes the change back, so
    that each of them, `free` too, is always there.

    Args:
        store: Where tiers are kept.
        file_tiers: Those of the configuration's file, by name.
        tier_in_use: Whether an API key has the tier; may raise NaruError SERVICE_UNAVAILABLE, then nothing is deleted.
        refresh: Brings a change into force on this process.
        clock: Tells the time.
    """

    def __init__(
        self,
        *,
        store: CatalogueStore,
        file_tiers: Mapping[str, Tier],
        tier_in_use: Callable[[str], Awaitable[bool]],
        refresh: Refresh,
        clock: Clock,
    ) -> None:
        self._store = store
        self._file_tiers = dict(file_tiers)
        self._tier_in_use = tier_in_use
        self._refresh = refresh
        self._clock = clock

    async def create(self, tier: Tier, request_id: str = "") -> Tier:
        """Makes a tier; making the same one again changes nothing. Times that it has are replaced.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; ALREADY_EXISTS when there is another one of the name;
                FAILED_PRECONDITION for a tier of the configuration's file; SERVICE_UNAVAILABLE.
        """
        self._check(tier, request_id)
        built_in = BUILT_IN.get(tier.name)
        found = built_in and (await self._store.tier(tier.name) or built_in)
        if found is None:
            found, _ = await self._store.add_tier(self._stamped(tier))
            await self._refresh()
        if _content(found) != _content(tier):
            raise already_exists("tier", tier.name, f"There is another tier {tier.name!r}.")
        return found

    async def get(self, name: str) -> Tier:
        """The tier. Raises NaruError INVALID_ARGUMENT for what is no name, NOT_FOUND, or SERVICE_UNAVAILABLE."""
        if name in self._file_tiers:
            return self._file_tiers[name]
        _check_name("name", name)
        tier = await self._store.tier(name) or BUILT_IN.get(name)
        if tier is None:
            raise not_found("tier", name)
        return tier

    async def list_page(self, *, size: int, token: str) -> Page[Tier]:
        """One page of all tiers, by name.

        Raises NaruError INVALID_ARGUMENT for a negative size or a token of no page; SERVICE_UNAVAILABLE.
        """
        size = page_size(size)
        after = read_token((), token, (str,))
        tiers = tiers_in_force(await self._store.tiers(), self._file_tiers)
        names = sorted(name for name in tiers if after is None or (name,) > after)
        return page_of([tiers[name] for name in names[: size + 1]], size, (), lambda tier: (tier.name,))

    async def update(self, tier: Tier, request_id: str = "") -> Tier:
        """Replaces what a tier allows.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; NOT_FOUND; FAILED_PRECONDITION for a tier of the configuration's
                file; SERVICE_UNAVAILABLE.
        """
        self._check(tier, request_id)
        stored = await self._store.put_tier(self._stamped(tier), must_exist=tier.name not in BUILT_IN)
        await self._refresh()
        return stored

    async def delete(self, name: str, request_id: str = "") -> None:
        """Deletes a tier, or takes back what was changed about a built-in one. A tier that is not there is no error.

        Users and workspaces that have it and no key are not asked about, and are on the tier `free` then.

        Raises:
            NaruError: INVALID_ARGUMENT; FAILED_PRECONDITION while a key or a budget has the tier, and for a tier of the
                configuration's file; SERVICE_UNAVAILABLE, also when nobody can tell whether a key has it.
        """
        check_request_id(request_id)
        if name in self._file_tiers:
            raise _of_file(name)
        _check_name("name", name)
        # Nobody loses a built-in tier by this.
        built_in = name in BUILT_IN
        if not built_in and await self._store.tier(name) is not None and await self._tier_in_use(name):
            raise failed_precondition("tier", name, f"The tier {name!r} is in use: API keys have it.")
        await self._store.delete_tier(name, unless_budgeted=not built_in)
        await self._refresh()

    def _check(self, tier: Tier, request_id: str) -> None:
        check_request_id(request_id)
        if tier.name in self._file_tiers:
            raise _of_file(tier.name)
        _check_name("tier.name", tier.name)
        check_tier(tier, "tier")

    def _stamped(self, tier: Tier) -> Tier:
        now = round(self._clock.time() * MICROS)
        return replace(tier, create_time=now, update_time=now)


def _content(tier: Tier) -> Tier:
    return replace(tier, create_time=None, update_time=None)


def _check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise invalid_argument(field, f'{field} must have 1 to 64 of a-z, 0-9, "-" and "_", and begin with a letter.')


def _of_file(name: str) -> NaruError:
    return failed_precondition(
        "tier", name, f"The tier {name!r} comes from the configuration's file of tiers and can only be changed there."
    )
