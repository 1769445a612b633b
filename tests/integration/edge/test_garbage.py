"""Requests leave nothing behind that only the garbage collector would find.

Python looks for rings of objects rarely and thoroughly: while it does, no token of any stream moves.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.edge_and_replicas import Installation, edge_and_replicas

OURS = ("edge.", "inference.", "naru.")


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Installation]:
    """A replica of `small`."""
    async with edge_and_replicas(tmp_path, {"simulated_tokens_per_second": 500.0}) as installation:
        yield installation


@contextmanager
def rings() -> Iterator[Counter[str]]:
    """Counts, at the end of the block, what was made in it and is in rings, by type."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        kinds = (type(one) for one in gc.garbage)
        found.update(f"{kind.__module__}.{kind.__qualname__}" for kind in kinds if kind.__module__.startswith(OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def whole(one: Installation) -> None:
    assert (await one.chat("small"))[0] == 200


async def streamed(one: Installation) -> None:
    async with asyncio.timeout(20):
        assert (await _stream(one, max_tokens=8)).count(b"data: ") > 8


async def hung_up(one: Installation) -> None:
    async with asyncio.timeout(20):
        await _stream(one, max_tokens=500, most=1)
        while (await one.ask("GET", f"/api/replicas/{one.addresses[0]}"))[1]["requests"]:
            await asyncio.sleep(0.01)


async def _stream(one: Installation, *, max_tokens: int, most: int = -1) -> bytes:
    body = {"model": "small", "messages": [{"role": "user", "content": "Hi."}], "stream": True}
    headers = {"Authorization": f"Bearer {one.user}"}
    fields = body | {"max_tokens": max_tokens, "ignore_eos": True}
    async with one.http.post(one.url + "/v1/chat/completions", json=fields, headers=headers) as answer:
        return await answer.content.read(most)


@pytest.mark.parametrize("ask", [whole, streamed, hung_up])
async def test_a_request_leaves_no_ring(one: Installation, ask: Callable[[Installation], Awaitable[None]]) -> None:
    await ask(one)
    with rings() as found:
        for _ in range(5):
            await ask(one)
        # What ends a request at both ends may take a turn of the loop more than its answer.
        await asyncio.sleep(0.2)
    assert {kind: count for kind, count in found.items() if count >= 5} == {}
