"""/api/*: JSON over HTTP becomes the RPC it stands for, as the one who asks, and back."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from naru import api_key
from naru.api.accounting.v1 import (
    budget_service_pb2,
    ledger_service_pb2,
    limit_pb2,
    price_pb2,
    pricing_service_pb2,
    quota_service_pb2,
    tier_service_pb2,
    usage_service_pb2,
)
from naru.api.common.v1 import usage_pb2
from naru.convert import duration_to_proto, principal_from_proto, timestamp_to_proto
from naru.errors import NaruError, Reason, invalid_argument, not_found, unavailable
from naru.identity import Caller, Principal, Role, Scopes, ServiceName
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until

ADMIN = replace(PRINCIPAL, role=Role.ADMIN)
TIER = tier_service_pb2.Tier(
    name="team",
    limits=[
        tier_service_pb2.TierLimit(
            rule=limit_pb2.LimitRule(kind=limit_pb2.LIMIT_KIND_REQUESTS, window=limit_pb2.LIMIT_WINDOW_MINUTE, limit=60)
        )
    ],
    default_output_tokens=4096,
    create_time=timestamp_to_proto(1_800_000_000.25),
)
UUID = "0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1"
SHOWN_TIER: dict[str, Any] = {
    "name": "team",
    "limits": [
        {
            "scope": "unspecified",
            "rule": {
                "kind": "requests",
                "window": "minute",
                "limit": 60,
                "model": "",
                "shadow": False,
                "soft_thresholds": [],
            },
        }
    ],
    "default_output_tokens": 4096,
    "create_time": "2027-01-15T08:00:00.250Z",
}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(
        tmp_path, max_body_bytes=10_000, trusted_proxies=("127.0.0.0/8",), cors_origins=("https://admin.example.com",)
    ) as harness:
        harness.auth.principals[KEY] = ADMIN
        yield harness


def other_key(edge: Harness, principal: Principal) -> dict[str, str]:
    """The header of a key of `principal`."""
    key = api_key.format_key("otherOTHER12", "o" * 43)
    edge.auth.principals[key] = principal
    return {"Authorization": f"Bearer {key}"}


async def error_of(answer: Any, status: int) -> dict[str, Any]:
    """The error, which must be in OpenAI's shape."""
    assert answer.status == status
    error = (await answer.json())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


async def test_a_tier_is_made(edge: Harness) -> None:
    """POST makes the RPC as the caller, with the body as its tier, and answers with the tier alone."""
    edge.accounting.rpcs.answers["TierService/CreateTier"] = tier_service_pb2.CreateTierResponse(tier=TIER)
    headers = {"Idempotency-Key": UUID, "X-Request-Id": "my-request.1"}
    async with edge.ask("POST", "/api/tiers", json=SHOWN_TIER, headers=headers) as answer:
        assert answer.status == 200
        assert answer.headers["X-Request-Id"] == "my-request.1"
        assert await answer.json() == SHOWN_TIER
    (call,) = edge.accounting.rpcs.calls
    assert call.name == "TierService/CreateTier"
    assert call.caller == Caller(principal=ADMIN)
    assert call.request_id == "my-request.1"
    assert call.request == tier_service_pb2.CreateTierRequest(request_id=UUID, tier=TIER)
    await until(lambda: edge.accounting.records)
    assert edge.accounting.records[0].endpoint == "/api/tiers"


async def test_the_body_names_its_request_id(edge: Harness) -> None:
    """`request_id` at the top of the body is the request's and goes before the header."""
    body = {"name": "team", "request_id": "from-body"}
    async with edge.ask("POST", "/api/tiers", json=body, headers={"Idempotency-Key": UUID}) as answer:
        assert answer.status == 200
    async with edge.ask("DELETE", "/api/tiers/team", json={"request_id": "from-body"}) as answer:
        assert await answer.json() == {}
    async with edge.ask("DELETE", "/api/tiers/team") as answer:
        assert answer.status == 200
    requests = [call.request for call in edge.accounting.rpcs.calls]
    assert [request.request_id for request in requests] == ["from-body", "from-body", ""]
    assert requests[0].tier == tier_service_pb2.Tier(name="team")
    assert requests[1].name == "team"


