"""Every request is settled once, with exact figures, however long it runs, whoever is away, and whatever it is called.

The simulated engine, since no text matters here; leases are short, so that many of them fit into a test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from naru import api_key
from naru.api.accounting.v1 import usage_event_pb2, usage_service_pb2, usage_service_pb2_grpc
from tests.support import accounts
from tests.support.platform import MODEL, Platform, answers, platform, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

# Renewed every 2 seconds: a process that stands still for 4 loses none.
LEASE_SECONDS = 6.0
TOKENS_PER_SECOND = 5
CLOCK_READING = 0.01


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A slow engine, short leases, and a price."""
    environ = {
        "NARU_INFERENCE_ENGINE": "simulated",
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": str(TOKENS_PER_SECOND),
        "NARU_LEASE_SECONDS": str(LEASE_SECONDS),
    }
    with platform(tmp_path_factory.mktemp("naru") / "state", environ) as running:
        accounts.sell(running)
        yield running


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a client saw of a stream: between which times it was admitted, and what its last chunk said."""

    begun: tuple[float, float]
    seconds: float
    prompt_tokens: int
    completion_tokens: int


async def stream(naru: Platform, key: str, tokens: int) -> Streamed:
    """Reads a stream of so many tokens to its end."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Tell me about ferries."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    before, usage = time.time(), {}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {key}"}) as session,
        session.post(f"{naru.url}/v1/chat/completions", json=body) as response,
    ):
        assert response.status == 200, await response.text()
        admitted, started = time.time(), time.monotonic()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                usage = event.get("usage") or usage
        assert line == b"\n"
    seconds = time.monotonic() - started
    return Streamed((before, admitted), seconds, usage["prompt_tokens"], usage["completion_tokens"])


def assert_settled_once(naru: Platform, key: str, streams: list[Streamed]) -> None:
    """One exact event and one entry for each, in the time when it was admitted; sums and books agree."""
    row = accounts.used(naru, key)
    assert row.requests == len(streams)
    found = sorted(accounts.events(naru, key), key=lambda event: event.reserve_time.ToNanoseconds())
    entries = {entry.event_id: entry for entry in accounts.entries(naru, [event.event_id for event in found])}
    assert len(found) == len(entries) == len(streams)
    # Those that were begun at once may have been admitted, and told of it, in other orders.
    begun, admitted = (sorted(times) for times in zip(*(one.begun for one in streams), strict=True))
    for event, earliest, latest in zip(found, begun, admitted, strict=True):
        assert (event.attempt, event.accuracy) == (0, usage_event_pb2.ACCURACY_EXACT)
        assert earliest - CLOCK_READING <= event.reserve_time.ToNanoseconds() / 1e9 <= latest + CLOCK_READING
        assert entries[event.event_id].amount == -event.cost
        assert entries[event.event_id].booked_time == event.reserve_time
        assert event.cost == accounts.cost(1, event.usage.prompt_tokens, event.usage.completion_tokens)
    assert sorted((event.usage.prompt_tokens, event.usage.completion_tokens) for event in found) == sorted(
        (one.prompt_tokens, one.completion_tokens) for one in streams
    )
    assert row.cost == sum(event.cost for event in found)
    assert accounts.findings(naru) == []


async def test_a_stream_longer_than_ten_leases(naru: Platform) -> None:
    """Renewed all along: it keeps its place in flight, is never swept, and is settled once."""
    key = naru.new_key(description="long", tier="unlimited")
    expired = naru.metric("accounting", "naru_leases_expired_total")
    tokens = round(11 * LEASE_SECONDS * TOKENS_PER_SECOND)
    running = asyncio.create_task(stream(naru, key, tokens))
    await asyncio.to_thread(until, lambda: naru.leases() == 1, 20, "the stream to be admitted")
    while not running.done():
        assert naru.metric("accounting", "naru_leases_expired_total") == expired
        await asyncio.sleep(0.2)
    told = await running
    assert told.seconds > 10 * LEASE_SECONDS
    assert told.completion_tokens == tokens
    assert_settled_once(naru, key, [told])


