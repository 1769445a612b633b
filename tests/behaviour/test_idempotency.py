"""A request with an `Idempotency-Key` is made once, however often and however much at once it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import aiohttp
import pytest

from tests.support import accounts
from tests.support.platform import MODEL, Platform, platform

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(300)]

REQUESTS = 100
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "Tell a story."}], "max_tokens": 60, "n": 3}


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation on the simulated engine."""
    with platform(tmp_path_factory.mktemp("naru") / "state", {"NARU_INFERENCE_ENGINE": "simulated"}) as running:
        yield running


@pytest.fixture(scope="module")
def urls(naru: Platform) -> Iterator[Sequence[str]]:
    """Two edges."""
    with naru.second_edge() as second:
        yield naru.url, second


async def send_at_once(
    urls: Sequence[str], key: str, body: dict[str, object], name: str, number: int = REQUESTS
) -> list[tuple[int, bytes, bool]]:
    """Status and body of the same request many times over, and whether it was a replay."""
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": name}

    async def send(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes, bool]:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            replayed = response.headers.get("X-Naru-Replayed") == "true"
            assert response.status == 200 or response.headers["Retry-After"] == "1"
            return response.status, await response.read(), replayed

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        return await asyncio.gather(*(send(session, urls[index % 2]) for index in range(number)))


async def until_answered(
    urls: Sequence[str], key: str, body: dict[str, object], name: str
) -> list[tuple[int, bytes, bool]]:
    """Asks again as long as the request is in flight, as the answers say one may."""
    async with asyncio.timeout(20):
        while True:
            answers = await send_at_once(urls, key, body, name, 1)
            if answers[0][0] != 409:
                return answers
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("stream", [False, True])
async def test_one_generation_and_one_bill(naru: Platform, urls: Sequence[str], stream: bool) -> None:
    """A hundred at once: one generates, the others get its very answer or are told to wait; then all get it."""
    key = naru.new_key(description=f"idempotent {stream}", tier="unlimited")
    body = BODY | ({"stream": True, "stream_options": {"include_usage": True}} if stream else {})
    answers = await send_at_once(urls, key, body, "story")
    (first,) = {text for status, text, _ in answers if status == 200}
    assert sum(status == 200 and not replayed for status, _, replayed in answers) == 1
    assert {status for status, _, _ in answers} <= {200, 409}
    await until_answered(urls, key, body, "story")
    assert set(await send_at_once(urls, key, body, "story")) == {(200, first, True)}
    row = accounts.used(naru, key)
    assert (row.requests, row.usage.completion_tokens) == (1, 180)


async def test_a_hang_up_frees_the_key(naru: Platform, urls: Sequence[str]) -> None:
    """Whoever hung up and asks again is answered anew, in full."""
    key = naru.new_key(description="hangs up", tier="unlimited")
    body = BODY | {"stream": True, "max_tokens": 1_000, "n": 1}
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "story"}
    async with aiohttp.ClientSession(headers=headers) as session:
        response = await session.post(f"{urls[0]}/v1/chat/completions", json=body)
        await response.content.readline()
        response.close()
    ((status, text, replayed),) = await until_answered(urls, key, body, "story")
    assert (status, replayed) == (200, False)
    assert text.endswith(b"data: [DONE]\n\n")
    assert accounts.used(naru, key).requests == 2


async def test_the_key_of_another_body(naru: Platform, urls: Sequence[str]) -> None:
    """The same key with another body is a conflict at every edge, and costs nothing."""
    key = naru.new_key(description="conflict", tier="unlimited")
    await until_answered(urls, key, BODY, "story")
    headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "story"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for url in urls:
            async with session.post(f"{url}/v1/chat/completions", json=BODY | {"max_tokens": 61}) as response:
                assert response.status == 409
                assert (await response.json())["error"]["code"] == "idempotency_key_reused"
    assert accounts.used(naru, key).requests == 1
