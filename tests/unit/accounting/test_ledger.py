"""What is posted for usage, and what may be put on an account."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accounting.ledger.ledger import Account, Attempt, CreditWish, EntryKind, credited, postings, usage_entries, used_by
from accounting.quota import EventRef
from naru.errors import NaruError, Reason

FIRST = Attempt(EventRef("e", 0), "w", 3, 100, 7, True)
SECOND = replace(FIRST, ref=EventRef("e", 1), cost=40, evidence=2, settled=False)


def test_an_event_comes_to_the_cost_of_its_last_attempt() -> None:
    """Nothing while that is not settled; what earlier ones posted is taken back under a name of its own."""
    (entry,) = usage_entries([FIRST], {}, 9)
    assert (entry.entry_id, entry.kind, entry.amount) == ("e.0.3", EntryKind.USAGE, -100)
    assert (entry.booked_time, entry.create_time) == (7, 9)
    posted = {FIRST.ref: -100}
    assert usage_entries([FIRST], posted, 9) == []
    (taken_back,) = usage_entries([FIRST, SECOND], posted, 9)
    assert (taken_back.entry_id, taken_back.kind, taken_back.amount) == ("e.0.superseded", EntryKind.CORRECTION, 100)
    posted[FIRST.ref] = 0
    (second,) = usage_entries([FIRST, replace(SECOND, settled=True)], posted, 9)
    assert (second.entry_id, second.kind, second.amount) == ("e.1.2", EntryKind.USAGE, -40)
    assert used_by([entry, taken_back, second]) == {"w": 40}
    assert usage_entries([replace(FIRST, workspace_id="")], {}, 9) == []


@pytest.mark.parametrize("kind", EntryKind)
def test_every_entry_sums_to_zero(kind: EntryKind) -> None:
    """Between the workspace and the account that its kind is against."""
    (entry,) = usage_entries([FIRST], {}, 9)
    own, other = postings(replace(entry, kind=kind))
    assert own == ("workspace:w", -100)
    assert (other.amount, other.account) == (
        100,
        {"credit": "funding", "adjustment": "adjustments"}.get(kind, "revenue"),
    )


def test_a_top_up_alone_begins_to_pay_in_advance() -> None:
    """What is given back or put right does not."""
    arrears = Account("w", 0, 50)
    assert credited(arrears, CreditWish(EntryKind.REFUND, 5)) == Account("w", 5, 50)
    assert credited(arrears, CreditWish(EntryKind.ADJUSTMENT, -500)) == Account("w", -500, 50)
    assert credited(arrears, CreditWish(EntryKind.CREDIT, 5)) == Account("w", 5, 50, 0)
    assert credited(replace(arrears, overdraft=9), CreditWish(EntryKind.CREDIT, 5)) == Account("w", 5, 50, 9)


@pytest.mark.parametrize(
    ("account", "amount"),
    [
        (Account("w", 100, 50, 10), -61),
        (Account("w", 9 * 10**18 - 10**15, 0, 0), 9 * 10**15),
        (Account("w", -9 * 10**18, 0, None), -1),
    ],
)
def test_what_an_account_cannot_hold(account: Account, amount: int) -> None:
    """Less than its overdraft allows, or more than can be counted; a nano-unit less is no matter."""
    with pytest.raises(NaruError) as failure:
        credited(account, CreditWish(EntryKind.ADJUSTMENT, amount))
    assert failure.value.reason is Reason.FAILED_PRECONDITION
    assert failure.value.metadata == {"resource": "ledger_account", "name": "w"}
    assert credited(Account("w", 100, 50, 10), CreditWish(EntryKind.ADJUSTMENT, -60)).balance == -10
