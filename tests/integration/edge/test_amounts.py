"""Amounts that are none, sent to /api/*: refused at the edge by name, whatever a JSON reader could make of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from naru.identity import Role
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers

NO_JSON = ("NaN", "Infinity", "-Infinity", "1e400", "-1e400", "0x10", "1_000", "+1", ".5", "01")
NO_INTEGER = ("5.0", "0.5", "-0.0", "1e3", "1e-400", '"5"', '"NaN"', "true", "[]", "{}")
TOO_LARGE = ("9223372036854775808", "-9223372036854775809", "1" * 400)
PLACES = [
    ("POST", "/api/budgets", '{"scope":"key","scope_id":"k","rule":{"kind":"cost","window":"month","limit":%s}}', "rule.limit"),
    ("PUT", "/api/budgets/b1", '{"rule":{"kind":"cost","window":"month","limit":%s}}', "rule.limit"),
    ("POST", "/api/tiers", '{"name":"t","limits":[{"rule":{"kind":"cost","limit":%s}}]}', "limits[0].rule.limit"),
    ("POST", "/api/prices", '{"model":"m","unit_prices":{"output_million":%s}}', "unit_prices.output_million"),
    ("POST", "/api/prices", '{"model":"m","unit_prices":{"request":%s}}', "unit_prices.request"),
    ("POST", "/api/ledger/w1/credits", '{"amount":%s}', "amount"),
    ("PUT", "/api/ledger/w1/overdraft", '{"amount":%s}', "amount"),
]  # fmt: skip


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        harness.auth.principals[KEY] = replace(PRINCIPAL, role=Role.ADMIN)
        yield harness


async def refused_param(edge: Harness, method: str, path: str, body: str) -> str | None:
    """The field that a body is refused for."""
    headers = {"Content-Type": "application/json"}
    async with edge.ask(method, path, data=body.encode(), headers=headers) as answer:
        assert answer.status == 400, (body, await answer.text())
        error = (await answer.json())["error"]
    assert error["type"] == "invalid_request_error"
    param: str | None = error["param"]
    return param


@pytest.mark.parametrize(("method", "path", "body", "field"), PLACES)
async def test_amounts_that_are_none(edge: Harness, method: str, path: str, body: str, field: str) -> None:
    """What is no JSON is refused whole, what is no whole number of 64 bits by its field; accounting hears of none."""
    for amount in NO_JSON:
        assert await refused_param(edge, method, path, body % amount) is None, amount
    for amount in (*NO_INTEGER, *TOO_LARGE):
        assert await refused_param(edge, method, path, body % amount) == field, amount
    assert edge.accounting.rpcs.calls == []


async def test_no_price_is_in_another_currency(edge: Harness) -> None:
    """An installation has one; naming any, its own included, is an unknown field."""
    for currency in ("USD", "EUR", "nonsense"):
        price = f'{{"model":"m","currency":"{currency}","unit_prices":{{"request":1}}}}'
        assert await refused_param(edge, "POST", "/api/prices", price) == "currency"
        assert await refused_param(edge, "POST", "/api/ledger/w1/credits", f'{{"currency":"{currency}"}}') == "currency"
    assert edge.accounting.rpcs.calls == []


async def test_a_negative_zero_is_zero(edge: Harness) -> None:
    """A whole number like any other."""
    async with edge.ask("PUT", "/api/ledger/w1/overdraft", data=b'{"amount":-0}') as answer:
        assert answer.status == 200
    (call,) = edge.accounting.rpcs.calls
    assert (call.request.overdraft.HasField("amount"), call.request.overdraft.amount) == (True, 0)
