"""Uses are gathered and handed on together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from naru.errors import unavailable
from naru.key_uses import KeyUses
from naru.testing.clock import FakeClock


async def test_uses_are_handed_on_together() -> None:
    """However often keys are used, each is handed on once, with its last time; nothing new: nothing is sent."""
    clock, sent = FakeClock(), []

    async def send(uses: Mapping[str, float]) -> None:
        sent.append(dict(uses))

    uses = KeyUses(send, clock)
    first = clock.time()
    for _ in range(3):
        uses.note("a")
        uses.note("b")
        clock.advance(1)
    uses.note("")
    uses.add({"a": first, "c": first})
    await uses.flush()
    await uses.flush()
    assert sent == [{"a": first + 2, "b": first + 2, "c": first}]


async def test_what_was_being_sent_when_a_service_stops_is_sent_at_its_end() -> None:
    """Whoever hands them on is cancelled then, and somebody flushes."""
    clock, sent, going = FakeClock(), [], asyncio.Event()

    async def send(uses: Mapping[str, float]) -> None:
        await going.wait()
        sent.append(dict(uses))

    uses = KeyUses(send, clock)
    uses.note("a")
    flushing = asyncio.create_task(uses.flush())
    await asyncio.sleep(0)
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    going.set()
    await uses.flush()
    assert sent == [{"a": clock.time()}]


async def test_what_cannot_be_sent_is_kept() -> None:
    """An outage loses no use, and a newer one stays newer."""
    clock, sent, away = FakeClock(), [], [True]

    async def send(uses: Mapping[str, float]) -> None:
        if away:
            away.pop()
            uses_noted_meanwhile.note("a")
            raise unavailable("authsvc")
        sent.append(dict(uses))

    uses_noted_meanwhile = uses = KeyUses(send, clock)
    uses.note("a")
    uses.note("b")
    first = clock.time()
    clock.advance(5)
    await uses.flush()
    await uses.flush()
    assert sent == [{"a": first + 5, "b": first}]
