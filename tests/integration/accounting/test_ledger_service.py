"""The ledger over gRPC: who may do what, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from naru.api.accounting.v1 import ledger_service_pb2
from naru.convert import timestamp_to_proto
from naru.errors import Reason
from naru.identity import Role, ServiceName
from naru.ids import uuid7
from tests.integration.accounting.harness import eventually, refused
from tests.integration.accounting.service import Service, final, wanted

CREDIT = {"amount": 5_000, "description": "invoice 7"}
ADJUSTMENT = ledger_service_pb2.LEDGER_ENTRY_KIND_ADJUSTMENT


async def test_money_comes_and_goes(service: Service) -> None:
    """A credit, a debit, a bound: each is in the balance at once, and the books hold."""
    operator = service.as_service(ServiceName.OPERATOR)
    request_id = uuid7()
    for _ in range(2):
        made = await operator.ledger("Credit", workspace_id="w1", credit=CREDIT, request_id=request_id)
    assert (made.entry.amount, made.entry.kind) == (5_000, ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT)
    assert (made.entry.description, made.entry.caller) == ("invoice 7", "service:operator")
    assert made.entry.request_id == request_id
    assert [(side.account, side.amount) for side in made.entry.postings] == [
        ("workspace:w1", 5_000),
        ("funding", -5_000),
    ]
    debit = {"kind": ADJUSTMENT, "amount": -6_000}
    error = await refused(operator.ledger("Credit", workspace_id="w1", credit=debit))
    assert (error.reason, error.metadata) == (
        Reason.FAILED_PRECONDITION,
        {"resource": "ledger_account", "name": "w1"},
    )
    balance = (await operator.ledger("SetOverdraft", workspace_id="w1", overdraft={"amount": 1_000})).balance
    assert (balance.balance, balance.overdraft) == (5_000, 1_000)
    balance = (await operator.ledger("Credit", workspace_id="w1", credit=debit)).balance
    assert (balance.balance, balance.credited, balance.used) == (-1_000, -1_000, 0)
    balance = (await operator.ledger("SetOverdraft", workspace_id="w1", overdraft={})).balance
    assert not balance.HasField("overdraft")
    found = await operator.ledger("VerifyLedger")
    assert (list(found.findings), found.entries) == ([], 2)


async def test_a_balance_decides_about_the_next_request(service: Service) -> None:
    """What is not priced costs nothing; the limit is shown where limits are shown, and never resets once it is used."""
    operator, edge = service.as_service(ServiceName.OPERATOR), service.as_service(ServiceName.EDGE)
    owner, principal = service.as_owner("w1", Role.USER)
    await operator.ledger("Credit", workspace_id="w1", credit=CREDIT)
    (result,) = await edge.reserve(wanted(principal))
    assert result.HasField("grant")
    (state,) = [one for one in (await owner.limits()).limits if one.window == 5]
    assert (state.limit, state.remaining) == (5_000, 5_000)
    await service.as_service(ServiceName.INFERENCE).record(final(principal, result.event_id))

    async def counted() -> bool:
        return (await operator.ledger("VerifyLedger")).events == 1

    await eventually(counted)
    assert (await owner.ledger("GetBalance")).balance.balance == 5_000


async def test_who_may_see_what(service: Service) -> None:
    """One's own workspace; its entries, as its administrator; everything, as an administrator."""
    user, _ = service.as_owner("w1", Role.USER)
    manager, _ = service.as_owner("w1", Role.WORKSPACE_ADMIN)
    admin, principal = service.as_owner("w9", Role.ADMIN)
    made = await admin.ledger("Credit", workspace_id="w1", credit=CREDIT)
    assert made.entry.caller == f"key:{principal.key_id}"
    for caller, fields in ((user, {}), (manager, {"workspace_id": "w1"}), (admin, {"workspace_id": "w1"})):
        assert (await caller.ledger("GetBalance", **fields)).balance.balance == 5_000
    assert [entry.amount for entry in (await manager.ledger("ListEntries")).entries] == [5_000]
    assert list((await admin.ledger("ListEntries", workspace_id="w2")).entries) == []
    denied: list[tuple[Any, str, dict[str, Any]]] = [
        (user, "GetBalance", {"workspace_id": "w2"}),
        (user, "ListEntries", {}),
        (manager, "ListEntries", {"workspace_id": "w2"}),
        (manager, "Credit", {"workspace_id": "w1", "credit": CREDIT}),
        (manager, "SetOverdraft", {"workspace_id": "w1", "overdraft": {"amount": 5}}),
        (manager, "VerifyLedger", {}),
    ]
    for caller, method, fields in denied:
        assert (await refused(caller.ledger(method, **fields))).reason is Reason.PERMISSION_DENIED, method


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("GetBalance", {}, "workspace_id"),
        ("GetBalance", {"workspace_id": "w" * 65}, "workspace_id"),
        ("ListEntries", {"workspace_id": "w", "kinds": [99]}, "kinds"),
        ("ListEntries", {"workspace_id": "w", "page_size": -1}, "page_size"),
        ("ListEntries", {"workspace_id": "w", "page_token": "x"}, "page_token"),
        ("ListEntries", {"workspace_id": "w", "start_time": {"seconds": -5}}, "start_time"),
        ("Credit", {"credit": CREDIT}, "workspace_id"),
        ("Credit", {"workspace_id": "w"}, "credit.amount"),
        ("Credit", {"workspace_id": "w", "credit": {"kind": 1, "amount": 5}}, "credit.kind"),
        ("Credit", {"workspace_id": "w", "credit": {"amount": 5, "description": "x" * 201}}, "credit.description"),
        ("Credit", {"workspace_id": "w", "credit": CREDIT, "request_id": "no"}, "request_id"),
        ("SetOverdraft", {"workspace_id": "w"}, "overdraft"),
        ("SetOverdraft", {"workspace_id": "w", "overdraft": {"amount": -1}}, "overdraft.amount"),
    ],
)
async def test_what_cannot_be(service: Service, method: str, fields: dict[str, Any], field: str) -> None:
    """The field is named, and nothing is posted."""
    operator = service.as_service(ServiceName.OPERATOR)
    error = await refused(operator.ledger(method, **fields))
    assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": field})
    assert (await operator.ledger("VerifyLedger")).entries == 0


async def test_entries_by_time(service: Service) -> None:
    """Times are those that entries are booked at."""
    operator = service.as_service(ServiceName.OPERATOR)
    await operator.ledger("Credit", workspace_id="w1", credit=CREDIT)
    for fields, count in (({"start_time": timestamp_to_proto(1.0)}, 1), ({"end_time": timestamp_to_proto(1.0)}, 0)):
        assert len((await operator.ledger("ListEntries", workspace_id="w1", **fields)).entries) == count