async def test_the_path_tells_what_is_replaced(edge: Harness) -> None:
    """PUT takes the name from the path; a body that names another is refused."""
    body = {"limits": [], "default_output_tokens": 5}
    async with edge.ask("PUT", "/api/tiers/team", json=body) as answer:
        assert answer.status == 200
    async with edge.ask("PUT", "/api/budgets/b1", json={"budget_id": "b1", "rule": {"limit": 7}}) as answer:
        assert answer.status == 200
    async with edge.ask("PUT", "/api/tiers/team", json=body | {"name": "other"}) as answer:
        assert (await error_of(answer, 400))["param"] == "name"
    tier, budget = (call.request for call in edge.accounting.rpcs.calls)
    assert tier.tier == tier_service_pb2.Tier(name="team", default_output_tokens=5)
    assert budget.budget == budget_service_pb2.Budget(budget_id="b1", rule=limit_pb2.LimitRule(limit=7))


async def test_lists_are_filtered_and_paged(edge: Harness) -> None:
    """Query parameters are the fields of the request; the answer has the rows and the next page."""
    edge.accounting.rpcs.answers |= {
        "TierService/ListTiers": tier_service_pb2.ListTiersResponse(tiers=[TIER], next_page_token="next"),
        "PricingService/ListPrices": pricing_service_pb2.ListPricesResponse(
            prices=[
                price_pb2.Price(price_id="p1", model="m", unit_prices=price_pb2.UnitPrices(input_million=150_000_000))
            ]
        ),
    }
    async with edge.get("/api/tiers?page_size=1&page_token=token") as answer:
        assert await answer.json() == {"tiers": [SHOWN_TIER], "next_page_token": "next"}
    async with edge.get("/api/budgets?scope=workspace&scope_id=ws1") as answer:
        assert await answer.json() == {"budgets": [], "next_page_token": ""}
    async with edge.get("/api/prices", params={"model": "org/m:1", "workspace_id": "ws1"}) as answer:
        (price,) = (await answer.json())["prices"]
    assert price["unit_prices"] == {
        "input_million": 150_000_000,
        "cached_input_million": 0,
        "output_million": 0,
        "request": 0,
    }
    assert [call.request for call in edge.accounting.rpcs.calls] == [
        tier_service_pb2.ListTiersRequest(page_size=1, page_token="token"),
        budget_service_pb2.ListBudgetsRequest(scope=limit_pb2.LIMIT_SCOPE_WORKSPACE, scope_id="ws1"),
        pricing_service_pb2.ListPricesRequest(model="org/m:1", workspace_id="ws1"),
    ]


@pytest.mark.parametrize(
    ("method", "path", "rpc"),
    [
        ("GET", "/api/tiers/team", "TierService/GetTier"),
        ("GET", "/api/budgets/b1", "BudgetService/GetBudget"),
        ("DELETE", "/api/budgets/b1", "BudgetService/DeleteBudget"),
        ("POST", "/api/budgets", "BudgetService/CreateBudget"),
        ("POST", "/api/prices", "PricingService/CreatePrice"),
        ("DELETE", "/api/prices/p1", "PricingService/DeletePrice"),
    ],
)
async def test_the_other_rows(edge: Harness, method: str, path: str, rpc: str) -> None:
    """Each path is answered by its RPC, with the id in the path."""
    async with edge.ask(method, path, json={} if method == "POST" else None) as answer:
        assert answer.status == 200
    (call,) = edge.accounting.rpcs.calls
    assert call.name == rpc
    if path.count("/") == 3:
        assert path.rpartition("/")[2] in str(call.request)


