"""The commands for limits, budgets, prices and usage, as processes, against an accounting that records what it hears."""

from __future__ import annotations

import asyncio
import csv
import io
import json
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
    ledger_service_pb2,
    limit_pb2,
    price_pb2,
    pricing_service_pb2,
    quota_service_pb2,
    tier_service_pb2,
    usage_event_pb2,
    usage_service_pb2,
)
from naru.api.common.v1 import error_reason_pb2, principal_pb2, usage_pb2
from naru.cli.rules import parse_limit
from naru.convert import duration_to_proto, timestamp_to_proto
from naru.errors import invalid_api_key, not_found, unavailable
from naru.identity import Caller, Principal, Role, ServiceName
from tests.support.fake_accounting import FakeAccounting

pytestmark = pytest.mark.behaviour
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


async def test_the_ledger(terminal: Terminal) -> None:
    """Balances and entries are shown in units of the currency; money is put on and taken off; a bound is set and lifted."""
    answers = terminal.accounting.rpcs.answers
    balance = ledger_service_pb2.Balance(workspace_id="w1", balance=-500_000_000, credited=0, used=500_000_000)
    entry = ledger_service_pb2.LedgerEntry(
        entry_id="entry-1",
        kind=ledger_service_pb2.LEDGER_ENTRY_KIND_USAGE,
        amount=-500_000_000,
        booked_time=timestamp_to_proto(1_800_000_000),
    )
    answers["LedgerService/GetBalance"] = ledger_service_pb2.GetBalanceResponse(balance=balance)
    answers["LedgerService/ListEntries"] = ledger_service_pb2.ListEntriesResponse(entries=[entry])
    answers["LedgerService/Credit"] = ledger_service_pb2.CreditResponse(entry=entry, balance=balance)
    answers["LedgerService/SetOverdraft"] = ledger_service_pb2.SetOverdraftResponse(balance=balance)
    done = await terminal.naru("ledger", "balance", "w1")
    assert "-0.5" in done.out
    assert "billed in arrears" in done.out
    done = await terminal.naru("ledger", "entries", "w1", "--kind", "usage", "--since", "2026-11-01")
    assert "2027-01-15 08:00:00" in done.out
    assert "entry-1" in done.out
    _, (_, listed) = terminal.asked()
    assert (listed.workspace_id, list(listed.kinds)) == ("w1", [ledger_service_pb2.LEDGER_ENTRY_KIND_USAGE])
    assert listed.start_time.ToJsonString() == "2026-11-01T00:00:00Z"
    done = await terminal.naru("ledger", "credit", "w1", "20.00", "--description", "invoice 7")
    assert (done.code, done.out, done.err) == (0, "entry-1\n", "The balance of w1 is -0.5.\n")
    await terminal.naru("ledger", "credit", "w1", "0.5", "--kind", "adjustment", "--debit")
    await terminal.naru("ledger", "overdraft", "w1", "3")
    await terminal.naru("ledger", "overdraft", "w1", "none")
    (_, credit), (_, debit), (_, bound), (_, lifted) = terminal.asked()
    assert credit.credit == ledger_service_pb2.LedgerCredit(
        kind=ledger_service_pb2.LEDGER_ENTRY_KIND_CREDIT, amount=20_000_000_000, description="invoice 7"
    )
    assert (debit.credit.kind, debit.credit.amount) == (ledger_service_pb2.LEDGER_ENTRY_KIND_ADJUSTMENT, -500_000_000)
    assert (bound.overdraft.amount, lifted.overdraft.HasField("amount")) == (3_000_000_000, False)
    done = await terminal.naru("ledger", "credit", "w1", "5", "--debit")
    assert (done.code, terminal.asked()) == (2, [])


async def test_verifying_the_ledger(terminal: Terminal) -> None:
    """Books that hold are said to; findings are shown, and the command fails."""
    answers = terminal.accounting.rpcs.answers
    answers["LedgerService/VerifyLedger"] = ledger_service_pb2.VerifyLedgerResponse(
        events=1_234, entries=5, exact_runs=2, bounded_runs=1, uncounted_requests=3
    )
    done = await terminal.naru("ledger", "verify")
    assert done.code == 0
    assert "The books hold: 1,234 events and 5 entries." in done.out
    assert "exactly what was recorded in 2 of their runs" in done.out
    assert "of 3 requests there is the record alone" in done.out
    finding = ledger_service_pb2.LedgerFinding(
        check=ledger_service_pb2.LEDGER_CHECK_EVENTS, workspace_id="w1", count=3, amount=-7, example="event-9"
    )
    answers["LedgerService/VerifyLedger"] = ledger_service_pb2.VerifyLedgerResponse(findings=[finding])
    done = await terminal.naru("ledger", "verify")
    assert done.code == 1
    assert all(part in done.out for part in ("events", "w1", "-0.000000007", "event-9"))


