"""Calls of a script: each gets its own answer, whatever became of those before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from accounting.limiter.limiter import connect
from accounting.limiter.script import Script

_TEXT = """
if ARGV[1] == "wrong" then return redis.error_reply("WRONG as asked") end
return ARGV[1]
"""


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    redis = connect(redis_url)
    yield redis
    await redis.client_unpause()
    await redis.aclose()


@pytest.fixture
async def script(redis: Redis) -> AsyncIterator[Script]:
    script = Script(redis, _TEXT, timeout=20.0)
    yield script
    await script.close()


async def echo(script: Script, *said: str) -> list[bytes]:
    return await asyncio.gather(*(script("key", one) for one in said))


async def waiting(redis: Redis, calls: int) -> None:
    """Returns when Redis, which is paused, has been asked so many calls by those who still want to know."""
    async with asyncio.timeout(20):
        while sum("b" in client["flags"] for client in await redis.client_list()) != calls:
            await asyncio.sleep(0.005)


async def test_more_calls_than_connections_are_answered(script: Script) -> None:
    said = [f"call {number}" for number in range(100)]
    assert await echo(script, *said) == [one.encode() for one in said]


async def test_a_script_that_redis_has_forgotten_is_told_again(script: Script, redis: Redis) -> None:
    assert await echo(script, "first") == [b"first"]
    await redis.script_flush()
    assert await echo(script, "second", "third") == [b"second", b"third"]


async def test_an_error_is_one_call_s(script: Script) -> None:
    for _ in range(2):
        with pytest.raises(ResponseError, match="WRONG as asked"):
            await script("key", "wrong")
        assert await echo(script, "right") == [b"right"]


async def test_a_call_that_was_cancelled_leaves_its_answer_to_nobody(script: Script, redis: Redis) -> None:
    assert await echo(script, "connected") == [b"connected"]
    for _ in range(3):
        await redis.client_pause(60_000, all=False)
        call = asyncio.create_task(script("key", "late"))
        await waiting(redis, 1)
        assert call.cancel()
        others = asyncio.create_task(echo(script, "a", "b"))
        await waiting(redis, 2)
        await redis.client_unpause()
        assert await others == [b"a", b"b"]
        with pytest.raises(asyncio.CancelledError):
            await call


async def test_a_call_that_took_too_long_leaves_its_answer_to_nobody(redis: Redis) -> None:
    script = Script(redis, _TEXT, timeout=4.0)
    assert await echo(script, "connected") == [b"connected"]
    await redis.client_pause(60_000, all=False)
    with pytest.raises(TimeoutError):
        await script("key", "paused")
    await redis.client_unpause()
    assert await echo(script, "a", "b") == [b"a", b"b"]
    await script.close()


async def test_connections_that_redis_closed_cost_no_call(script: Script, redis: Redis) -> None:
    said = [f"call {number}" for number in range(8)]
    for _ in range(2):
        assert await echo(script, *said) == [one.encode() for one in said]
        await redis.client_kill_filter(_type="normal", skipme=True)
