"""The service over gRPC, as the others see it."""

from __future__ import annotations

import asyncio

import aiohttp
import grpc
import pytest
import sqlalchemy as sa
from grpc_health.v1 import health_pb2, health_pb2_grpc

from accounting.config import AccountingConfig
from accounting.limiter.limiter import connect
from accounting.tables import engine_counters, request_log
from naru.api.accounting.v1 import limit_pb2, quota_service_pb2, usage_event_pb2, usage_service_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.convert import principal_to_proto, timestamp_to_proto
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.identity import Principal, Role, ServiceName
from tests.integration.accounting.harness import eventually, refused
from tests.integration.accounting.service import NOW, Caller, Service, final, ref, wanted

KEY = Principal("ws-1", tier="free", key_id="key-1")
RECORDED = usage_service_pb2.RECORD_USAGE_STATUS_RECORDED
KNOWN = usage_service_pb2.RECORD_USAGE_STATUS_KNOWN
REFUSED = usage_service_pb2.RECORD_USAGE_STATUS_REFUSED


@pytest.fixture
def edge(service: Service) -> Caller:
    """The edge."""
    return service.as_service(ServiceName.EDGE)


@pytest.fixture
def inference(service: Service) -> Caller:
    """An inference replica."""
    return service.as_service(ServiceName.INFERENCE)


async def total(edge: Caller) -> tuple[int, int, int]:
    """Requests and tokens of all."""
    (row,) = (await edge.query()).rows
    return row.requests, row.usage.prompt_tokens, row.usage.completion_tokens


async def test_where_limits_stand(edge: Caller, service: Service) -> None:
    """The edge asks for whom it likes; whoever asks for themselves sees their own, whatever they name."""
    await edge.reserve(wanted(KEY))
    asked = await edge.limits(principal=principal_to_proto(KEY))
    assert asked.tier == "free"
    assert [(limit.limit, limit.remaining) for limit in asked.limits] == [(4, 3), (10, 9), (100, 99)]
    owner, _ = service.as_owner("ws-2", Role.USER)
    mine = await owner.limits(principal=principal_to_proto(KEY))
    assert [(limit.limit, limit.remaining) for limit in mine.limits] == [(4, 4), (10, 10), (100, 100)]
    assert (await refused(edge.limits())).metadata == {"field": "principal.workspace_id"}


async def test_a_request_from_reservation_to_sum(edge: Caller, inference: Caller) -> None:
    """Reserved by the edge, renewed and reported by inference, counted by its key, model and day."""
    item = wanted(KEY)
    (result,) = await edge.reserve(item)
    assert (result.event_id, result.attempt) == (item.event_id, 0)
    assert result.HasField("grant")
    assert not result.grant.HasField("output_token_cap")
    lease = result.grant.lease_expire_time.ToMicroseconds() - result.grant.reserve_time.ToMicroseconds()
    assert lease == 60_000_000
    assert [(limit.scope, limit.kind, limit.window, limit.limit, limit.remaining) for limit in result.limits] == [
        (limit_pb2.LIMIT_SCOPE_KEY, limit_pb2.LIMIT_KIND_CONCURRENCY, limit_pb2.LIMIT_WINDOW_UNSPECIFIED, 4, 3),
        (limit_pb2.LIMIT_SCOPE_KEY, limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_MINUTE, 10, 9),
        (limit_pb2.LIMIT_SCOPE_KEY, limit_pb2.LIMIT_KIND_REQUESTS, limit_pb2.LIMIT_WINDOW_HOUR, 100, 99),
    ]
    (renewed,) = await inference.renew(ref(item))
    assert renewed.renewed
    assert renewed.lease_expire_time.ToMicroseconds() > result.grant.lease_expire_time.ToMicroseconds()
    (recorded,) = await inference.record(final(KEY, item.event_id))
    assert recorded == usage_service_pb2.RecordUsageResult(status=RECORDED)
    dimensions = [
        usage_service_pb2.USAGE_DIMENSION_KEY,
        usage_service_pb2.USAGE_DIMENSION_MODEL,
        usage_service_pb2.USAGE_DIMENSION_DAY,
        usage_service_pb2.USAGE_DIMENSION_WORKSPACE,
    ]
    (row,) = (await edge.query(group_by=dimensions)).rows
    assert (row.key_id, row.model, row.workspace_id, row.requests) == ("key-1", "smollm2", "ws-1", 1)
    assert row.day == result.grant.reserve_time.ToDatetime().date().isoformat()
    assert (row.usage.prompt_tokens, row.usage.completion_tokens) == (7, 3)


