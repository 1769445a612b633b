"""/api/usage/export and /api/requests: streamed through, narrowed by who asks, and never half an answer that looks whole."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from edge.exchange import EXCHANGE, Exchange
from edge.listener import Listener
from edge.routes.export import EXPORTS, ExportRoutes
from naru.api.accounting.v1 import usage_event_pb2, usage_service_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.clock import SystemClock
from naru.convert import timestamp_to_proto
from naru.errors import Reason, invalid_argument, unavailable
from naru.identity import Caller, Principal, Role, Scopes
from naru.usage_export import COLUMNS
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until

CALL = "UsageService/ExportUsage"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


def record(number: int, **fields: Any) -> usage_event_pb2.UsageRecord:
    """An exported event."""
    return usage_event_pb2.UsageRecord(
        **{
            "event_id": f"event-{number}",
            "attempt": 1,
            "reserve_time": timestamp_to_proto(1_800_000_000.25),
            "request_id": f"req_{number}",
            "workspace_id": "ws1",
            "key_id": "abcdefABCDEF",
            "requested_model": "gpt-4o-mini",
            "served_model": "smollm2",
            "endpoint": "/v1/chat/completions",
            "outcome": usage_event_pb2.OUTCOME_COMPLETED,
            "accuracy": usage_event_pb2.ACCURACY_EXACT,
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
            "cost": 42,
            **fields,
        }
    )


def part(*records: usage_event_pb2.UsageRecord) -> usage_service_pb2.ExportUsageResponse:
    return usage_service_pb2.ExportUsageResponse(records=records)


async def test_csv(edge: Harness) -> None:
    """A header and a line for each event, as a file to save; texts that a spreadsheet would run are made harmless."""
    edge.accounting.export = [
        part(record(0), record(1, end_time=timestamp_to_proto(1_800_000_001))),
        part(record(2, requested_model='=HYPERLINK("http://evil")', user_id='a,b\n"c"')),
    ]
    async with edge.get("/api/usage/export?key_id=abcdefABCDEF&start_time=2026-11-01T00:00:00Z") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/csv"
        assert answer.headers["Content-Disposition"].startswith('attachment; filename="naru-usage-')
        assert answer.headers["Content-Disposition"].endswith('.csv"')
        assert "Content-Length" not in answer.headers
        rows = list(csv.DictReader(io.StringIO(await answer.text(), newline="")))
    assert [tuple(row) for row in rows] == [COLUMNS] * 3
    assert [row["event_id"] for row in rows] == ["event-0", "event-1", "event-2"]
    assert (rows[0]["reserve_time"], rows[0]["end_time"]) == ("2027-01-15T08:00:00.250000Z", "")
    assert (rows[0]["prompt_tokens"], rows[0]["cost"], rows[0]["outcome"]) == ("7", "42", "completed")
    assert rows[1]["end_time"] == "2027-01-15T08:00:01.000000Z"
    assert (rows[2]["requested_model"], rows[2]["user_id"]) == ('\'=HYPERLINK("http://evil")', 'a,b\n"c"')
    (call,) = edge.accounting.rpcs.calls
    assert call.caller == Caller(principal=PRINCIPAL)
    assert call.request.key_id == "abcdefABCDEF"
    assert call.request.start_time.seconds == 1_793_491_200
    await until(lambda: edge.accounting.records)
    logged = edge.accounting.records[0]
    assert (logged.endpoint, logged.status, logged.stream) == ("/api/usage/export", 200, True)
    assert logged.response_bytes > 500


async def test_json_lines(edge: Harness) -> None:
    """An object on each line, exact."""
    edge.accounting.export = [part(record(0, requested_model="=모델")), part(record(1))]
    async with edge.get("/api/usage/export?format=jsonl") as answer:
        assert answer.content_type == "application/jsonl"
        rows = [json.loads(line) for line in (await answer.text()).splitlines()]
    assert [row["event_id"] for row in rows] == ["event-0", "event-1"]
    assert rows[0]["requested_model"] == "=모델"
    assert (rows[0]["end_time"], rows[0]["cost"], rows[0]["attempt"]) == (None, 42, 1)


@pytest.mark.parametrize("written", ["csv", "jsonl"])
async def test_an_export_of_nothing(edge: Harness, written: str) -> None:
    """The header alone, or nothing at all."""
    async with edge.get(f"/api/usage/export?format={written}") as answer:
        assert answer.status == 200
        assert len((await answer.text()).splitlines()) == (written == "csv")


@pytest.mark.parametrize(
    ("asked", "field"),
    [("format=xml", "format"), ("format=csv&format=csv", "format"), ("days=3", "days"), ("by=key", "by")],
)
async def test_bad_parameters_are_named(edge: Harness, asked: str, field: str) -> None:
    """Before accounting is asked."""
    async with edge.get(f"/api/usage/export?{asked}") as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == field
    assert edge.accounting.rpcs.calls == []


async def test_a_refusal_has_its_status(edge: Harness) -> None:
    """What fails before the first line is an error like any other."""
    edge.accounting.rpcs.answers[CALL] = invalid_argument("model", "No.")
    async with edge.get("/api/usage/export") as answer:
        assert (answer.status, (await answer.json())["error"]["param"]) == (400, "model")


async def test_an_export_that_breaks_is_cut_off(edge: Harness) -> None:
    """The client sees that it does not have all of it."""
    edge.accounting.export = [part(record(0)), unavailable("database")]
    with pytest.raises(aiohttp.ClientError):
        async with edge.get("/api/usage/export") as answer:
            assert answer.status == 200
            await answer.read()
    await until(lambda: edge.accounting.records)
    assert edge.accounting.records[0].reason == error_reason_pb2.ERROR_REASON_SERVICE_UNAVAILABLE


class UnreadExport:
    """Knows who asks, and has events until their machine takes no more."""

    def __init__(self) -> None:
        self.exchange = Exchange(request_id="req_1", endpoint="/", api=True, started=0.0, start_time=0.0)
        self.transport: asyncio.Transport | None = None

    async def authenticate(self, http: web.Request) -> Principal:
        assert http.transport is not None
        http[EXCHANGE] = self.exchange
        self.transport = http.transport
        # A size that is set does not grow.
        http.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        return PRINCIPAL

    @asynccontextmanager
    async def stream(self, *_: Any, **__: Any) -> AsyncIterator[AsyncIterator[usage_service_pb2.ExportUsageResponse]]:
        yield self._answers()

    async def _answers(self) -> AsyncIterator[usage_service_pb2.ExportUsageResponse]:
        assert self.transport is not None
        # From there on the server waits for its client.
        while self.transport.get_write_buffer_size() <= 65_536:
            yield part(record(0, requested_model="m" * 1_000))
            # By then the kernel took what it can.
            await asyncio.sleep(0.001)


async def test_the_end_of_an_export_does_not_wait_for_ever() -> None:
    """A client that leaves it unread is cut off, as one that leaves any other part unread."""
    played = UnreadExport()
    app = web.Application()
    routes = ExportRoutes(played, played, SystemClock(), stall_seconds=0.3)
    app.router.add_get("/api/usage/export", routes.handler(EXPORTS[0]))
    listener = Listener(app, max_header_bytes=8190, stall_seconds=60, shutdown_timeout=1)
    await listener.setup()
    try:
        await web.TCPSite(listener, "127.0.0.1", 0).start()
        assert listener.server is not None
        with socket.create_connection(listener.addresses[0]) as client:
            client.sendall(b"GET /api/usage/export HTTP/1.1\r\nHost: x\r\n\r\n")
            await until(lambda: played.transport)
            await until(lambda: not listener.server.connections)
        assert played.exchange.reason is Reason.CANCELLED
    finally:
        await listener.cleanup()


async def test_who_may_export_what(edge: Harness) -> None:
    """Nobody without a key; the admin's route is for those who manage."""
    async with edge.get("/api/admin/usage/export") as answer:
        assert answer.status == 403
    async with edge.http.get(edge.url + "/api/usage/export") as answer:
        assert answer.status == 401