@pytest.mark.parametrize(
    ("method", "path", "body", "param"),
    [
        ("POST", "/api/tiers", {"nmae": "x"}, "nmae"),
        ("POST", "/api/tiers", {"name": 5}, "name"),
        ("POST", "/api/tiers", {"limits": [{"rule": {"limit": "60"}}]}, "limits[0].rule.limit"),
        ("POST", "/api/tiers", {"request_id": 5}, "request_id"),
        ("POST", "/api/tiers", [], None),
        ("POST", "/api/tiers", None, None),
        ("DELETE", "/api/tiers/team", {"force": True}, "force"),
        ("GET", "/api/tiers?size=5", None, "size"),
        ("GET", "/api/tiers?page_size=ten", None, "page_size"),
        ("GET", "/api/usage?by=colour", None, "by"),
        ("GET", "/api/usage?group_by=key", None, "group_by"),
        ("GET", "/api/usage?days=3", None, "days"),
        ("GET", "/api/admin/usage?days=0", None, "days"),
        ("GET", "/api/admin/usage?days=1e3", None, "days"),
        ("GET", "/api/admin/usage?days=3&start_time=2026-11-01T00:00:00Z", None, "days"),
        ("GET", "/api/limits?principal=x", None, "principal"),
        ("GET", "/api/limits?client_address=10.0.0.1", None, "client_address"),
    ],
)
async def test_what_is_wrong_is_named_and_asked_of_nobody(
    edge: Harness, method: str, path: str, body: Any, param: str | None
) -> None:
    """A wrong body or query is 400 with the field in `param`, and no RPC is made."""
    async with edge.ask(method, path, json=body) as answer:
        assert (await error_of(answer, 400))["param"] == param
    assert edge.accounting.rpcs.calls == []


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (not_found("tier", "team"), 404, "not_found"),
        (NaruError(Reason.ALREADY_EXISTS, "There is one."), 409, "already_exists"),
        (NaruError(Reason.FAILED_PRECONDITION, "A key has it."), 400, "failed_precondition"),
        (invalid_argument("tier.name", "A name is lower-case."), 400, None),
        (unavailable("accounting"), 503, "service_unavailable"),
    ],
)
async def test_refusals_of_accounting_reach_the_client(
    edge: Harness, error: NaruError, status: int, code: str | None
) -> None:
    """What accounting refuses is answered in OpenAI's shape."""
    edge.accounting.rpcs.answers["TierService/GetTier"] = error
    async with edge.get("/api/tiers/team") as answer:
        shown = await error_of(answer, status)
    assert (shown["code"], shown["message"]) == (code, error.message)


async def test_what_accounting_finds_wrong_is_named_as_the_body_has_it(edge: Harness) -> None:
    """`param` is the path in the body, which is the tier itself."""
    error = invalid_argument("tier.limits[1].rule.limit", "A limit is at least 0.")
    edge.accounting.rpcs.answers["TierService/CreateTier"] = error
    async with edge.ask("POST", "/api/tiers", json={}) as answer:
        assert (await error_of(answer, 400))["param"] == "limits[1].rule.limit"


async def test_who_may_not_is_refused_by_the_table(edge: Harness) -> None:
    """A user may read tiers and not change them: the edge lends nobody its rights."""
    headers = other_key(edge, PRINCIPAL)
    async with edge.get("/api/tiers", headers=headers) as answer:
        assert answer.status == 200
    assert edge.accounting.rpcs.calls.pop().caller == Caller(principal=PRINCIPAL)
    for method, path in (("POST", "/api/tiers"), ("GET", "/api/budgets"), ("DELETE", "/api/prices/p1")):
        async with edge.ask(method, path, json={}, headers=headers) as answer:
            assert (await error_of(answer, 403))["code"] == "permission_denied"
    async with edge.http.get(edge.url + "/api/tiers") as answer:
        await error_of(answer, 401)
    assert edge.accounting.rpcs.calls == []