async def test_the_eleventh_request_of_a_minute(edge: Caller) -> None:
    """Its refusal has what a 429 needs."""
    for _ in range(10):
        item = wanted(KEY)
        await edge.reserve(item)
        assert await edge.release(ref(item)) == [True]
    (result,) = await edge.reserve(wanted(KEY))
    assert result.refusal.reason == error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED
    assert dict(result.refusal.metadata) == {"scope": "key", "kind": "requests", "window": "minute", "limit": "10"}
    assert 0 < result.refusal.retry_delay.ToMicroseconds() <= 61_000_000
    assert result.limits[0].remaining == 0


async def test_one_bad_item_does_not_spoil_a_batch(edge: Caller) -> None:
    """Each malformed reservation is refused by itself, with its field."""
    bad = {
        "event_id": wanted(KEY, event_id="not-a-uuid"),
        "attempt": wanted(KEY, attempt=-1),
        "revision": wanted(KEY, revision=-1),
        "principal.workspace_id": wanted(Principal("")),
        "principal.key_id": wanted(Principal("ws-1", key_id="k" * 65)),
        "principal.tier": wanted(Principal("ws-1", tier="fr\0ee")),
        "input_tokens": wanted(KEY, input_tokens=-1),
        "output_tokens": wanted(KEY, output_tokens=1 << 41),
    }
    results = await edge.reserve(wanted(KEY), *bad.values(), wanted(KEY))
    assert [result.HasField("grant") for result in results] == [True, *[False] * len(bad), True]
    for field, item, result in zip(bad, bad.values(), results[1:], strict=False):
        assert result.refusal.reason == error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT
        assert (result.event_id, dict(result.refusal.metadata)) == (item.event_id, {"field": field})


async def test_a_batch_has_a_size(edge: Caller, inference: Caller) -> None:
    """One item more than documented is refused as a whole."""
    names = [quota_service_pb2.EventRef()] * 4_097
    for call, field in (
        (edge.reserve(*[wanted(KEY)] * 257), "items"),
        (edge.release(*names[:257]), "items"),
        (edge.renew(*names), "items"),
        (inference.record(*[final(KEY)] * 1_025), "events"),
        (edge.log(*[usage_event_pb2.RequestRecord()] * 4_097), "records"),
    ):
        error = await refused(call)
        assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": field})


async def test_names_that_cannot_exist_are_not_open(edge: Caller) -> None:
    """Releasing or renewing them says so, beside ones that are."""
    item = wanted(KEY)
    await edge.reserve(item)
    wrong = quota_service_pb2.EventRef(event_id="wrong")
    assert [result.renewed for result in await edge.renew(wrong, ref(item))] == [False, True]
    assert await edge.release(wrong, ref(item), wrong) == [False, True, False]


async def test_reports_that_can_never_be_recorded(inference: Caller, edge: Caller) -> None:
    """They are refused one by one; the good ones in between count."""
    bad = {
        "event_id": final(KEY, "not-a-uuid"),
        "attempt": final(KEY, attempt=64),
        "principal.workspace_id": final(Principal("")),
        "evidence": final(KEY, evidence=usage_event_pb2.EVIDENCE_UNSPECIFIED),
        "accuracy": final(KEY, accuracy=usage_event_pb2.ACCURACY_UNSPECIFIED),
        "outcome": final(KEY, outcome=usage_event_pb2.OUTCOME_UNSPECIFIED),
        "usage.prompt_tokens": final(KEY, usage={"prompt_tokens": -1}),
        "accept_time": final(KEY, accept_time={"seconds": 1 << 60}),
    }
    results = await inference.record(final(KEY), *bad.values(), final(KEY))
    assert [result.status for result in results] == [RECORDED, *[REFUSED] * len(bad), RECORDED]
    assert [result.error.metadata["field"] for result in results[1:-1]] == list(bad)
    assert await total(edge) == (2, 14, 6)


