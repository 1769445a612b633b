"""What limits promise, over HTTP and through all four services; the simulated engine, since no text matters here."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from naru import api_key
from tests.support.platform import MODEL, Platform, platform, until

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(300)]

TIERS = """
[burst]
limits = [{ kind = "requests", window = "minute", limit = 25 }]

[many]
limits = [{ kind = "requests", window = "minute", limit = 1000 }, { kind = "concurrency", limit = 1000 }]

[narrow]
limits = [{ kind = "concurrency", limit = 5 }]
"""


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation with tiers of its own."""
    folder: Path = tmp_path_factory.mktemp("naru")
    (folder / "tiers.toml").write_text(TIERS)
    environ = {"NARU_INFERENCE_ENGINE": "simulated", "NARU_ACCOUNTING_TIERS_FILE": str(folder / "tiers.toml")}
    with platform(folder / "state", environ) as running:
        yield running


async def chat_at_once(naru: Platform, key: str, count: int, max_tokens: int) -> list[tuple[int, dict[str, object]]]:
    """Status and body of that many chats, all begun together."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Go."}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
    }

    async def chat(session: aiohttp.ClientSession) -> tuple[int, dict[str, object]]:
        async with session.post(f"{naru.url}/v1/chat/completions", json=body) as response:
            return response.status, await response.json()

    connector, headers = aiohttp.TCPConnector(limit=0), {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        return await asyncio.gather(*[chat(session) for _ in range(count)])


async def test_a_burst_gets_exactly_its_limit(naru: Platform) -> None:
    """500 requests at once on 25 a minute: 25 answers, 475 refusals, and usage of the 25."""
    key = naru.new_key(description="burst", tier="burst")
    answers = await chat_at_once(naru, key, 500, 3)
    admitted = [body["usage"] for status, body in answers if status == 200]
    assert len(admitted) == 25
    assert sum(status == 429 for status, _ in answers) == 475
    key_id = api_key.parse(key).key_id
    until(lambda: naru.usage(key_id)[0] == 25, 10, "all answers to be settled")
    completion_tokens = sum(usage["completion_tokens"] for usage in admitted)  # type: ignore[index] # JSON
    assert naru.usage(key_id)[2] == completion_tokens


async def test_what_is_reserved_in_advance_counts_as_requests_do(naru: Platform) -> None:
    """A key that asks all the time gets its 1,000 a minute and not one more, although most of it was taken beforehand."""
    key = naru.new_key(description="many", tier="many")
    statuses: list[int] = []
    while len(statuses) < 1_100:
        statuses += [status for status, _ in await chat_at_once(naru, key, 20, 1)]
    # What was taken and not used is given back, so nothing is lost of it either.
    until(lambda: naru.leases() == 0, 30, "what nobody used to be given back")
    while statuses.count(200) < 1_000 and len(statuses) < 1_300:
        statuses += [status for status, _ in await chat_at_once(naru, key, 20, 1)]
    assert statuses.count(200) == 1_000
    assert set(statuses) == {200, 429}
    assert naru.metric("accounting", 'naru_reservations_total{decision="spare"}') > 20
    key_id = api_key.parse(key).key_id
    until(lambda: naru.usage(key_id)[0] == 1_000, 10, "all answers to be settled")


async def test_no_more_run_at_once_than_may(naru: Platform) -> None:
    """200 at once with 5 allowed: never more than 5 in the engine, and each end makes room for another."""
    key = naru.new_key(description="narrow", tier="narrow")
    seen, done = [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(naru.metric("inference", "naru_inference_generations"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        # Long enough to be seen.
        statuses = [status for status, _ in await chat_at_once(naru, key, 200, 200)]
        # A place is free once accounting heard that its request has ended, which is a moment after its answer.
        until(lambda: naru.leases() == 0, 30, "every place to be given back")
        statuses += [status for status, _ in await chat_at_once(naru, key, 5, 2)]
    finally:
        done.set()
        watcher.join()
    assert set(statuses) == {200, 429}
    assert statuses[-5:] == [200] * 5
    assert 1 <= max(seen) <= 5


async def test_refusals_are_logged_requests_but_no_usage(naru: Platform) -> None:
    """What was never admitted is billed nothing and holds nothing."""
    key = naru.new_key(description="refused", tier="burst")
    for status, _ in await chat_at_once(naru, key, 25, 1):
        assert status == 200
    refused = await chat_at_once(naru, key, 50, 1)
    assert {status for status, _ in refused} == {429}
    key_id = api_key.parse(key).key_id
    until(lambda: naru.usage(key_id)[0] == 25, 10, "all answers to be settled")
