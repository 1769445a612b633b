"""Amounts that are none, on the command line: said before any call."""

from __future__ import annotations

import asyncio

import pytest

from tests.integration.naru import test_cli
from tests.integration.naru.test_cli import Terminal

# pytest finds fixtures by name in this module.
terminal = test_cli.terminal

# All that is no amount is in the tests of `naru.money`; each of these takes a process.
NO_AMOUNTS = ("nan", "1e400", "-5")
COMMANDS = (
    ("ledger", "credit", "w1", "--", "{}"),
    ("ledger", "overdraft", "w1", "--", "{}"),
    ("budgets", "create", "--key", "k", "--per", "month", "--cost={}"),
    ("prices", "set", "m", "--input={}", "--output=1"),
    ("tiers", "set", "t", "--limit", "cost/month={}"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_amounts_that_are_none(terminal: Terminal, command: tuple[str, ...]) -> None:
    """The command fails as wrongly written, quotes the amount, and asks nobody."""
    ended = await asyncio.gather(*(terminal.naru(*(part.format(amount) for part in command)) for amount in NO_AMOUNTS))
    for amount, done in zip(NO_AMOUNTS, ended, strict=True):
        said = " ".join(done.err.replace("│", " ").split())
        assert done.code == 2, (amount, said)
        assert amount in said, said
        assert "Traceback" not in said
    assert terminal.asked() == []
