"""The commands for limits, budgets, prices and usage, as processes, against an accounting that records what it hears."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from naru import api_key
from naru.api.accounting.v1 import (
    budget_service_pb2,
    limit_pb2,
    price_pb2,
    pricing_service_pb2,
    quota_service_pb2,
    tier_service_pb2,
    usage_service_pb2,
)
from naru.api.common.v1 import principal_pb2, usage_pb2
from naru.cli.rules import parse_limit
from naru.convert import duration_to_proto, timestamp_to_proto
from naru.errors import invalid_api_key, not_found
from naru.identity import Caller, Principal, Role, ServiceName
from tests.support.fake_accounting import FakeAccounting

KEY = api_key.format_key("abcdefABCDEF", "s" * 43)
ADMIN = Principal(workspace_id="ws1", role=Role.ADMIN, key_id="abcdefABCDEF")
OPERATOR_TOKEN = "operator-token-of-at-least-thirty-two-characters"


class _OneKey:
    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        if credential != KEY:
            raise invalid_api_key()
        return ADMIN


@dataclass(frozen=True)
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


class Terminal:
    """Runs commands; `accounting` is who they talk to."""

    def __init__(self, accounting: FakeAccounting, folder: Path) -> None:
        self.accounting = accounting
        self._folder = folder
        (folder / "service-token-operator").write_text(OPERATOR_TOKEN)

    async def naru(self, *arguments: str) -> Said:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OPENAI_"))}
        environ = {
            "NARU_ACCOUNTING_ADDRESS": f"127.0.0.1:{self.accounting.port}",
            "NARU_SERVICE_TOKENS_DIR": str(self._folder),
            "OPENAI_API_KEY": KEY,
            "COLUMNS": "200",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "naru",
            *arguments,
            cwd=self._folder,
            env=clean | environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode is not None
        return Said(process.returncode, out.decode(), err.decode())

    def asked(self) -> list[tuple[str, Any]]:
        """What accounting heard since the last time, by the admin's key."""
        calls, self.accounting.rpcs.calls = self.accounting.rpcs.calls, []
        assert all(call.caller == Caller(principal=ADMIN) for call in calls)
        return [(call.name, call.request) for call in calls]


@pytest.fixture
async def terminal(tmp_path: Path) -> AsyncIterator[Terminal]:
    accounting = FakeAccounting()
    await accounting.start({ServiceName.OPERATOR: OPERATOR_TOKEN}, _OneKey())
    yield Terminal(accounting, tmp_path)
    await accounting.kill()


async def test_tiers(terminal: Terminal) -> None:
    """A tier that is not there is made, a new one replaces the old, and is shown as it can be set again."""
    answers = terminal.accounting.rpcs.answers
    limits = [parse_limit("requests/minute=60"), parse_limit("workspace:cost/month=50.00,warn=80")]
    tier = tier_service_pb2.Tier(name="team", limits=limits, default_output_tokens=100)
    answers["TierService/UpdateTier"] = not_found("tier", "team")
    answers["TierService/CreateTier"] = tier_service_pb2.CreateTierResponse(tier=tier)
    options = ("--limit", "requests/minute=60", "--limit", "workspace:cost/month=50.00,warn=80")
    done = await terminal.naru("tiers", "set", "team", *options, "--default-output-tokens", "100")
    assert (done.code, done.out) == (0, "Tier team has 2 limits now.\n")
    (_, update), (name, create) = terminal.asked()
    assert name == "TierService/CreateTier"
    assert update.tier == create.tier == tier
    assert len(create.request_id) == 36
    answers["TierService/GetTier"] = tier_service_pb2.GetTierResponse(tier=tier)
    done = await terminal.naru("tiers", "show", "team")
    assert done.out == (
        "--limit requests/minute=60\n--limit workspace:cost/month=50,warn=80\n--default-output-tokens 100\n"
    )
    answers["TierService/ListTiers"] = tier_service_pb2.ListTiersResponse(tiers=[tier])
    assert "workspace:cost/month=50,warn=80" in (await terminal.naru("tiers", "list")).out
    done = await terminal.naru("tiers", "set", "team", "--limit", "requests=60")
    assert done.code == 2
    assert "needs a window" in done.err
    assert [name for name, _ in terminal.asked()] == ["TierService/GetTier", "TierService/ListTiers"]
    assert (await terminal.naru("tiers", "delete", "team")).code == 0
    assert terminal.asked()[0][1].name == "team"


