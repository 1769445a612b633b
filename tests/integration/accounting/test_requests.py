"""The request log with what requests used, and exports of single usage events."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest
import sqlalchemy as sa

from accounting.quota import EventRef
from accounting.settlement import BookedEvent
from accounting.tables import request_log, usage_events
from accounting.usage.report_store import ReportStore
from accounting.usage.reporting import UsageQuery, UsageRecord
from accounting.usage.request_log import LoggedRequest, RequestQuery, RequestRecord, RequestUsage
from accounting.usage.request_store import RequestStore
from accounting.usage.store import UsageStore
from naru.database import Database
from naru.ids import uuid7
from naru.usage import Accuracy, Evidence, Outcome, Usage
from tests.integration.accounting.harness import PRINCIPAL, SECOND, START, booked, new_ref, refused, report
from tests.support.copies import replace

TRACE = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def requests(database: Database) -> RequestStore:
    return RequestStore(database)


def line(number: int, **fields: Any) -> RequestRecord:
    """The line of a request that came in so many seconds after the start."""
    record = RequestRecord(
        request_id=f"req_{number}",
        start_time=START + number * SECOND,
        event_id="",
        principal=PRINCIPAL,
        endpoint="/v1/chat/completions",
        requested_model="gpt-4o-mini",
        status=200,
        reason="",
        duration_us=500_000,
        first_byte_us=20_000,
        request_bytes=3,
        response_bytes=4,
        stream=True,
        trace_id="",
    )
    return replace(record, **fields)


async def names(requests: RequestStore, **filters: Any) -> list[str]:
    """The request ids that a question finds, in order."""
    found, _ = await requests.requests(RequestQuery(**filters), 0, "")
    return [one.record.request_id for one in found]


async def test_the_request_log_takes_each_request_once(requests: RequestStore, database: Database) -> None:
    """The same record again, in the same batch or another, is the same line."""
    record = line(1)
    nobody = line(2, principal=None, status=401, reason="INVALID_API_KEY")
    await asyncio.gather(*(requests.log_requests([record, nobody, record]) for _ in range(5)))
    async with database.reading() as connection:
        rows = (await connection.execute(sa.select(request_log))).all()
    assert sorted((row.request_id, row.status, row.key_id) for row in rows) == [
        ("req_1", 200, "key-1"),
        ("req_2", 401, ""),
    ]


async def test_a_line_tells_what_the_request_used(requests: RequestStore, store: UsageStore) -> None:
    """Of the attempt that counts, once it is settled; a refused request has nothing."""
    used, waiting, retried = new_ref(), new_ref(), new_ref()
    await store.record([BookedEvent(report(used), START, 42, "price")], START)
    await store.record([booked(report(waiting, Evidence.DELIVERED))], START)
    await store.record([booked(report(retried, tokens=(1, 1)))], START)
    await store.record([booked(report(EventRef(retried.event_id, 1), tokens=(2, 2)))], START)
    lines = [line(number, event_id=ref.event_id) for number, ref in enumerate((used, waiting, retried))]
    lines.append(line(3, principal=None, status=401, reason="INVALID_API_KEY"))
    await requests.log_requests(lines)
    found, token = await requests.requests(RequestQuery(), 0, "")
    assert token == ""

    def settled(tokens: tuple[int, int], cost: int) -> RequestUsage:
        return RequestUsage("smollm2", Usage(*tokens), cost, Outcome.COMPLETED, Accuracy.EXACT)

    who = replace(PRINCIPAL, tier="free")
    assert found == [
        LoggedRequest(lines[3], None),
        LoggedRequest(replace(lines[2], principal=who), settled((2, 2), 0)),
        LoggedRequest(replace(lines[1], principal=who), None),
        LoggedRequest(replace(lines[0], principal=who), settled((7, 3), 42)),
    ]


async def test_filters(requests: RequestStore, store: UsageStore) -> None:
    """Each alone, and several together."""
    ref = new_ref()
    await store.record([booked(report(ref))], START)
    other = replace(PRINCIPAL, workspace_id="ws-2", key_id="key-2", user_id="user-2")
    await requests.log_requests(
        [
            line(1, event_id=ref.event_id),
            line(2, status=429, principal=other, requested_model="large"),
            line(3, status=404, endpoint="/v1/completions", trace_id=TRACE),
            line(4, status=503),
        ]
    )
    for filters, expected in (
        ({}, [4, 3, 2, 1]),
        ({"key_id": "key-2"}, [2]),
        ({"user_id": "user-1"}, [4, 3, 1]),
        ({"workspace_id": "ws-2"}, [2]),
        ({"model": "large"}, [2]),
        ({"model": "smollm2"}, [1]),
        ({"endpoint": "/v1/completions"}, [3]),
        ({"status": 503}, [4]),
        ({"status_class": 4}, [3, 2]),
        ({"status_class": 4, "key_id": "key-1"}, [3]),
        ({"start_time": START + 2 * SECOND, "end_time": START + 4 * SECOND}, [3, 2]),
        ({"request_id": "req_2"}, [2]),
        ({"trace_id": TRACE}, [3]),
        ({"key_id": "key-2", "status": 200}, []),
    ):
        assert await names(requests, **filters) == [f"req_{number}" for number in expected], filters


@pytest.mark.parametrize(
    ("field", "filters"),
    [
        ("status", {"status": 99}),
        ("status", {"status": 600}),
        ("status", {"status": -1}),
        ("status_class", {"status_class": 6}),
        ("status_class", {"status_class": -1}),
        ("status_class", {"status_class": 4, "status": 404}),
        ("trace_id", {"trace_id": "0AF7651916CD43DD8448EB211C80319C"}),
        ("end_time", {"start_time": START, "end_time": START}),
    ],
)
async def test_bad_filters_are_named(requests: RequestStore, field: str, filters: dict[str, Any]) -> None:
    """What no request can pass is an error, not an empty list."""
    assert (await refused(requests.requests(RequestQuery(**filters), 0, ""))).metadata == {"field": field}


async def test_pages_while_requests_arrive(requests: RequestStore) -> None:
    """Nobody is seen twice or missed who was there when the first page was read; equal times are told apart."""
    await requests.log_requests([line(number // 2, request_id=f"old_{number:02}") for number in range(20)])
    seen: list[str] = []
    token, query = "", RequestQuery(key_id="key-1")
    for round_ in range(100):
        found, token = await requests.requests(query, 3, token)
        seen += [one.record.request_id for one in found]
        await requests.log_requests([line(100 + round_), line(1, request_id=f"late_{round_}")])
        if not token:
            break
    assert [name for name in seen if name.startswith("old")] == [f"old_{number:02}" for number in reversed(range(20))]
    assert len(seen) == len(set(seen))
    _, token = await requests.requests(query, 3, "")
    for wrong in (RequestQuery(key_id="key-2"), RequestQuery()):
        assert (await refused(requests.requests(wrong, 3, token))).metadata == {"field": "page_token"}
    assert (await refused(requests.requests(query, 3, token[:-4] + "AAAA"))).metadata == {"field": "page_token"}


async def exported(requests: RequestStore, query: UsageQuery) -> list[UsageRecord]:
    """All of an export."""
    return [record async for chunk in requests.export(query) for record in chunk]


async def test_an_export_has_what_the_sums_have(
    requests: RequestStore, reports: ReportStore, store: UsageStore
) -> None:
    """Event by event, the oldest first, and nothing that does not count."""
    first, second, retried, waiting = (new_ref() for _ in range(4))
    await store.record([BookedEvent(report(second), START + 1, 5, "price")], START)
    await store.record([booked(report(first, tokens=(1, 2)))], START)
    await store.record([booked(report(retried)), booked(report(EventRef(retried.event_id, 1)), START + 2)], START)
    await store.record([booked(report(waiting, Evidence.ACCEPTED))], START)
    records = await exported(requests, UsageQuery())
    assert [(record.ref, record.reserve_time, record.cost) for record in records] == [
        (first, START, 0),
        (second, START + 1, 5),
        (EventRef(retried.event_id, 1), START + 2, 0),
    ]
    assert records[1].work == report(second).work
    assert records[1].price_id == "price"
    (row,) = await reports.usage(UsageQuery(), None, 1)
    assert (row.requests, row.usage.prompt_tokens) == (3, sum(record.usage.prompt_tokens for record in records))
    narrow = UsageQuery(start_time=START + 1, end_time=START + 2, key_id="key-1", endpoint="/v1/chat/completions")
    assert [record.ref for record in await exported(requests, narrow)] == [second]
    assert await exported(requests, UsageQuery(user_id="nobody")) == []
    assert await reports.about(narrow) == 3


async def test_an_export_keeps_its_memory(requests: RequestStore, database: Database) -> None:
    """20,000 rows, 50 of them at each moment, take no more than a few chunks do."""
    await many(database, 20_000)
    tracemalloc.start()
    try:
        count, times, peaks = 0, [], []
        async for chunk in requests.export(UsageQuery()):
            assert 0 < len(chunk) <= 500
            count += len(chunk)
            times += [chunk[0].reserve_time, chunk[-1].reserve_time]
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert times == sorted(times)
    # Twenty chunks take no more than the first ones did.
    assert peaks[-1] < 1.5 * peaks[3]
    assert peaks[-1] < 4 << 20


async def many(database: Database, count: int) -> None:
    """So many settled events, fifty at each moment."""
    rows = [
        {
            "event_id": uuid7(),
            "attempt": 0,
            "evidence": 3,
            "accuracy": "exact",
            "outcome": "completed",
            "key_id": "key-1",
            "user_id": "user-1",
            "service_account": "",
            "workspace_id": "ws-1",
            "tier": "free",
            "requested_model": "gpt-4o-mini",
            "served_model": "smollm2",
            "endpoint": "/v1/chat/completions",
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "cached_prompt_tokens": 0,
            "reasoning_tokens": 0,
            "reserve_time": START + number // 50 * SECOND,
            "request_id": f"req_{number}",
            "replica": "",
            "epoch": "",
            "record_time": START,
            "settled_time": START,
        }
        for number in range(count)
    ]
    async with database.writing() as connection:
        for start in range(0, count, 2_000):
            await connection.execute(usage_events.insert(), rows[start : start + 2_000])
