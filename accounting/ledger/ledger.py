"""The ledger's entries, pure: what is posted for usage, and what money may be put on an account or taken off it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import NamedTuple

from accounting.quota import EventRef
from naru.errors import NaruError, Reason, invalid_argument

MAX_AMOUNT = 9 * 10**15
"""Most that one credit, or an overdraft, may amount to."""
MAX_TOTAL = 9 * 10**18
"""Most that all credits of a workspace may come to: what a 64-bit integer holds."""
DESCRIPTION_CHARACTERS_MAX = 200
REVENUE, FUNDING, ADJUSTMENTS = "revenue", "funding", "adjustments"


class EntryKind(StrEnum):
    """Why an entry was made."""

    USAGE = "usage"
    CORRECTION = "correction"
    CREDIT = "credit"
    ADJUSTMENT = "adjustment"
    REFUND = "refund"

    @property
    def is_usage(self) -> bool:
        """Whether the metering made it; else somebody did."""
        return self in (EntryKind.USAGE, EntryKind.CORRECTION)


_AGAINST: Mapping[EntryKind, str] = {
    EntryKind.USAGE: REVENUE,
    EntryKind.CORRECTION: REVENUE,
    EntryKind.REFUND: REVENUE,
    EntryKind.CREDIT: FUNDING,
    EntryKind.ADJUSTMENT: ADJUSTMENTS,
}


class Posting(NamedTuple):
    """One side of an entry."""

    account: str
    amount: int


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that changed a workspace's balance. Times in microseconds since the Unix epoch.

    Attributes:
        amount: What it adds to the balance, in nano-units; below zero it takes.
        evidence: The rank of the evidence that it was made by; 0 where it is not about usage.
        caller: Who made it; empty for usage.
    """

    entry_id: str
    kind: EntryKind
    workspace_id: str
    amount: int
    booked_time: int
    create_time: int
    event_id: str = ""
    attempt: int = 0
    evidence: int = 0
    description: str = ""
    request_id: str = ""
    caller: str = ""


@dataclass(frozen=True, slots=True)
class Account:
    """How a workspace's account stands, in nano-units.

    Attributes:
        overdraft: None: without a bound, billed in arrears.
        lowered: All that was ever taken off what it may use, by debits and lower overdrafts. To the limiter that is used.
    """

    workspace_id: str
    credited: int = 0
    used: int = 0
    overdraft: int | None = None
    lowered: int = 0

    @property
    def balance(self) -> int:
        """What is left of what was credited."""
        return self.credited - self.used

    @property
    def allowance(self) -> int:
        """The most that the limiter may ever count for it. It never falls: not everybody would hear of that in time."""
        return self.credited + (self.overdraft or 0) + self.lowered

    @property
    def counted(self) -> int:
        """What the limiter has to count for it, besides what is reserved."""
        return self.used + self.lowered


@dataclass(frozen=True, slots=True)
class CreditWish:
    """Money to be put on an account, or taken off it."""

    kind: EntryKind
    amount: int
    description: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of an event as SQL has it: what it costs, if it counts yet."""

    ref: EventRef
    workspace_id: str
    evidence: int
    cost: int
    reserve_time: int
    settled: bool


def account_of(workspace_id: str) -> str:
    """The name of a workspace's account."""
    return f"workspace:{workspace_id}"


def postings(entry: Entry) -> tuple[Posting, Posting]:
    """What an entry adds to the two accounts that it moves money between; together nothing."""
    return Posting(account_of(entry.workspace_id), entry.amount), Posting(_AGAINST[entry.kind], -entry.amount)


def usage_entries(attempts: Sequence[Attempt], posted: Mapping[EventRef, int], now: int) -> list[Entry]:
    """What has to be posted so that each event comes to the cost of its highest attempt, and nothing until that is settled.

    Args:
        attempts: All attempts of some events.
        posted: What the entries of attempts come to so far.
        now: When the entries are made, in microseconds since the Unix epoch.
    """
    highest: dict[str, int] = {}
    for one in attempts:
        highest[one.ref.event_id] = max(highest.get(one.ref.event_id, 0), one.ref.attempt)
    entries = []
    for one in attempts:
        counts = one.ref.attempt == highest[one.ref.event_id]
        wanted = -one.cost if counts and one.settled else 0
        difference = wanted - posted.get(one.ref, 0)
        # Nobody can be billed for what no workspace used.
        if difference and one.workspace_id:
            entries.append(_usage_entry(one, difference, now, counts=counts, first=one.ref not in posted))
    return entries