def exported(number: int) -> usage_event_pb2.UsageRecord:
    return usage_event_pb2.UsageRecord(
        event_id=f"event-{number}", reserve_time=timestamp_to_proto(1_800_000_000), cost=42, requested_model="한국어"
    )


async def test_usage_is_exported(terminal: Terminal, tmp_path: Path) -> None:
    """To a file that is there once it is whole, with the progress on standard error; or to standard output."""
    terminal.accounting.rpcs.answers["UsageService/ExportUsage"] = usage_service_pb2.ExportUsageResponse(
        total_records=3
    )
    terminal.accounting.export = [
        usage_service_pb2.ExportUsageResponse(records=[exported(0), exported(1)]),
        usage_service_pb2.ExportUsageResponse(records=[exported(2)]),
    ]
    file = tmp_path / "usage.csv"
    done = await terminal.naru("usage", "export", "--output", str(file), "--user", "u", "--since", "2026-11-01")
    assert (done.code, done.out) == (0, ""), done.err
    assert "3/3" in done.err
    assert "3 events exported" in done.err
    rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))
    assert [row["event_id"] for row in rows] == ["event-0", "event-1", "event-2"]
    (call,) = terminal.accounting.rpcs.calls
    assert (call.request.user_id, call.request.start_time.seconds) == ("u", 1_793_491_200)
    done = await terminal.naru("usage", "export", "--output", "-", "--format", "jsonl")
    assert [json.loads(line)["requested_model"] for line in done.out.splitlines()] == ["한국어"] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("usage", "--key", "k1", "export", "--output", "-"),
        ("usage", "--by", "model", "export", "--output", "-"),
        ("audit", "--actor", "key:k1", "export", "--output", "-"),
    ],
)
async def test_options_before_a_subcommand_are_refused(terminal: Terminal, arguments: tuple[str, ...]) -> None:
    """They would be those of the table, and the export would be of everything."""
    done = await terminal.naru(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "give options after `export`" in " ".join(done.err.replace("│", " ").split())
    assert terminal.asked() == []


async def test_an_export_that_breaks_leaves_no_file(terminal: Terminal, tmp_path: Path) -> None:
    """Neither half of one nor the one that was there before is lost."""
    terminal.accounting.export = [usage_service_pb2.ExportUsageResponse(records=[exported(0)]), unavailable("database")]
    file = tmp_path / "usage.jsonl"
    file.write_text("before")
    done = await terminal.naru("usage", "export", "--output", str(file), "--format", "jsonl")
    assert done.code == 1
    assert "not available" in done.err
    assert file.read_text() == "before"
    assert [name for name in os.listdir(tmp_path) if name.endswith(".part")] == []
    done = await terminal.naru("usage", "export", "--output", str(tmp_path / "missing" / "usage.csv"))
    assert done.code == 1
    assert "No such file" in done.err


async def test_requests_are_listed(terminal: Terminal) -> None:
    """A table, the newest first; as many as were asked for, over pages."""
    used = usage_event_pb2.LoggedRequest(
        request_id="req_1",
        start_time=timestamp_to_proto(1_800_000_000),
        key_id="abcdefABCDEF",
        endpoint="/v1/chat/completions",
        requested_model="gpt-4o-mini",
        served_model="smollm2",
        status=200,
        duration_us=1_234_567,
        first_byte_us=45_000,
        usage=usage_pb2.Usage(prompt_tokens=1_000, completion_tokens=20),
        cost=150_000,
        outcome=usage_event_pb2.OUTCOME_COMPLETED,
        finish_reason="tool_calls",
    )
    refused = usage_event_pb2.LoggedRequest(
        request_id="req_2", status=429, reason=error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED
    )
    terminal.accounting.rpcs.answers["UsageService/ListRequests"] = usage_service_pb2.ListRequestsResponse(
        requests=[used, refused], next_page_token="more"
    )
    done = await terminal.naru("requests", "--limit", "3", "--status", "4xx", "--model", "m", "--trace-id", "t")
    assert done.code == 0, done.err
    for shown in (
        "2027-01-15 08:00:00",
        "smollm2",
        "1,235",
        "45",
        "1,000",
        "0.00015",
        "tool_calls",
        "rate_limit_exceeded",
    ):
        assert shown in done.out
    assert done.out.count("req_1") == 2
    assert done.out.count("req_2") == 1
    first, second = (call.request for call in terminal.accounting.rpcs.calls)
    assert (first.status_class, first.status, first.model, first.trace_id, first.page_size) == (4, 0, "m", "t", 3)
    assert second.page_token == "more"
    done = await terminal.naru("requests", "--status", "6xx")
    assert (done.code, len(terminal.accounting.rpcs.calls)) == (2, 2)
