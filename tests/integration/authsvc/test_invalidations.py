"""WatchInvalidations over gRPC: revocations arrive, wherever they were made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

from authsvc.app import running
from authsvc.config import AuthsvcConfig
from naru.api.auth.v1 import auth_service_pb2
from naru.errors import Reason
from naru.lifecycle import Lifecycle
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import AuthService, refused, serving


async def test_a_revocation_arrives_within_a_second(service: AuthService) -> None:
    """A watcher hears first where the numbering stands, then of a revocation at once, numbered higher."""
    admin = await service.admin()
    made = await admin.create()
    before = await service.authenticate(made.secret_key)
    async with service.watch() as messages, asyncio.timeout(20):
        first = await anext(messages)
        assert (first.sequence, list(first.key_ids), first.epoch) == (before.as_of, [], before.epoch)
        started = time.monotonic()
        await admin.revoke(key_id=made.api_key.key_id)
        second = await _news(messages)
        print(f"told after {time.monotonic() - started:.2f} s")
    assert list(second.key_ids) == [made.api_key.key_id]
    assert second.sequence > before.as_of
    assert second.epoch == first.epoch


async def test_silence_is_broken_by_heartbeats(service: AuthService) -> None:
    """Without revocations a watcher gets a message every two seconds, with the number it knows and no keys."""
    started = time.monotonic()
    async with service.watch() as messages, asyncio.timeout(20):
        first = await anext(messages)
        assert await anext(messages) == first
        assert time.monotonic() - started > 1.5


async def test_revocations_of_another_replica_arrive(
    service: AuthService, config: AuthsvcConfig, clock: FakeClock
) -> None:
    """A revocation made through one replica reaches the watchers of another within a second."""
    admin = await service.admin()
    made = await admin.create()
    async with (
        running(config, Lifecycle(), clock=clock) as up,
        serving(config, up) as replica,
        replica.watch() as messages,
        asyncio.timeout(20),
    ):
        await anext(messages)
        started = time.monotonic()
        await admin.revoke(key_id=made.api_key.key_id)
        assert list((await _news(messages)).key_ids) == [made.api_key.key_id]
        print(f"told after {time.monotonic() - started:.2f} s")


async def test_every_revocation_arrives_in_order(service: AuthService) -> None:
    """A watcher that does not read for a while then gets every revocation, in the order of the numbers."""
    admin = await service.admin()
    key_ids = [(await admin.create()).api_key.key_id for _ in range(20)]
    async with service.watch() as messages, asyncio.timeout(10):
        first = await anext(messages)
        for key_id in key_ids:
            await admin.revoke(key_id=key_id)
        seen: list[str] = []
        while len(seen) < len(key_ids):
            message = await anext(messages)
            seen += message.key_ids
            assert message.sequence == first.sequence + len(seen)
    assert seen == key_ids


async def test_stopping_ends_the_watches_at_once(service: AuthService, config: AuthsvcConfig) -> None:
    """A service that stops does not wait for its watchers: they are told that it is going away."""
    async with AsyncExitStack() as clients, AsyncExitStack() as replica:
        # A grace that is longer than the test may take.
        config = replace(config, shutdown_grace=60.0)
        up = await replica.enter_async_context(running(config, Lifecycle()))
        watched = await clients.enter_async_context(serving(config, up))
        messages = await clients.enter_async_context(watched.watch())
        await anext(messages)
        async with asyncio.timeout(30):
            await replica.aclose()
        assert (await refused(_next(messages))).reason is Reason.SERVICE_UNAVAILABLE


async def _next(messages: AsyncIterator[object]) -> object:
    return await anext(messages)


async def _news(
    messages: AsyncIterator[auth_service_pb2.WatchInvalidationsResponse],
) -> auth_service_pb2.WatchInvalidationsResponse:
    """The next message that tells of a key: heartbeats may come first on a busy machine."""
    while not (message := await anext(messages)).key_ids:
        pass
    return message
