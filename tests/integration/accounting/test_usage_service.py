"""UsageService's lists and exports over gRPC: who sees what, and what is told of a request."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest

from accounting.config import AccountingConfig
from accounting.usage.store import UsageStore
from naru.api.accounting.v1 import usage_event_pb2, usage_service_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.convert import principal_to_proto, timestamp_to_proto
from naru.database import Database
from naru.errors import Reason
from naru.identity import Role, ServiceName
from tests.integration.accounting.harness import SECOND, booked, new_ref, refused, report
from tests.integration.accounting.service import Caller, Service, final

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def edge(service: Service) -> Caller:
    """The edge."""
    return service.as_service(ServiceName.EDGE)


@pytest.fixture
def inference(service: Service) -> Caller:
    """An inference replica."""
    return service.as_service(ServiceName.INFERENCE)


async def test_who_sees_which_requests_and_exports(service: Service, edge: Caller, inference: Caller) -> None:
    """The same as of usage: one's key's, the workspace's, everything; asking for more is refused."""
    owners = [
        service.as_owner("ws-1", Role.USER),
        service.as_owner("ws-1", Role.WORKSPACE_ADMIN),
        service.as_owner("ws-2", Role.ADMIN),
    ]
    now = timestamp_to_proto(time.time() - 60)
    for number, (_, key) in enumerate(owners):
        event = final(key, accept_time=now)
        await inference.record(event)
        await edge.log(logged(f"req_{number}", event_id=event.event_id, principal=principal_to_proto(key)))
    await edge.log(logged("req_nobody", status=401, reason=error_reason_pb2.ERROR_REASON_INVALID_API_KEY))
    everybody = ["req_0", "req_1", "req_2", "req_nobody"]
    callers = [caller for caller, _ in owners]
    for caller, expected in zip(
        [*callers, service.as_service(ServiceName.OPERATOR)],
        (["req_0"], ["req_0", "req_1"], everybody, everybody),
        strict=True,
    ):
        found = (await caller.requests()).requests
        assert sorted(one.request_id for one in found) == expected
        assert len(await caller.export()) == len([name for name in expected if name != "req_nobody"])
    user, manager, _ = callers
    others = [{"key_id": owners[1][1].key_id}, {"workspace_id": "ws-2"}, {"user_id": "somebody"}]
    for caller, asked in [(user, fields) for fields in others] + [(manager, {"workspace_id": "ws-2"})]:
        for call in (caller.requests(**asked), caller.export(**asked), caller.query(**asked)):
            assert (await refused(call)).reason is Reason.PERMISSION_DENIED
    assert list((await manager.requests(key_id=owners[2][1].key_id)).requests) == []
    for call in (edge.requests(), edge.export()):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED


async def test_an_export_has_what_is_booked_ahead(service: Service, config: AccountingConfig) -> None:
    """Usage is booked by the limiter's clock: what is after ours is in the export as it is in the sums."""
    now = round(time.time() * SECOND)
    database = Database(config.database_url)
    await UsageStore(database).record([booked(report(new_ref()), now + 60 * SECOND)], now)
    await database.close()
    operator = service.as_service(ServiceName.OPERATOR)
    (row,) = (await operator.query()).rows
    assert len(await operator.export()) == row.requests == 1
    until = timestamp_to_proto(now / SECOND + 30)
    (row,) = (await operator.query(end_time=until)).rows
    assert len(await operator.export(end_time=until)) == row.requests == 0


async def test_a_request_and_its_usage(service: Service, edge: Caller, inference: Caller) -> None:
    """Everything that was reported comes back, from the log, the list and the export."""
    owner, key = service.as_owner("ws-1", Role.USER)
    event = final(key, accept_time=timestamp_to_proto(time.time() - 60), endpoint="/v1/completions", request_id="req_1")
    await inference.record(event)
    record = logged("req_1", event_id=event.event_id, principal=principal_to_proto(key), endpoint="/v1/completions")
    record.finish_reason = "length"
    await edge.log(record)
    (one,) = (await owner.requests(status_class=2, trace_id=TRACE, model="smollm2")).requests
    assert (one.request_id, one.event_id, one.key_id, one.workspace_id) == ("req_1", event.event_id, key.key_id, "ws-1")
    assert (one.status, one.reason, one.duration_us, one.first_byte_us, one.stream) == (200, 0, 900, 80, True)
    assert (one.start_time, one.served_model, one.requested_model) == (record.start_time, "smollm2", "gpt-4o-mini")
    assert (one.usage, one.outcome, one.accuracy) == (event.usage, event.outcome, event.accuracy)
    assert one.finish_reason == "length"
    (row,) = await owner.export(endpoint="/v1/completions")
    assert (row.event_id, row.request_id, row.reserve_time) == (event.event_id, "req_1", event.accept_time)
    assert (row.usage, row.outcome, row.served_model, row.key_id) == (event.usage, event.outcome, "smollm2", key.key_id)
    rows = (
        await owner.query(group_by=[usage_service_pb2.USAGE_DIMENSION_HOUR, usage_service_pb2.USAGE_DIMENSION_USER])
    ).rows
    assert [re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:00:00Z", row.hour) is not None for row in rows] == [True]
    assert (await owner.query(endpoint="/v1/chat/completions")).rows[0].requests == 0


async def test_filters_of_requests_that_make_no_sense(edge: Caller, service: Service) -> None:
    """Each names its field."""
    operator = service.as_service(ServiceName.OPERATOR)
    for field, asked in {
        "status": {"status": 42},
        "status_class": {"status_class": 7},
        "trace_id": {"trace_id": "xyz"},
        "page_size": {"page_size": -1},
        "page_token": {"page_token": "tampered"},
        "request_id": {"request_id": "r" * 129},
        "start_time": {"start_time": {"seconds": -1}},
    }.items():
        error = await refused(operator.requests(**asked))
        assert (error.reason, error.metadata) == (Reason.INVALID_ARGUMENT, {"field": field})
    assert (await refused(operator.export(endpoint="e" * 129))).metadata == {"field": "endpoint"}


def logged(request_id: str, **fields: Any) -> usage_event_pb2.RequestRecord:
    """A record of a request a minute ago."""
    return usage_event_pb2.RequestRecord(
        **{
            "request_id": request_id,
            "endpoint": "/v1/chat/completions",
            "requested_model": "gpt-4o-mini",
            "status": 200,
            "start_time": timestamp_to_proto(time.time() - 60),
            "duration_us": 900,
            "first_byte_us": 80,
            "stream": True,
            "trace_id": TRACE,
            **fields,
        }
    )
