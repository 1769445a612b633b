"""What is billed is what the engine itself counted, whatever is asked for; and the running survive a loss of Redis.

The simulated engine, since no text matters here; short leases and a short recovery.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from naru.api.accounting.v1 import (
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    limit_pb2,
    quota_service_pb2,
    quota_service_pb2_grpc,
)
from tests.support import accounts
from tests.support.platform import MODEL, Platform, platform, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

TOKENS_PER_SECOND = 20
TIERS = """
[five]
limits = [{ kind = "concurrency", limit = 5 }, { kind = "total_tokens", window = "day", limit = 100000 }]
"""


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation with a tier of its own, and a price."""
    folder: Path = tmp_path_factory.mktemp("naru")
    (folder / "tiers.toml").write_text(TIERS)
    environ = {
        "NARU_INFERENCE_ENGINE": "simulated",
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND),
        "NARU_ACCOUNTING_TIERS_FILE": str(folder / "tiers.toml"),
        "NARU_LEASE_SECONDS": "9",
        "NARU_ACCOUNTING_RECOVERY_SECONDS": "12",
    }
    with platform(folder / "state", environ) as running:
        accounts.sell(running)
        yield running


def counted(naru: Platform) -> dict[str, int]:
    """What the engine has counted."""
    names = ("requests", "prompt_tokens", "completion_tokens")
    return {
        name: round(naru.metric("inference", f'naru_inference_engine_counted{{figure="{name}"}}')) for name in names
    }


def verified(naru: Platform) -> ledger_service_pb2.VerifyLedgerResponse:
    """What the verifier says."""
    with naru.channel("ACCOUNTING") as channel:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(channel)
        return stub.VerifyLedger(ledger_service_pb2.VerifyLedgerRequest(), metadata=naru.bearer(), timeout=60)


async def ask(naru: Platform, key: str, path: str, body: Mapping[str, Any], *, lines: int | None = None) -> int:
    """Status of a request that is read to its end, or left after so many lines."""
    session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})
    async with session, session.post(f"{naru.url}/v1/{path}", json={"model": MODEL, **body}) as response:
        if lines is None:
            await response.read()
        for _ in range(lines or 0):
            await response.content.readline()
        return response.status


CHAT = {"messages": [{"role": "user", "content": "Tell me about ferries."}], "max_tokens": 20, "ignore_eos": True}
ASKED: list[tuple[str, dict[str, Any], int | None]] = [
    ("chat/completions", CHAT, None),
    ("chat/completions", {**CHAT, "stream": True}, None),
    ("chat/completions", {**CHAT, "stream": True, "stream_options": {"include_usage": True}}, None),
    ("chat/completions", {**CHAT, "n": 3}, None),
    ("chat/completions", {**CHAT, "n": 3, "stream": True}, None),
    ("completions", {"prompt": ["one two", "three four five", "six"], "max_tokens": 7}, None),
    ("completions", {"prompt": ["one two", "three four five"], "n": 3, "max_tokens": 9, "stream": True}, None),
    ("chat/completions", {**CHAT, "max_tokens": 500, "stream": True}, 4),
    ("chat/completions", {**CHAT, "max_tokens": 500, "n": 3, "stream": True}, 4),
]


async def test_the_ledger_is_what_the_engine_counted(naru: Platform) -> None:
    """Streamed or not, with usage or without, n = 3, several prompts, cancelled: to the token, and to the nano-unit."""
    key = naru.new_key(description="all kinds", tier="unlimited")
    before = counted(naru)
    statuses = await asyncio.gather(*[ask(naru, key, path, body, lines=lines) for path, body, lines in ASKED])
    assert set(statuses) == {200}
    row = await asyncio.to_thread(accounts.used, naru, key)
    after = counted(naru)
    assert {name: after[name] - before[name] for name in after} == {
        "requests": len(ASKED),
        "prompt_tokens": row.usage.prompt_tokens,
        "completion_tokens": row.usage.completion_tokens,
    }
    assert row.usage.completion_tokens > 3 * 20 + 6 * 20 + 3 * 7 + 6 * 9
    assert row.cost == accounts.cost(len(ASKED), row.usage.prompt_tokens, row.usage.completion_tokens)
    found = await asyncio.to_thread(verified, naru)
    assert (list(found.findings), found.exact_runs, found.bounded_runs) == ([], 1, 0)


