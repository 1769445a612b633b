"""What clients are told when the engine cannot keep up, over HTTP through all services; the simulated engine, two slots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import aiohttp
import pytest

from naru import api_key
from tests.support.platform import MODEL, Platform, platform, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

SLOTS, LENGTH, PATIENCE = 2, 4, 8.0


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation in which few may wait, and not for long."""
    environ = {
        "NARU_INFERENCE_ENGINE": "simulated",
        "NARU_INFERENCE_SIMULATED_SLOTS": str(SLOTS),
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "20",
        "NARU_INFERENCE_QUEUE_LENGTH": str(LENGTH),
        "NARU_INFERENCE_QUEUE_SECONDS": str(PATIENCE),
    }
    with platform(tmp_path_factory.mktemp("naru") / "state", environ) as running:
        yield running


class Client:
    """Chats with one key."""

    def __init__(self, naru: Platform, key: str) -> None:
        self._url = f"{naru.url}/v1/chat/completions"
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"})

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def chat(self, tokens: int) -> tuple[int, str, Mapping[str, str]]:
        """Status, error code and headers of the answer."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Go."}],
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        async with self._session.post(self._url, json=body) as response:
            answer = await response.json()
            return response.status, answer.get("error", {}).get("code", ""), response.headers


def running(naru: Platform) -> int:
    """Requests between order and outcome."""
    return round(naru.metric("inference", "naru_inference_generations"))


def impatient(naru: Platform) -> float:
    """Requests that have waited for too long."""
    return naru.metric("inference", 'naru_inference_overloaded_total{bound="time"}')


async def test_too_many_are_told_to_come_back(naru: Platform) -> None:
    """All slots and places taken: 503 with retry-after at once, and not a token billed; the others are answered."""
    key = naru.new_key(description="too many", tier="unlimited")
    async with Client(naru, key) as client:
        answers = await asyncio.gather(*[client.chat(40) for _ in range(SLOTS + LENGTH + 10)])
    refused = [(code, headers) for status, code, headers in answers if status == 503]
    assert len(refused) == 10
    assert sum(status == 200 for status, _, _ in answers) == SLOTS + LENGTH
    assert {code for code, _ in refused} == {"overloaded"}
    assert all(1 <= int(headers["retry-after"]) <= PATIENCE for _, headers in refused)
    until(lambda: naru.leases() == 0, 30, "every reservation to be settled or given back")
    key_id = api_key.parse(key).key_id
    until(
        lambda: naru.usage(key_id)[::2] == (SLOTS + LENGTH, 40 * (SLOTS + LENGTH)), 30, "the answers alone to be billed"
    )
    assert naru.metric("inference", 'naru_inference_overloaded_total{bound="length"}') == 10


async def test_who_waits_too_long_is_told_to_come_back(naru: Platform) -> None:
    """Slots that stay taken for longer than a request may wait: 503 with retry-after then, and not later."""
    key = naru.new_key(description="too long", tier="unlimited")
    async with Client(naru, key) as client:
        long = [asyncio.create_task(client.chat(400)) for _ in range(SLOTS)]
        await asyncio.to_thread(until, lambda: running(naru) == SLOTS, 15, "the slots to be taken")
        status, code, headers = await client.chat(5)
        assert not any(one.done() for one in long)
        assert (status, code) == (503, "overloaded")
        assert int(headers["retry-after"]) >= 1
        assert [status for status, _, _ in await asyncio.gather(*long)] == [200] * SLOTS
    assert impatient(naru) == 1
    assert naru.metric("inference", "naru_inference_waiting") == 0


async def test_hanging_up_while_waiting_leaves_nothing(naru: Platform) -> None:
    """Clients that go while they wait make room, are billed nothing and hold nothing."""
    key = naru.new_key(description="hang up", tier="unlimited")
    before = impatient(naru)
    async with Client(naru, key) as client:
        long = [asyncio.create_task(client.chat(400)) for _ in range(SLOTS)]
        await asyncio.to_thread(until, lambda: running(naru) == SLOTS, 15, "the slots to be taken")
        gone = [asyncio.create_task(client.chat(40)) for _ in range(LENGTH)]
        await asyncio.to_thread(until, lambda: running(naru) == SLOTS + LENGTH, 15, "the others to wait")
        for one in gone:
            one.cancel()
        await asyncio.wait(gone)
        await asyncio.to_thread(until, lambda: running(naru) == SLOTS, 15, "them to be gone")
        assert not any(one.done() for one in long)
        assert impatient(naru) == before, "they left before their patience was over"
        assert [status for status, _, _ in await asyncio.gather(*long)] == [200] * SLOTS
    until(lambda: naru.leases() == 0, 30, "every reservation to be settled or given back")
    assert naru.usage(api_key.parse(key).key_id)[0] == SLOTS
