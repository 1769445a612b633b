"""Limits cannot be raced: a thousand requests at once from two edges, over HTTP and through all four services."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from naru import api_key
from naru.api.accounting.v1 import budget_service_pb2, budget_service_pb2_grpc, limit_pb2
from naru.pricing import NANO
from tests.support import accounts
from tests.support.platform import MODEL, Platform, platform

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(300)]

REQUESTS = 1_000
TIERS = """
[tokens]
limits = [{ kind = "total_tokens", window = "minute", limit = 100 }]

[narrow]
limits = [{ kind = "concurrency", limit = 5 }]
"""
TEXTS = (
    "What is the capital of France?",
    "프랑스의 수도는 어디인가요? 한 문장으로 답해 주세요.",
    "def add(a: int, b: int) -> int:\n    return a + b\n",
)


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation with tiers of its own, and two edges."""
    folder: Path = tmp_path_factory.mktemp("naru")
    (folder / "tiers.toml").write_text(TIERS)
    environ = {"NARU_INFERENCE_ENGINE": "simulated", "NARU_ACCOUNTING_TIERS_FILE": str(folder / "tiers.toml")}
    with platform(folder / "state", environ) as running:
        yield running


@pytest.fixture(scope="module")
def urls(naru: Platform) -> Iterator[Sequence[str]]:
    """Both edges."""
    with naru.second_edge() as second:
        yield naru.url, second


async def chat_at_once(urls: Sequence[str], key: str, max_tokens: int) -> list[tuple[int, dict[str, int]]]:
    """Status and usage of a thousand chats in English, Korean and code, all begun together."""

    async def chat(session: aiohttp.ClientSession, url: str, text: str) -> tuple[int, dict[str, int]]:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": max_tokens,
            "ignore_eos": True,
        }
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            return response.status, (await response.json()).get("usage", {})

    connector, headers = aiohttp.TCPConnector(limit=0), {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        asked = itertools.islice(zip(itertools.cycle(urls), itertools.cycle(TEXTS), strict=False), REQUESTS)
        return await asyncio.gather(*[chat(session, url, text) for url, text in asked])


async def test_tokens_per_minute(naru: Platform, urls: Sequence[str]) -> None:
    """100 tokens a minute, prompts included: what was admitted never used more, and everything else was refused."""
    key = naru.new_key(description="tokens", tier="tokens")
    answers = await chat_at_once(urls, key, 4)
    assert {status for status, _ in answers} == {200, 429}
    used = [usage["total_tokens"] for status, usage in answers if status == 200]
    assert 0 < sum(used) <= 100
    row = accounts.used(naru, key)
    assert (row.requests, row.usage.prompt_tokens + row.usage.completion_tokens) == (len(used), sum(used))


async def test_requests_in_flight(naru: Platform, urls: Sequence[str]) -> None:
    """5 at once: the engine never has more of them."""
    key = naru.new_key(description="narrow", tier="narrow")
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(naru.metric("inference", "naru_inference_generations"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        # Long enough to be seen.
        answers = await chat_at_once(urls, key, 200)
    finally:
        done.set()
        watcher.join()
    assert {status for status, _ in answers} == {200, 429}
    assert 1 <= max(seen) <= 5
    assert accounts.used(naru, key).requests == sum(status == 200 for status, _ in answers)


async def test_a_budget(naru: Platform, urls: Sequence[str]) -> None:
    """5.00 a month at 0.25 a request and a price for tokens: what was admitted cost no more, to the nano-unit."""
    key = naru.new_key(description="budget", tier="unlimited")
    rule = limit_pb2.LimitRule(kind=limit_pb2.LIMIT_KIND_COST, window=limit_pb2.LIMIT_WINDOW_MONTH, limit=5 * NANO)
    budget = budget_service_pb2.Budget(scope=limit_pb2.LIMIT_SCOPE_KEY, scope_id=api_key.parse(key).key_id, rule=rule)
    with naru.channel("ACCOUNTING") as channel:
        budget_service_pb2_grpc.BudgetServiceStub(channel).CreateBudget(
            budget_service_pb2.CreateBudgetRequest(budget=budget), metadata=naru.bearer(), timeout=10
        )
    await asyncio.to_thread(accounts.sell, naru)
    answers = await chat_at_once(urls, key, 4)
    assert {status for status, _ in answers} == {200, 429}
    row = accounts.used(naru, key)
    usages = [usage for status, usage in answers if status == 200]
    exact = sum(accounts.cost(1, usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages)
    assert (row.requests, row.cost, row.unpriced_requests) == (len(usages), exact, 0)
    assert 3 * NANO < exact <= 5 * NANO
