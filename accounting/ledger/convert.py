"""Between the messages of the ledger in `naru.api.accounting.v1` and accounting's own types."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.timestamp_pb2 import Timestamp

from accounting.catalogue.convert import time_from_proto, time_to_proto
from accounting.ledger.ledger import Account, CreditWish, Entry, EntryKind, postings
from accounting.ledger.store import EntryFilter
from accounting.ledger.verification import Check, Finding, Verification
from naru.api.accounting.v1 import ledger_service_pb2
from naru.errors import invalid_argument

_KINDS: Mapping[int, EntryKind] = {
    ledger_service_pb2.LEDGER_ENTRY_KIND_USAGE: EntryKind.USAGE,
    ledger_service_pb2.LEDGER_ENTRY_KIND_CORRECTION: EntryKind.CORRECTION,
    ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT: EntryKind.CREDIT,
    ledger_service_pb2.LEDGER_ENTRY_KIND_ADJUSTMENT: EntryKind.ADJUSTMENT,
    ledger_service_pb2.LEDGER_ENTRY_KIND_REFUND: EntryKind.REFUND,
}
_KINDS_TO_PROTO = {kind: ledger_service_pb2.LedgerEntryKind.ValueType(number) for number, kind in _KINDS.items()}
_CHECKS = {
    Check.EVENTS: ledger_service_pb2.LEDGER_CHECK_EVENTS,
    Check.POSTINGS: ledger_service_pb2.LEDGER_CHECK_POSTINGS,
    Check.CORRECTIONS: ledger_service_pb2.LEDGER_CHECK_CORRECTIONS,
    Check.BALANCES: ledger_service_pb2.LEDGER_CHECK_BALANCES,
    Check.UNSETTLED: ledger_service_pb2.LEDGER_CHECK_UNSETTLED,
    Check.OUTBOX: ledger_service_pb2.LEDGER_CHECK_OUTBOX,
    Check.LIMITER: ledger_service_pb2.LEDGER_CHECK_LIMITER,
    Check.ENGINES: ledger_service_pb2.LEDGER_CHECK_ENGINES,
}


def balance_to_proto(account: Account) -> ledger_service_pb2.Balance:
    """The account on the wire."""
    return ledger_service_pb2.Balance(
        workspace_id=account.workspace_id,
        balance=account.balance,
        credited=account.credited,
        used=account.used,
        overdraft=account.overdraft,
    )


def entry_to_proto(entry: Entry) -> ledger_service_pb2.LedgerEntry:
    """The entry on the wire, with its postings."""
    return ledger_service_pb2.LedgerEntry(
        entry_id=entry.entry_id,
        kind=_KINDS_TO_PROTO[entry.kind],
        workspace_id=entry.workspace_id,
        amount=entry.amount,
        booked_time=time_to_proto(entry.booked_time),
        create_time=time_to_proto(entry.create_time),
        event_id=entry.event_id,
        attempt=entry.attempt,
        description=entry.description,
        request_id=entry.request_id,
        caller=entry.caller,
        postings=[
            ledger_service_pb2.LedgerPosting(account=side.account, amount=side.amount) for side in postings(entry)
        ],
    )


def filter_from_proto(request: ledger_service_pb2.ListEntriesRequest) -> EntryFilter:
    """Which entries are asked for. Raises NaruError INVALID_ARGUMENT naming the field."""
    return EntryFilter(
        request.workspace_id,
        tuple(_kind(number, "kinds") for number in request.kinds),
        _time(request, "start_time", request.start_time),
        _time(request, "end_time", request.end_time),
        request.event_id,
    )


def credit_from_proto(message: ledger_service_pb2.LedgerCredit) -> CreditWish:
    """What to put on the account. Raises NaruError INVALID_ARGUMENT for a kind that nothing is known by."""
    number = message.kind or ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT
    return CreditWish(_kind(number, "credit.kind"), message.amount, message.description)


def overdraft_from_proto(request: ledger_service_pb2.SetOverdraftRequest) -> int | None:
    """The bound; None for none. Raises NaruError INVALID_ARGUMENT when nothing is said."""
    if not request.HasField("overdraft"):
        raise invalid_argument("overdraft", "overdraft must be set.")
    return request.overdraft.amount if request.overdraft.HasField("amount") else None


def verification_to_proto(found: Verification) -> ledger_service_pb2.VerifyLedgerResponse:
    """What was found, on the wire."""
    return ledger_service_pb2.VerifyLedgerResponse(
        findings=map(_finding_to_proto, found.findings),
        events=found.events,
        entries=found.entries,
        exact_runs=found.exact_runs,
        bounded_runs=found.bounded_runs,
        uncounted_requests=found.uncounted_requests,
    )


def _finding_to_proto(finding: Finding) -> ledger_service_pb2.LedgerFinding:
    return ledger_service_pb2.LedgerFinding(
        check=_CHECKS[finding.check],
        workspace_id=finding.workspace_id,
        count=finding.count,
        amount=finding.amount,
        example=finding.example,
        tokens=finding.tokens,
    )


def _kind(number: int, field: str) -> EntryKind:
    kind = _KINDS.get(number)
    if kind is None:
        raise invalid_argument(field, f"{field} must be set to a known value.")
    return kind


def _time(request: ledger_service_pb2.ListEntriesRequest, field: str, message: Timestamp) -> int | None:
    return time_from_proto(field, message) if request.HasField(field) else None  # type: ignore[arg-type] # a known name