async def test_a_thousand_cancelled_at_any_moment_leave_nothing(naru: Platform) -> None:
    """What was generated is billed to the token, and no request, stream or reservation is left anywhere."""
    key = naru.new_key(description="leaves", tier="unlimited")
    before = counted(naru)
    chance = random.Random(7)
    headers, answered = {"Authorization": f"Bearer {key}"}, 0
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def leave(after: float, body: Mapping[str, Any]) -> None:
            nonlocal answered
            with contextlib.suppress(TimeoutError):
                async with (
                    asyncio.timeout(after),
                    session.post(f"{naru.url}/v1/chat/completions", json={"model": MODEL, **body}) as response,
                ):
                    assert response.status == 200
                    await response.read()
                    answered += 1

        for _ in range(10):
            bodies = [{**CHAT, "stream": chance.random() < 0.5, "n": chance.choice([1, 1, 1, 3])} for _ in range(100)]
            await asyncio.gather(*(leave(chance.uniform(0, 1.2), body) for body in bodies))

    def idle() -> bool:
        inference = ("naru_inference_generations", "naru_inference_waiting", "naru_inference_journal_backlog")
        left = [naru.metric("inference", name) for name in inference]
        return [naru.leases(), naru.metric("edge", "naru_edge_requests_in_flight"), *left] == [0, 0, 0, 0, 0]

    await asyncio.to_thread(until, idle, 30, "everything to come to its end")
    row = await asyncio.to_thread(accounts.used, naru, key)
    after = counted(naru)
    assert answered < 1_000
    assert row.usage.completion_tokens == after["completion_tokens"] - before["completion_tokens"] > 0
    assert row.usage.prompt_tokens == after["prompt_tokens"] - before["prompt_tokens"]
    found = await asyncio.to_thread(verified, naru)
    assert list(found.findings) == []


def lose_redis(naru: Platform) -> None:
    """Kills Redis, and all that it kept."""
    (process_id,) = naru.redis_ids()
    with naru.redis() as client:
        folder = Path(client.config_get("dir")["dir"])
    # An open file is written to the end, and gone with the process.
    for kept in folder.iterdir():
        shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    os.kill(process_id, signal.SIGKILL)
    until(lambda: naru.redis_ids() not in ([], [process_id]), 30, "Redis to be started again")


def left(naru: Platform, key: str) -> dict[int, int]:
    """What is left of each limit of a key, by kind."""
    with naru.channel("ACCOUNTING") as channel:
        stub = quota_service_pb2_grpc.QuotaServiceStub(channel)
        answer = stub.GetLimits(quota_service_pb2.GetLimitsRequest(), metadata=naru.bearer(key), timeout=10)
        return {state.kind: state.remaining for state in answer.limits}


async def test_what_runs_holds_again_what_it_held_when_redis_lost_it(naru: Platform) -> None:
    """Five of five places are taken after the recovery, tokens count, and in the end all is as if nothing had been."""
    key = naru.new_key(description="five", tier="five")
    long = {**CHAT, "max_tokens": 40 * TOKENS_PER_SECOND, "stream": True}
    first = await ask(naru, key, "chat/completions", CHAT)
    assert first == 200
    streams = [asyncio.create_task(ask(naru, key, "chat/completions", long)) for _ in range(5)]
    await asyncio.to_thread(until, lambda: naru.leases() == 5, 20, "the streams to be admitted")
    await asyncio.to_thread(lose_redis, naru)
    statuses = []
    while not statuses or statuses[-1] == 503:
        statuses.append(await ask(naru, key, "chat/completions", CHAT))
        await asyncio.sleep(0.1)
    assert statuses[0] == 503
    assert statuses[-1] == 429
    assert not any(stream.done() for stream in streams)
    held = left(naru, key)
    assert held[limit_pb2.LIMIT_KIND_CONCURRENCY] == 0
    assert held[limit_pb2.LIMIT_KIND_TOTAL_TOKENS] < 100_000 - 5 * long["max_tokens"]
    assert set(await asyncio.gather(*streams)) == {200}
    row = await asyncio.to_thread(accounts.used, naru, key)
    assert (row.requests, row.usage.completion_tokens) == (6, 20 + 5 * long["max_tokens"])
    assert left(naru, key) == {
        limit_pb2.LIMIT_KIND_CONCURRENCY: 5,
        limit_pb2.LIMIT_KIND_TOTAL_TOKENS: 100_000 - row.usage.prompt_tokens - row.usage.completion_tokens,
    }
    found = await asyncio.to_thread(verified, naru)
    assert (list(found.findings), found.exact_runs, found.bounded_runs) == ([], 1, 0)