async def test_each_service_reports_what_it_can_know(edge: Caller, inference: Caller) -> None:
    """The edge cannot claim to be the engine, nor inference what was delivered."""
    delivered = final(KEY, evidence=usage_event_pb2.EVIDENCE_DELIVERED)
    accepted = final(KEY, evidence=usage_event_pb2.EVIDENCE_ACCEPTED)
    from_edge = await edge.record(final(KEY), accepted, delivered)
    from_inference = await inference.record(delivered, accepted, final(KEY))
    assert [result.status for result in from_edge] == [REFUSED, REFUSED, RECORDED]
    assert [result.status for result in from_inference] == [REFUSED, RECORDED, RECORDED]
    assert from_edge[0].error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED


async def test_a_very_long_model_name_is_counted_all_the_same(inference: Caller, edge: Caller) -> None:
    """What a client called a model is cut to what is kept."""
    (result,) = await inference.record(final(KEY, requested_model="m" * 5_000, endpoint="/v1\0"))
    assert result.status == RECORDED
    assert await total(edge) == (1, 7, 3)


async def test_the_same_report_a_hundred_times(inference: Caller, edge: Caller) -> None:
    """It counts once."""
    event = final(KEY)
    answers = await asyncio.gather(*(inference.record(event, event) for _ in range(50)))
    assert [result.status for answer in answers for result in answer].count(RECORDED) == 1
    assert await total(edge) == (1, 7, 3)


@pytest.mark.parametrize("config", [{"lease_seconds": 4.0}], indirect=True)
async def test_a_lease_nobody_renews_ends(edge: Caller) -> None:
    """The sweeper runs in the service: the request has failed, and its place is free."""
    items = [wanted(KEY) for _ in range(4)]
    await edge.reserve(*items)
    (full,) = await edge.reserve(wanted(KEY))
    assert full.refusal.reason == error_reason_pb2.ERROR_REASON_CONCURRENCY_LIMIT_EXCEEDED

    async def ended() -> bool:
        return await total(edge) == (4, 0, 0)

    await eventually(ended, within=30)
    (result,) = await edge.reserve(wanted(KEY))
    assert result.HasField("grant")


async def test_who_sees_which_usage(service: Service, inference: Caller) -> None:
    """A user its key's, a workspace's admin the workspace's, an admin and the operator everything."""
    user, user_key = service.as_owner("ws-1", Role.USER)
    manager, manager_key = service.as_owner("ws-1", Role.WORKSPACE_ADMIN)
    admin, admin_key = service.as_owner("ws-2", Role.ADMIN)
    await inference.record(*(final(key) for key in (user_key, manager_key, admin_key)))
    operator = service.as_service(ServiceName.OPERATOR)
    for caller, expected in ((user, 1), (manager, 2), (admin, 3), (operator, 3)):
        assert (await total(caller))[0] == expected
    by_key = await user.query(group_by=[usage_service_pb2.USAGE_DIMENSION_KEY])
    assert [row.key_id for row in by_key.rows] == [user_key.key_id]
    for call in (
        user.query(key_id=manager_key.key_id),
        user.query(workspace_id="ws-2"),
        manager.query(workspace_id="ws-2"),
    ):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED
    # A key of another workspace is nothing that a workspace's admin can see.
    assert (await manager.query(key_id=admin_key.key_id)).rows[0].requests == 0


async def test_who_may_not_call_at_all(service: Service) -> None:
    """Nobody without a credential; no key may reserve or report."""
    assert (await refused(service.nobody().reserve(wanted(KEY)))).reason is Reason.CREDENTIALS_MISSING
    admin, key = service.as_owner("ws-1", Role.ADMIN)
    for call in (admin.reserve(wanted(key)), admin.record(final(key)), admin.release(), admin.renew(), admin.log()):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED


async def test_questions_that_make_no_sense(edge: Caller) -> None:
    """Each names its field."""
    key, unknown = usage_service_pb2.USAGE_DIMENSION_KEY, 99
    for field, asked in {
        "group_by": {"group_by": [key, key]},
        "page_size": {"page_size": -1},
        "page_token": {"page_token": "tampered"},
        "model": {"model": "\0"},
        "start_time": {"start_time": {"seconds": -1}},
    }.items():
        error = await refused(edge.query(**asked))
        assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": field})
    assert (await refused(edge.query(group_by=[unknown]))).metadata == {"field": "group_by"}