async def test_scopes_name_routes(edge: Harness) -> None:
    """A key for certain endpoints may use these and no others; the RPC behind them is in its scopes by that."""
    scoped = replace(PRINCIPAL, scopes=Scopes(endpoints=("/api/tiers",), models=("m",)))
    headers = other_key(edge, scoped)
    async with edge.get("/api/tiers/team", headers=headers) as answer:
        assert answer.status == 200
    endpoints = ("/api/tiers", "/naru.api.accounting.v1.TierService/GetTier")
    lent = replace(scoped, scopes=Scopes(models=("m",), endpoints=endpoints))
    assert edge.accounting.rpcs.calls[0].caller == Caller(principal=lent)
    async with edge.get("/api/usage", headers=headers) as answer:
        await error_of(answer, 403)
    assert len(edge.accounting.rpcs.calls) == 1


async def test_limits(edge: Harness) -> None:
    """The edge asks where the caller's limits stand, and tells accounting from where they call."""
    state = limit_pb2.LimitState(
        scope=limit_pb2.LIMIT_SCOPE_KEY,
        kind=limit_pb2.LIMIT_KIND_COST,
        window=limit_pb2.LIMIT_WINDOW_DAY,
        limit=5_000_000_000,
        remaining=4_999_999_999,
        reset_delay=duration_to_proto(60),
        model="m",
    )
    edge.accounting.rpcs.answers["QuotaService/GetLimits"] = quota_service_pb2.GetLimitsResponse(
        limits=[state], tier="free"
    )
    async with edge.get("/api/limits?model=m", headers={"X-Forwarded-For": "198.51.100.7"}) as answer:
        assert await answer.json() == {
            "limits": [
                {
                    "scope": "key",
                    "kind": "cost",
                    "window": "day",
                    "limit": 5_000_000_000,
                    "remaining": 4_999_999_999,
                    "reset_delay": "60s",
                    "model": "m",
                    "shadow": False,
                }
            ],
            "tier": "free",
        }
    (call,) = edge.accounting.rpcs.calls
    assert call.caller == Caller(service=ServiceName.EDGE)
    assert principal_from_proto(call.request.principal) == ADMIN
    assert (call.request.client_address, call.request.model) == ("198.51.100.7", "m")


async def test_usage(edge: Harness) -> None:
    """Usage is asked for as the caller, grouped as `by` says."""
    row = usage_service_pb2.UsageRow(
        key_id="abcdefABCDEF",
        day="2026-11-21",
        requests=3,
        usage=usage_pb2.Usage(prompt_tokens=2**40, completion_tokens=5),
        cost=12_345,
        unpriced_requests=1,
    )
    edge.accounting.rpcs.answers["UsageService/QueryUsage"] = usage_service_pb2.QueryUsageResponse(rows=[row])
    path = "/api/usage?by=key,day&model=m&start_time=2026-11-01T00:00:00Z&page_size=5"
    async with edge.get(path) as answer:
        shown = await answer.json()
    assert shown["next_page_token"] == ""
    assert shown["rows"][0]["usage"]["prompt_tokens"] == 2**40
    assert (shown["rows"][0]["cost"], shown["rows"][0]["unpriced_requests"]) == (12_345, 1)
    (call,) = edge.accounting.rpcs.calls
    assert call.caller == Caller(principal=ADMIN)
    assert call.request == usage_service_pb2.QueryUsageRequest(
        group_by=[usage_service_pb2.USAGE_DIMENSION_KEY, usage_service_pb2.USAGE_DIMENSION_DAY],
        model="m",
        start_time=timestamp_to_proto(1_793_491_200),
        page_size=5,
    )


@pytest.mark.parametrize("path", ["/api/admin/usage", "/admin/api/usage"])
async def test_usage_for_admins(edge: Harness, path: str) -> None:
    """`?days=N` begins with the first of so many days in UTC; a plain user's key is refused."""
    async with edge.get(f"{path}?days=2&by=workspace") as answer:
        assert answer.status == 200
        await answer.read()
    (call,) = edge.accounting.rpcs.calls
    assert call.request.start_time.seconds % 86_400 == 0
    # A test that runs at midnight sees either day.
    assert 86_400 <= time.time() - call.request.start_time.seconds < 2 * 86_400 + 60
    async with edge.get(path, headers=other_key(edge, PRINCIPAL)) as answer:
        await error_of(answer, 403)


