"""Whether an installation has come to rest after its load: nothing reserved, nothing on its way, and money that agrees."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc
import redis
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from accounting.tables import settlement_outbox, usage_events
from bench.chaos_books import Billed, Books
from bench.installation import INPUT_PRICE, OUTPUT_PRICE, Installation, balance, credit_left, verify_ledger
from naru.api.accounting.v1 import ledger_service_pb2
from tests.support.platform import Platform

# For whoever was killed last to be started again, and the journal to be shipped.
_DRAIN_SECONDS = 45.0
# The letters of `quota_reservations.lua`.
_OPEN_STATES = ("o", "e", "x")


async def wait_for_rest(running: Installation, lease_seconds: float) -> list[str]:
    """Waits for one lease and a drained journal; returns what was not at rest by then."""
    deadline = time.monotonic() + lease_seconds + _DRAIN_SECONDS
    engine = create_async_engine(running.database_url)
    try:
        while (unrest := await _unrest(running.naru, engine)) and time.monotonic() < deadline:  # noqa: ASYNC110 -- others rest
            await asyncio.sleep(0.5)
    finally:
        await engine.dispose()
    return unrest


async def _unrest(naru: Platform, engine: AsyncEngine) -> list[str]:
    unsettled = sa.select(sa.func.count()).where(usage_events.c.settled_time.is_(None))
    outbox = sa.select(sa.func.count()).select_from(settlement_outbox)
    try:
        async with engine.connect() as connection:
            counts = {
                "unsettled events": (await connection.execute(unsettled)).scalar_one(),
                "events in the outbox": (await connection.execute(outbox)).scalar_one(),
            }
        counts |= await asyncio.to_thread(_held, naru)
    except (OSError, grpc.RpcError, redis.RedisError, sa.exc.DBAPIError) as error:
        return [f"cannot ask: {error!r}"]
    return [f"{number} {what}" for what, number in counts.items() if number]


def _held(naru: Platform) -> dict[str, int]:
    with naru.redis() as client:
        places = list(client.scan_iter("{naru-3}:c:*", count=1_000))
        reservations = list(client.scan_iter("{naru-3}:r:*", count=1_000))
        with client.pipeline(transaction=False) as pipeline:
            for key in reservations:
                pipeline.getrange(key, 0, 0)
            states = pipeline.execute()
        return {
            "leases": naru.leases(),
            "places in flight": sum(client.scard(key) for key in places),
            "open reservations": sum(state in _OPEN_STATES for state in states),
            "events in the journal": int(naru.metric("inference", "naru_inference_journal_backlog")),
            "nano-units reserved": balance(naru).balance - credit_left(naru),
        }


def money_wrong(naru: Platform, key_id: str, books: Books) -> tuple[list[str], ledger_service_pb2.VerifyLedgerResponse]:
    """What the ledger and the questions about usage say otherwise than the books, and what the ledger says of itself."""
    billed = [one for rows in books.values() for one in rows]
    verified = verify_ledger(naru)
    _, prompt_tokens, completion_tokens = naru.usage(key_id)
    told = {
        "cost in the ledger": (balance(naru).used, _cost(billed)),
        "prompt tokens of the key": (prompt_tokens, sum(one.prompt_tokens for one in billed)),
        "completion tokens of the key": (completion_tokens, sum(one.completion_tokens for one in billed)),
        "events verified": (verified.events, len(billed)),
        # The credit has one too.
        "entries verified": (max(verified.entries - 1, 0) >= sum(_cost([one]) > 0 for one in billed), True),
    }
    found = [f"{what}: {one}, by the books {other}" for what, (one, other) in told.items() if one != other]
    for finding in verified.findings:
        name = ledger_service_pb2.LedgerCheck.Name(finding.check)
        found.append(f"VerifyLedger: {name} {finding.count} times, such as {finding.example}")
    return found, verified


def _cost(billed: Sequence[Billed]) -> int:
    return sum(INPUT_PRICE * one.prompt_tokens + OUTPUT_PRICE * one.completion_tokens for one in billed)