async def test_a_scoped_key(edge: Harness) -> None:
    """Endpoint scopes hold here as well."""
    edge.auth.principals[KEY] = replace(PRINCIPAL, scopes=Scopes(endpoints=("/v1/chat/completions",)))
    for path in ("/api/usage/export", "/api/requests"):
        async with edge.get(path) as answer:
            assert answer.status == 403


async def test_an_admin_exports_days(tmp_path: Path) -> None:
    """`days` stands for whole days in UTC, today included."""
    async with edge_with_peers(tmp_path) as edge:
        edge.auth.principals[KEY] = replace(PRINCIPAL, role=Role.ADMIN)
        async with edge.get("/api/admin/usage/export?days=1&format=jsonl") as answer:
            assert answer.status == 200
        (call,) = edge.accounting.rpcs.calls
        assert call.request.start_time.seconds % 86_400 == 0


async def test_an_export_takes_no_more_memory_as_it_goes_on(edge: Harness) -> None:
    """Fifteen thousand rows through the edge: what the first few took is what all take."""
    whole = part(*(record(number) for number in range(500)))
    edge.accounting.export = [whole] * 30
    tracemalloc.start()
    try:
        size, peaks = 0, []
        async with edge.get("/api/usage/export?format=jsonl") as answer:
            async for chunk in answer.content.iter_chunked(1 << 16):
                size += len(chunk)
                if size > (len(peaks) + 1) << 19:
                    peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert size > 6 << 20
    assert peaks[-1] < peaks[1] + (4 << 20)


async def test_the_request_log_as_json(edge: Harness) -> None:
    """Filters go on, and lines come back with what was used."""
    line = usage_event_pb2.LoggedRequest(
        request_id="req_1",
        status=429,
        reason=error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
        start_time=timestamp_to_proto(1_800_000_000),
        usage={"prompt_tokens": 7},
        cost=5,
        outcome=usage_event_pb2.OUTCOME_ABORTED,
    )
    edge.accounting.rpcs.answers["UsageService/ListRequests"] = usage_service_pb2.ListRequestsResponse(
        requests=[line], next_page_token="next"
    )
    async with edge.get("/api/requests?status_class=4&trace_id=t&user_id=u&page_size=1") as answer:
        body = await answer.json()
    assert body["next_page_token"] == "next"
    (shown,) = body["requests"]
    assert (shown["request_id"], shown["status"], shown["reason"]) == ("req_1", 429, "rate_limit_exceeded")
    assert (shown["usage"]["prompt_tokens"], shown["cost"], shown["outcome"]) == (7, 5, "aborted")
    (call,) = edge.accounting.rpcs.calls
    assert call.request == usage_service_pb2.ListRequestsRequest(status_class=4, trace_id="t", user_id="u", page_size=1)
    async with edge.get("/api/admin/requests") as answer:
        assert answer.status == 403