async def test_the_request_log(edge: Caller, config: AccountingConfig) -> None:
    """Records are taken in batches; one that cannot be kept does not spoil the others."""
    record = usage_event_pb2.RequestRecord(
        request_id="req_1",
        principal=principal_to_proto(KEY),
        endpoint="/v1/models",
        requested_model="m" * 5_000,
        status=429,
        reason=error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
        start_time=timestamp_to_proto(NOW),
    )
    await edge.log(record, usage_event_pb2.RequestRecord(), record)
    await edge.log(record)
    database = Database(config.database_url)
    async with database.reading() as connection:
        (row,) = await connection.execute(sa.select(request_log))
    await database.close()
    assert (row.request_id, row.key_id, row.status, row.reason) == ("req_1", "key-1", 429, "RATE_LIMIT_EXCEEDED")
    assert row.requested_model == "m" * 512


async def test_readiness_follows_redis(service: Service, redis_url: str) -> None:
    """Health and /readyz say whether the service can work."""

    async def ready() -> bool:
        url = f"http://127.0.0.1:{service.up.ops_port}/readyz"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status == 200

    async def health() -> int:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.up.port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return (await stub.Check(health_pb2.HealthCheckRequest())).status

    assert await ready()
    assert await health() == health_pb2.HealthCheckResponse.SERVING
    redis = connect(redis_url)
    # Longer than a client waits for an answer: to the service it is as if Redis had gone away.
    pause = asyncio.create_task(redis.execute_command("CLIENT", "PAUSE", "15000"))
    await eventually(lambda: _not(ready()))
    assert await health() == health_pb2.HealthCheckResponse.NOT_SERVING
    await pause
    await eventually(ready, within=40)
    await redis.aclose()


async def _not(answer: object) -> bool:
    return not await answer  # type: ignore[misc] # a coroutine of bool


@pytest.mark.parametrize("config", [{"recovery_seconds": 5.0}], indirect=True)
async def test_a_redis_that_was_emptied_closes_the_service_for_its_recovery(
    service: Service, edge: Caller, redis_url: str
) -> None:
    """Five seconds later, in this configuration, it grants again."""
    redis = connect(redis_url)
    await redis.flushall()
    await redis.aclose()
    error = await refused(edge.reserve(wanted(KEY)))
    assert isinstance(error, NaruError)
    assert error.reason is Reason.SERVICE_UNAVAILABLE
    assert error.retry_after is not None

    async def granted() -> bool:
        try:
            (result,) = await edge.reserve(wanted(KEY))
        except NaruError:
            return False
        return result.HasField("grant")

    await eventually(granted)


async def test_counters_that_cannot_be_kept_do_not_hold_up_events(
    edge: Caller, inference: Caller, config: AccountingConfig
) -> None:
    """Neither malformed ones nor an edge's; the event beside them is recorded all the same."""
    counters = usage_service_pb2.EngineCounters(replica="a", epoch="b", requests=1)
    delivered = final(KEY, evidence=usage_event_pb2.EVIDENCE_DELIVERED)
    nobody, negative = usage_service_pb2.EngineCounters(requests=1), usage_service_pb2.EngineCounters(requests=-1)
    for caller, event, told in (
        (edge, delivered, counters),
        (inference, final(KEY), nobody),
        (inference, final(KEY), negative),
        (inference, final(KEY), counters),
    ):
        assert [result.status for result in await caller.record(event, counters=told)] == [RECORDED]
    database = Database(config.database_url)
    async with database.reading() as connection:
        kept = (await connection.execute(sa.select(engine_counters.c.replica, engine_counters.c.requests))).all()
    await database.close()
    assert kept == [("a", 1)]


async def test_a_running_request_is_restored(inference: Caller) -> None:
    """What nothing is known of is said to be unknown, and has a lease once it was restored; what cannot be read has none."""
    item, wrong = wanted(KEY), wanted(KEY, event_id="no id")
    (unknown,) = await inference.renew(ref(item))
    assert (unknown.renewed, unknown.unknown) == (False, True)
    restored = await inference.restore(item, wrong)
    assert [one.renewed for one in restored] == [True, False]
    (renewed,) = await inference.renew(ref(item))
    assert (renewed.renewed, renewed.unknown) == (True, False)
