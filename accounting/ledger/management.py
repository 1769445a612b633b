"""Reading accounts, and putting money on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from accounting import checks
from accounting.catalogue.catalogue import credit_limit
from accounting.catalogue.management import (
    MICROS,
    Page,
    Refresh,
    caller_name,
    check_request_id,
    other_request,
    page_of,
    requested_id,
)
from accounting.ledger.ledger import (
    Account,
    CreditWish,
    Entry,
    EntryKind,
    check_credit,
    check_overdraft,
    credited,
    overdrawn,
    too_little_left,
)
from accounting.ledger.store import EntryFilter, LedgerStore
from accounting.limiter.balances import Balances
from accounting.limiter.limiter import Booked, Limiter
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Caller, Role
from naru.paging import page_size, read_token

_METHOD = "/naru.api.accounting.v1.LedgerService/{}"


class LedgerManager:
    """Decides about accounts.

    Args:
        store: Where the ledger is kept.
        limiter: Learns what a workspace used before it began to pay in advance.
        balances: Tells whether money is free to be taken off an account.
        refresh: Brings a change into force on this process.
        clock: Tells the time.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        store: LedgerStore,
        limiter: Limiter,
        balances: Balances,
        refresh: Refresh,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._balances = balances
        self._refresh = refresh
        self._clock = clock
        self._new_id = new_id

    async def balance(self, caller: Caller, workspace_id: str) -> Account:
        """How an account stands; the caller's own where none is named.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for another workspace's; SERVICE_UNAVAILABLE.
        """
        return await self._store.account(_visible(caller, workspace_id, "GetBalance"))

    async def list_page(self, caller: Caller, which: EntryFilter, *, size: int, token: str) -> Page[Entry]:
        """One page of the entries of a workspace, the caller's own where none is named, those booked last first.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; PERMISSION_DENIED for another workspace's; SERVICE_UNAVAILABLE.
        """
        which = replace(which, workspace_id=_visible(caller, which.workspace_id, "ListEntries"))
        size = page_size(size)
        checks.text("event_id", which.event_id)
        filters = (which,)
        after = read_token(filters, token, (int, str))
        entries = await self._store.entries(which, after=after, limit=size + 1)
        return page_of(entries, size, filters, lambda entry: (entry.booked_time, entry.entry_id))

    async def credit(
        self, caller: Caller, workspace_id: str, wish: CreditWish, request_id: str = ""
    ) -> tuple[Entry, Account]:
        """Puts money on an account, or takes some off; the same request again returns the entry made before.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; FAILED_PRECONDITION when less would be left than the overdraft
                allows; ALREADY_EXISTS for a request id used with other content; SERVICE_UNAVAILABLE.
        """
        check_request_id(request_id)
        _check_workspace(workspace_id)
        check_credit(wish)
        now = round(self._clock.time() * MICROS)
        entry = Entry(
            requested_id("ledger_entry", caller, request_id, self._new_id),
            wish.kind,
            workspace_id,
            wish.amount,
            now,
            now,
            description=wish.description,
            request_id=request_id,
            caller=caller_name(caller),
        )
        if wish.kind is EntryKind.CREDIT:
            await self._count_what_was_used(workspace_id)

        async def change(found: Account) -> Account:
            return await self._lowered(found, credited(found, wish))

        stored, account, added = await self._store.credit(entry, change)
        if not added and _content(stored) != _content(entry):
            raise other_request("ledger_entry", request_id)
        await self._refresh()
        return stored, account

    async def set_overdraft(self, workspace_id: str, overdraft: int | None, request_id: str = "") -> Account:
        """Says how far below zero a balance may fall; None: without a bound, billed in arrears.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; FAILED_PRECONDITION when the balance would be below a lower overdraft;
                SERVICE_UNAVAILABLE.
        """
        check_request_id(request_id)
        _check_workspace(workspace_id)
        check_overdraft(overdraft)
        if overdraft is not None:
            await self._count_what_was_used(workspace_id)

        async def change(found: Account) -> Account:
            return await self._lowered(found, overdrawn(found, overdraft))

        account = await self._store.change(workspace_id, change)
        await self._refresh()
        return account

    async def _lowered(self, before: Account, after: Account) -> Account:
        """The account as it is to be, once the limiter has let go of what it may use less.

        Requests are in flight that SQL knows nothing of: only the limiter can tell whether that much is free still. Should the
        transaction fail after this, too much is counted until the next reconciliation.
        """
        amount = after.lowered - before.lowered
        if amount > 0 and not await self._balances.take(credit_limit(before.workspace_id, before.allowance), amount):
            raise too_little_left(before)
        return after

    async def _count_what_was_used(self, workspace_id: str) -> None:
        """Tells the limiter what a workspace that was billed in arrears used, before anybody decides by it."""
        account = await self._store.account(workspace_id)
        if account.overdraft is None and account.counted > 0:
            await self._limiter.load([Booked(credit_limit(workspace_id, 0), 0, account.counted)])


def _content(entry: Entry) -> tuple[object, ...]:
    return entry.workspace_id, entry.kind, entry.amount, entry.description


def _check_workspace(workspace_id: str) -> None:
    if not workspace_id:
        raise invalid_argument("workspace_id", "workspace_id must be set.")
    checks.text("workspace_id", workspace_id)


def _visible(caller: Caller, workspace_id: str, method: str) -> str:
    """The workspace that is asked about, if the caller may."""
    principal = caller.principal
    if principal is None:
        _check_workspace(workspace_id)
        return workspace_id
    if principal.role is not Role.ADMIN and workspace_id not in ("", principal.workspace_id):
        raise NaruError(
            Reason.PERMISSION_DENIED, "You may not see this account.", metadata={"method": _METHOD.format(method)}
        )
    workspace_id = workspace_id or principal.workspace_id
    _check_workspace(workspace_id)
    return workspace_id