async def test_budgets(terminal: Terminal) -> None:
    """A budget is for one subject and of one kind; its id alone is printed."""
    answers = terminal.accounting.rpcs.answers
    rule = limit_pb2.LimitRule(
        kind=limit_pb2.LIMIT_KIND_COST,
        window=limit_pb2.LIMIT_WINDOW_MONTH,
        limit=5_000_000_000,
        model="m",
        shadow=True,
        soft_thresholds=[80],
    )
    budget = budget_service_pb2.Budget(scope=limit_pb2.LIMIT_SCOPE_USER, scope_id="u1", rule=rule)
    made = budget_service_pb2.Budget(budget_id="b1")
    made.MergeFrom(budget)
    answers["BudgetService/CreateBudget"] = budget_service_pb2.CreateBudgetResponse(budget=made)
    answers["BudgetService/ListBudgets"] = budget_service_pb2.ListBudgetsResponse(budgets=[made])
    options = ("--cost", "5.00", "--per", "month", "--model", "m", "--shadow", "--warn-at", "80")
    done = await terminal.naru("budgets", "create", "--user", "u1", *options)
    assert (done.code, done.out) == (0, "b1\n")
    assert terminal.asked()[0][1].budget == budget
    done = await terminal.naru("budgets", "list", "--scope", "user")
    assert "cost/month@m=5,shadow,warn=80" in done.out
    assert terminal.asked()[0][1].scope == limit_pb2.LIMIT_SCOPE_USER
    assert (await terminal.naru("budgets", "create", "--tier", "free", "--concurrency", "0")).code == 0
    assert terminal.asked()[0][1].budget.rule == limit_pb2.LimitRule(kind=limit_pb2.LIMIT_KIND_CONCURRENCY)
    assert (await terminal.naru("budgets", "delete", "b1")).code == 0
    assert terminal.asked()[0][1].budget_id == "b1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--cost", "5", "--per", "month"), "exactly one of --key"),
        (("--key", "k", "--user", "u", "--cost", "5", "--per", "month"), "exactly one of --key"),
        (("--key", "k", "--per", "month"), "exactly one of --cost"),
        (("--key", "k", "--cost", "0.0000000001", "--per", "month"), "too fine"),
        (("--key", "k", "--requests", "5"), "needs a window"),
    ],
)
async def test_wrong_budgets_are_asked_of_nobody(terminal: Terminal, options: tuple[str, ...], said: str) -> None:
    """What the command line cannot mean is said before any call."""
    done = await terminal.naru("budgets", "create", *options)
    assert done.code == 2
    assert said in " ".join(done.err.replace("│", " ").split())
    assert terminal.asked() == []


async def test_prices(terminal: Terminal) -> None:
    """Prices are decimals per million tokens; cached tokens cost what others do unless said otherwise."""
    answers = terminal.accounting.rpcs.answers
    price = price_pb2.Price(
        price_id="p1",
        model="m",
        unit_prices=price_pb2.UnitPrices(
            input_million=150_000_000, cached_input_million=150_000_000, output_million=600_000_000, request=1
        ),
        effective_time=timestamp_to_proto(1_796_083_200),
    )
    answers["PricingService/CreatePrice"] = pricing_service_pb2.CreatePriceResponse(price=price)
    answers["PricingService/ListPrices"] = pricing_service_pb2.ListPricesResponse(prices=[price])
    options = ("--request", "0.000000001", "--workspace", "w", "--from", "2026-12-01T00:00")
    done = await terminal.naru("prices", "set", "m", "--input", "0.15", "--output", "0.60", *options)
    assert (done.code, done.out) == (0, "p1\n")
    asked = terminal.asked()[0][1].price
    assert (asked.unit_prices, asked.effective_time) == (price.unit_prices, price.effective_time)
    assert (asked.model, asked.workspace_id) == ("m", "w")
    done = await terminal.naru("prices", "set", "m", "--input", "1", "--cached-input", "0", "--output", "2")
    assert done.code == 0
    asked = terminal.asked()[0][1].price
    assert (asked.unit_prices.cached_input_million, asked.HasField("effective_time")) == (0, False)
    assert "0.000000001" in (await terminal.naru("prices", "list")).out
    done = await terminal.naru("prices", "set", "m", "--input", "1e3", "--output", "2")
    assert done.code == 2
    assert "--input" in done.err
    assert (await terminal.naru("prices", "delete", "p1")).code == 0
    assert [request.price_id for name, request in terminal.asked() if name.endswith("DeletePrice")] == ["p1"]


async def test_limits(terminal: Terminal) -> None:
    """One's own limits by the key, those of others by the operator's token; money is in units."""
    state = limit_pb2.LimitState(
        scope=limit_pb2.LIMIT_SCOPE_KEY,
        kind=limit_pb2.LIMIT_KIND_COST,
        window=limit_pb2.LIMIT_WINDOW_DAY,
        limit=5_000_000_000,
        remaining=1_500_000_000,
        reset_delay=duration_to_proto(3_600.2),
        shadow=True,
    )
    response = quota_service_pb2.GetLimitsResponse(limits=[state], tier="team")
    terminal.accounting.rpcs.answers["QuotaService/GetLimits"] = response
    done = await terminal.naru("limits", "--model", "m")
    assert done.code == 0
    assert all(text in done.out for text in ("tier team", "cost", "day", " 5 ", " 1.5 ", "1:00:01", "shadow"))
    ((_, request),) = terminal.asked()
    assert request == quota_service_pb2.GetLimitsRequest(model="m")
    done = await terminal.naru("limits", "--key", "k1", "--workspace", "w1", "--tier", "team")
    assert done.code == 0
    (call,) = terminal.accounting.rpcs.calls
    assert call.caller == Caller(service=ServiceName.OPERATOR)
    assert call.request.principal == principal_pb2.Principal(key_id="k1", workspace_id="w1", tier="team")


async def test_usage_tells_the_cost(terminal: Terminal) -> None:
    """Every page is read; the cost is in units, and what had no price is counted."""

    def row(model: str, cost: int) -> usage_service_pb2.UsageRow:
        usage = usage_pb2.Usage(prompt_tokens=1_000, completion_tokens=1)
        return usage_service_pb2.UsageRow(model=model, requests=3, usage=usage, cost=cost, unpriced_requests=2)

    terminal.accounting.rpcs.answers["UsageService/QueryUsage"] = usage_service_pb2.QueryUsageResponse(
        rows=[row("m", 12_345)]
    )
    done = await terminal.naru("usage", "--by", "model")
    assert done.code == 0
    cells = [cell.strip() for cell in done.out.splitlines()[-2].replace("│", "|").strip("|").split("|")]
    assert cells == ["m", "3", "1,000", "0", "1", "1,001", "0.000012345", "2"]