async def test_what_holds_for_all_routes_holds_here(edge: Harness) -> None:
    """Body limit, methods, and browsers of allowed origins."""
    async with edge.ask("POST", "/api/tiers", json={"name": "x" * 10_000}) as answer:
        assert (await error_of(answer, 413))["code"] == "payload_too_large"
    async with edge.ask("PATCH", "/api/tiers/team") as answer:
        await error_of(answer, 405)
        assert answer.headers["Allow"] == "DELETE,GET,PUT"
    ask = {"Access-Control-Request-Method": "DELETE", "Origin": "https://admin.example.com"}
    async with edge.http.options(edge.url + "/api/tiers/team", headers=ask) as answer:
        assert answer.status == 204
        assert {"PUT", "PATCH", "DELETE"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))


async def test_the_ledger(edge: Harness) -> None:
    """An account, its entries, money put on it, its bound, and the proof of all of it."""
    answers, calls = edge.accounting.rpcs.answers, edge.accounting.rpcs.calls
    balance = ledger_service_pb2.Balance(workspace_id="w1", balance=-5, credited=10, used=15, overdraft=0)
    answers["LedgerService/GetBalance"] = ledger_service_pb2.GetBalanceResponse(balance=balance)
    answers["LedgerService/SetOverdraft"] = ledger_service_pb2.SetOverdraftResponse(balance=balance)
    answers["LedgerService/Credit"] = ledger_service_pb2.CreditResponse(balance=balance)
    finding = ledger_service_pb2.LedgerFinding(check=ledger_service_pb2.LEDGER_CHECK_EVENTS, count=1, amount=-3)
    answers["LedgerService/VerifyLedger"] = ledger_service_pb2.VerifyLedgerResponse(findings=[finding], events=7)
    shown = {"workspace_id": "w1", "balance": -5, "credited": 10, "used": 15, "overdraft": 0}
    async with edge.get("/api/ledger/w1") as answer:
        assert await answer.json() == shown
    async with edge.get("/api/ledger/w1/entries?kind=usage,credit&event_id=e1&page_size=5") as answer:
        assert await answer.json() == {"entries": [], "next_page_token": ""}
    credit = {"kind": "adjustment", "amount": -5, "description": "why"}
    async with edge.ask("POST", "/api/ledger/w1/credits", json=credit, headers={"Idempotency-Key": UUID}) as answer:
        assert (await answer.json())["balance"] == shown
    for body in ({"amount": 5}, {}):
        async with edge.ask("PUT", "/api/ledger/w1/overdraft", json=body) as answer:
            assert await answer.json() == shown
    async with edge.get("/api/ledger:verify") as answer:
        found = await answer.json()
        assert (found["findings"][0]["check"], found["findings"][0]["amount"], found["events"]) == ("events", -3, 7)
    assert [call.request for call in calls] == [
        ledger_service_pb2.GetBalanceRequest(workspace_id="w1"),
        ledger_service_pb2.ListEntriesRequest(
            workspace_id="w1",
            kinds=[ledger_service_pb2.LEDGER_ENTRY_KIND_USAGE, ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT],
            event_id="e1",
            page_size=5,
        ),
        ledger_service_pb2.CreditRequest(
            request_id=UUID,
            workspace_id="w1",
            credit=ledger_service_pb2.LedgerCredit(
                kind=ledger_service_pb2.LEDGER_ENTRY_KIND_ADJUSTMENT, amount=-5, description="why"
            ),
        ),
        ledger_service_pb2.SetOverdraftRequest(workspace_id="w1", overdraft=ledger_service_pb2.Overdraft(amount=5)),
        ledger_service_pb2.SetOverdraftRequest(workspace_id="w1", overdraft=ledger_service_pb2.Overdraft()),
        ledger_service_pb2.VerifyLedgerRequest(),
    ]