@contextmanager
def kept_away(naru: Platform, service: str) -> Iterator[None]:
    """Kills a service; inside the block its port is taken, so that the supervisor cannot bring it back."""
    (process_id,) = naru.service_ids(service)
    address = ("127.0.0.1", naru.ports[f"NARU_{service.upper()}_PORT"])
    with socket.socket() as port:
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        os.kill(process_id, signal.SIGKILL)
        until(lambda: taken(port, address), 30, "the port to be free")
        # Else it may be shared: who listens had to allow that too, and gRPC does.
        port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        yield


def taken(port: socket.socket, address: tuple[str, int]) -> bool:
    """Whether the socket could have the address."""
    try:
        port.bind(address)
    except OSError:
        return False
    return True


async def test_accounting_down_for_longer_than_a_lease(naru: Platform) -> None:
    """Streams go on and end meanwhile; each is settled once afterwards, exactly and in its own time; nothing stays reserved."""
    key = naru.new_key(description="outage", tier="unlimited")
    # Some end while it is away, some go on for longer than that.
    lengths = (40, 42, 44, 250, 251, 252)
    running = [asyncio.create_task(stream(naru, key, tokens)) for tokens in lengths]
    await asyncio.to_thread(until, lambda: naru.leases() == len(lengths), 20, "all to be admitted")
    with kept_away(naru, "accounting"):
        await asyncio.sleep(2.5 * LEASE_SECONDS)
        await asyncio.wait_for(asyncio.gather(*running[:3]), 30)
        assert not any(task.done() for task in running[3:])
    ready = f"http://127.0.0.1:{naru.ports['NARU_ACCOUNTING_OPS_PORT']}/readyz"
    back = await asyncio.to_thread(until, lambda: answers(ready), 30, "accounting to be back")
    print(f"accounting was back {back:.1f} s after it could")
    told = await asyncio.gather(*running)
    assert [one.completion_tokens for one in told] == list(lengths)
    assert_settled_once(naru, key, told)


async def test_a_hundred_requests_of_one_request_id(naru: Platform) -> None:
    """A client's x-request-id is a name and nothing else: each of them is generated, logged and billed."""
    key = naru.new_key(description="same id", tier="unlimited")
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Go."}], "max_tokens": 2}
    headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "the-same-for-all"}

    async def chat(session: aiohttp.ClientSession) -> tuple[int, str, int]:
        async with session.post(f"{naru.url}/v1/chat/completions", json=body) as response:
            tokens = (await response.json())["usage"]["total_tokens"]
            return response.status, response.headers["X-Request-Id"], tokens

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:
        answered = await asyncio.gather(*(chat(session) for _ in range(100)))
    assert {(status, request_id) for status, request_id, _ in answered} == {(200, "the-same-for-all")}
    row = accounts.used(naru, key)
    tokens = sum(tokens for _, _, tokens in answered)
    assert (row.requests, row.usage.prompt_tokens + row.usage.completion_tokens) == (100, tokens)
    found = accounts.events(naru, key)
    assert len({event.event_id for event in found}) == len(found) == 100
    assert {event.request_id for event in found} == {"the-same-for-all"}
    assert len(accounts.entries(naru, [event.event_id for event in found])) == 100
    assert row.cost == accounts.cost(100, row.usage.prompt_tokens, row.usage.completion_tokens)
    until(lambda: len(logged(naru, key)) >= 100, 30, "the request log")
    lines = logged(naru, key)
    assert {line.event_id for line in lines} == {event.event_id for event in found}
    assert len(lines) == 100
    assert sum(line.cost for line in lines) == row.cost


def logged(naru: Platform, key: str) -> list[usage_event_pb2.LoggedRequest]:
    """The lines of the request log that the shared id finds."""
    with naru.channel("ACCOUNTING") as channel:
        stub = usage_service_pb2_grpc.UsageServiceStub(channel)
        request = usage_service_pb2.ListRequestsRequest(
            key_id=api_key.parse(key).key_id, request_id="the-same-for-all", page_size=1_000
        )
        return list(stub.ListRequests(request, metadata=naru.bearer(), timeout=10).requests)
