"""Reserving over one stream of messages."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from naru.api.accounting.v1 import limit_pb2, quota_service_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.errors import Reason
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.lifecycle import Lifecycle
from tests.integration.accounting.harness import refused
from tests.integration.accounting.service import ReserveSession, Service, wanted
from tests.support.recording_accounting import KeyRing

KEY = Principal("ws-1", tier="free", key_id="key-1")


async def ask(
    session: ReserveSession, *items: quota_service_pb2.Reservation
) -> quota_service_pb2.ReserveSessionResponse:
    """The answer to a request of these items."""
    reserve = quota_service_pb2.ReserveRequest(items=items)
    return await session.ask(quota_service_pb2.ReserveSessionRequest(reserve=reserve), timeout=5)


async def test_it_is_answered_as_calls_are(service: Service) -> None:
    """Grants and refusals are those of the call, request by request; an error is of its request alone."""
    edge = service.as_service(ServiceName.EDGE)
    session = edge.session()
    items = [wanted(KEY) for _ in range(11)]
    answers = [await ask(session, item) for item in items[:3]]
    answers.append(await ask(session, *items[3:9]))
    too_many = await ask(session, *[wanted(KEY)] * 257)
    assert too_many.error.reason == error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT
    assert dict(too_many.error.metadata) == {"field": "items"}
    answers.append(await ask(session, items[9], items[10]))
    results = [result for answer in answers for result in answer.reserved.results]
    assert [result.event_id for result in results] == [item.event_id for item in items]
    twins = [wanted(Principal("ws-2", tier="free", key_id="key-2")) for _ in items]
    decided = [result.HasField("grant") for result in await edge.reserve(*twins)]
    assert [result.HasField("grant") for result in results] == decided
    assert set(decided) == {True, False}
    (again,) = await edge.reserve(items[0])
    assert again.grant.lease_expire_time == results[0].grant.lease_expire_time
    session.close()


async def test_it_tells_of_the_kinds_of_limits_that_are_asked_for(service: Service) -> None:
    """Of all kinds when none is named; of a kind that this build does not know there are no limits."""
    session = service.as_service(ServiceName.EDGE).session()

    async def told(*kinds: limit_pb2.LimitKind.ValueType) -> set[limit_pb2.LimitKind.ValueType]:
        reserve = quota_service_pb2.ReserveRequest(items=[wanted(KEY)], limit_kinds=kinds)
        answer = await session.ask(quota_service_pb2.ReserveSessionRequest(reserve=reserve), timeout=5)
        (result,) = answer.reserved.results
        assert result.HasField("grant")
        return {limit.kind for limit in result.limits}

    everything = await told()
    assert limit_pb2.LIMIT_KIND_REQUESTS in everything
    assert len(everything) > 1
    assert await told(limit_pb2.LIMIT_KIND_REQUESTS) == {limit_pb2.LIMIT_KIND_REQUESTS}
    assert await told(*everything) == everything
    assert await told(limit_pb2.LimitKind.ValueType(99)) == set()
    session.close()


async def test_what_has_ended_makes_room_for_what_is_asked_with_it(service: Service) -> None:
    """Places in flight are free before anything is decided; of too many nothing is heard, and a message may ask for nothing."""
    session = service.as_service(ServiceName.EDGE).session()
    items = [wanted(KEY) for _ in range(6)]
    full = await ask(session, *items[:5])
    assert [result.HasField("grant") for result in full.reserved.results] == [True] * 4 + [False]
    refs = [quota_service_pb2.EventRef(event_id=item.event_id) for item in items]
    for ended, asked in ((refs[:1], items[5:]), (refs[1:3], [])):
        reserve = quota_service_pb2.ReserveRequest(items=asked)
        message = quota_service_pb2.ReserveSessionRequest(reserve=reserve, finished=ended)
        answer = await session.ask(message, timeout=5)
        assert [result.HasField("grant") for result in answer.reserved.results] == [True] * len(asked)
    two_more = await ask(session, *[wanted(KEY) for _ in range(3)])
    assert [result.HasField("grant") for result in two_more.reserved.results] == [True, True, False]
    too_many = await session.ask(quota_service_pb2.ReserveSessionRequest(finished=refs[:1] * 4_097), timeout=5)
    assert dict(too_many.error.metadata) == {"field": "finished"}
    session.close()


async def test_what_is_asked_at_once_is_decided_in_order(service: Service) -> None:
    """A place that one message gives back is free for the next, whose sender did not wait for the answer between."""
    session = service.as_service(ServiceName.EDGE).session()
    for turn in range(50):
        key = Principal("ws-1", tier="free", key_id=f"key-{turn}")
        first, item = [wanted(key) for _ in range(4)], wanted(key)
        assert all(result.HasField("grant") for result in (await ask(session, *first)).reserved.results)
        ended = [quota_service_pb2.EventRef(event_id=first[0].event_id)]
        gone, answer = await asyncio.gather(
            session.ask(quota_service_pb2.ReserveSessionRequest(finished=ended), timeout=5), ask(session, item)
        )
        assert not gone.reserved.results
        (result,) = answer.reserved.results
        assert result.event_id == item.event_id
        assert result.HasField("grant"), result
    session.close()


async def test_a_stopping_service_ends_idle_sessions_at_once(config: AccountingConfig) -> None:
    """It does not wait for the next request of each; who asks then is told that the service is away."""
    await migrate(config)
    tokens = ServiceTokens.read(config.service_tokens_dir)
    async with AsyncExitStack() as clients, AsyncExitStack() as process:
        # A grace that is longer than the test may take.
        up = await process.enter_async_context(running(replace(config, shutdown_grace=60.0), Lifecycle()))
        service = await clients.enter_async_context(Service(up, tokens, KeyRing()))
        session = service.as_service(ServiceName.EDGE).session()
        assert (await ask(session, wanted(KEY))).reserved.results[0].HasField("grant")
        async with asyncio.timeout(30):
            await process.aclose()
        assert (await refused(ask(session, wanted(KEY)))).reason is Reason.SERVICE_UNAVAILABLE


async def test_a_late_answer_is_not_taken_for_the_next(service: Service) -> None:
    """Who gives up, by a timeout or by going away, leaves nothing behind for whoever asks next."""
    session = service.as_service(ServiceName.EDGE).session()
    for _ in range(5):
        reserve = quota_service_pb2.ReserveRequest(items=[wanted(KEY)])
        request = quota_service_pb2.ReserveSessionRequest(reserve=reserve)
        assert (await refused(session.ask(request, timeout=0))).reason is Reason.DEADLINE_EXCEEDED
        leaving = asyncio.create_task(session.ask(request, timeout=5))
        await asyncio.sleep(0)
        _ = leaving.cancel()
        _ = await asyncio.wait([leaving])
        item = wanted(KEY)
        (result,) = (await ask(session, item)).reserved.results
        assert result.event_id == item.event_id
    session.close()


async def test_only_who_meters_may_open_one(service: Service) -> None:
    """An operator, who may ask about usage, may not reserve.

    Told once in some hundred times while the question is being written, it says so too.
    """
    session = service.as_service(ServiceName.OPERATOR).session()
    for _ in range(1000):
        assert (await refused(ask(session, wanted(KEY)))).reason is Reason.PERMISSION_DENIED