def _usage_entry(attempt: Attempt, amount: int, now: int, *, counts: bool, first: bool) -> Entry:
    ref = attempt.ref
    # Evidence only gets better, and an attempt is superseded once: the same thing always has the same id.
    mark = str(attempt.evidence) if counts else "superseded"
    return Entry(
        f"{ref.event_id}.{ref.attempt}.{mark}",
        EntryKind.USAGE if first else EntryKind.CORRECTION,
        attempt.workspace_id,
        amount,
        attempt.reserve_time,
        now,
        ref.event_id,
        ref.attempt,
        attempt.evidence,
    )


def used_by(entries: Iterable[Entry]) -> dict[str, int]:
    """What entries of usage add to what each workspace used."""
    used: dict[str, int] = {}
    for entry in entries:
        used[entry.workspace_id] = used.get(entry.workspace_id, 0) - entry.amount
    return used


def check_credit(wish: CreditWish) -> None:
    """Raises NaruError INVALID_ARGUMENT, naming what is wrong with the wish."""
    if wish.kind.is_usage:
        raise invalid_argument("credit.kind", "credit.kind must be credit, refund or adjustment.")
    least = -MAX_AMOUNT if wish.kind is EntryKind.ADJUSTMENT else 1
    if wish.amount == 0 or not least <= wish.amount <= MAX_AMOUNT:
        also = ", or of an adjustment below zero down to the same," if wish.kind is EntryKind.ADJUSTMENT else ""
        raise invalid_argument(
            "credit.amount", f"credit.amount must be a whole number of nano-units from 1 to {MAX_AMOUNT:,}{also}."
        )
    if len(wish.description) > DESCRIPTION_CHARACTERS_MAX or "\0" in wish.description:
        raise invalid_argument(
            "credit.description", f"credit.description must have at most {DESCRIPTION_CHARACTERS_MAX} characters."
        )


def check_overdraft(overdraft: int | None) -> None:
    """Raises NaruError INVALID_ARGUMENT for a bound that cannot be."""
    if overdraft is not None and not 0 <= overdraft <= MAX_AMOUNT:
        raise invalid_argument("overdraft.amount", f"overdraft.amount must be from 0 to {MAX_AMOUNT:,} nano-units.")


def credited(account: Account, wish: CreditWish) -> Account:
    """The account with the money on it, or off it. A top-up makes it one that is paid in advance.

    Raises NaruError FAILED_PRECONDITION when less would be left than the overdraft allows, or more than can be counted.
    """
    overdraft = account.overdraft
    if overdraft is None and wish.kind is EntryKind.CREDIT:
        overdraft = 0
    lowered = account.lowered - min(wish.amount, 0) if overdraft is not None else account.lowered
    after = replace(account, credited=account.credited + wish.amount, overdraft=overdraft, lowered=lowered)
    if wish.amount < 0 and overdraft is not None and after.balance < -overdraft:
        raise too_little_left(account)
    _check_size(after)
    return after


def overdrawn(account: Account, overdraft: int | None) -> Account:
    """The account with another overdraft. Raises NaruError FAILED_PRECONDITION when its balance is below a lower one."""
    lowers = account.overdraft is not None and overdraft is not None and overdraft < account.overdraft
    if not lowers:
        after = replace(account, overdraft=overdraft)
    else:
        after = replace(
            account, overdraft=overdraft, lowered=account.lowered + (account.overdraft or 0) - (overdraft or 0)
        )
        if after.balance < -(overdraft or 0):
            raise too_little_left(account)
    _check_size(after)
    return after


def too_little_left(account: Account) -> NaruError:
    """The error for taking more off an account than is free of it."""
    return _forbidden(
        account, "With what running requests have reserved, this would leave less than the account's overdraft allows."
    )


def _check_size(account: Account) -> None:
    if not account.credited >= -MAX_TOTAL or account.credited + account.lowered > MAX_TOTAL - MAX_AMOUNT:
        raise _forbidden(account, "This is more than one account can hold.")


def _forbidden(account: Account, message: str) -> NaruError:
    return NaruError(
        Reason.FAILED_PRECONDITION, message, metadata={"resource": "ledger_account", "name": account.workspace_id}
    )
