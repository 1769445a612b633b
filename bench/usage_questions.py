"""How fast questions about a month of usage are answered, above millions of single events.

`python -m bench.usage_questions` fills PostgreSQL with events, lets the service's own roller sum them, and asks over gRPC. It
takes about a gigabyte of disk for each two million events.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass

import asyncpg

from accounting.migrations import MIGRATIONS
from bench.load import percentile
from bench.service import KEYS, WORKSPACES, Address, accounting
from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.database import Database
from naru.identity import ServiceName
from naru.testing.postgres_server import postgres_cluster
from naru.testing.redis_server import redis_server

_HOUR, _DAYS, _MODELS, _ENDPOINTS = 3_600, 30, 5, 3
_BATCH = 500_000
_ASKED = 10
_KEY, _MODEL, _DAY, _WORKSPACE, _HOURS = (
    usage_service_pb2.USAGE_DIMENSION_KEY,
    usage_service_pb2.USAGE_DIMENSION_MODEL,
    usage_service_pb2.USAGE_DIMENSION_DAY,
    usage_service_pb2.USAGE_DIMENSION_WORKSPACE,
    usage_service_pb2.USAGE_DIMENSION_HOUR,
)
# Evenly spread, which leaves the most sums: nearly every key uses every model at every endpoint in every hour.
_EVENTS = f"""
    INSERT INTO usage_events (event_id, attempt, evidence, accuracy, outcome, key_id, user_id, service_account, workspace_id,
        tier, requested_model, served_model, endpoint, prompt_tokens, completion_tokens, cached_prompt_tokens,
        reasoning_tokens, reserve_time, accept_time, end_time, request_id, replica, epoch, record_time, settled_time, cost,
        price_id)
    SELECT substr(id, 1, 8) || '-' || substr(id, 9, 4) || '-7000-8000-' || lpad(to_hex(number), 12, '0'), 0, 3, 'exact',
        'completed', 'key' || lpad((spread % {KEYS})::text, 9, '0'), '', '', 'ws-' || spread % {WORKSPACES}, 'bench',
        'model-' || spread / {KEYS} % {_MODELS}, 'model-' || spread / {KEYS} % {_MODELS},
        '/v1/endpoint-' || spread / {KEYS * _MODELS} % {_ENDPOINTS}, 100 + spread % 1000, spread % 300, spread % 100, 0,
        time, time, time, 'req_' || number, 'bench', 'bench', time, time, 1000 + spread % 100000, 'price'
    FROM (
        SELECT number, time, lpad(to_hex(time / 1000), 12, '0') AS id, hashint8(number)::bigint & 2147483647 AS spread
        FROM (SELECT number, $3::bigint + number * $4::bigint AS time FROM generate_series($1::bigint, $2::bigint) number) n
    ) e
"""
# What a transaction that recorded all of them would have noted.
_CHANGES = """
    INSERT INTO usage_changes (hour, workspace_id, key_id, user_id, service_account, model, endpoint, requests,
        unpriced_requests, cost, prompt_tokens, completion_tokens, cached_prompt_tokens, reasoning_tokens)
    SELECT reserve_time / 3600000000, workspace_id, key_id, user_id, service_account, served_model, endpoint, count(*), 0,
        sum(cost), sum(prompt_tokens), sum(completion_tokens), sum(cached_prompt_tokens), 0
    FROM usage_events GROUP BY 1, 2, 3, 4, 5, 6, 7
"""
_TOTAL = "SELECT count(*), sum(cost), sum(prompt_tokens), sum(completion_tokens) FROM usage_events"
_SUMMED = "SELECT sum(requests), sum(cost), sum(prompt_tokens), sum(completion_tokens) FROM usage_{}s"


@dataclass(frozen=True, slots=True)
class Question:
    """A question, and which page of its answer is asked for."""

    what: str
    group_by: tuple[usage_service_pb2.UsageDimension.ValueType, ...] = ()
    workspace_id: str = ""
    offset: float = 0.0
    page: int = 0


_QUESTIONS = (
    Question("total"),
    Question("total, from within an hour", offset=25 * 60),
    Question("by day", (_DAY,)),
    Question("by model", (_MODEL,)),
    Question("by key", (_KEY,)),
    Question("by workspace and day", (_WORKSPACE, _DAY)),
    Question("by key, model and day, first page", (_KEY, _MODEL, _DAY)),
    Question("by key, model and day, 150th page", (_KEY, _MODEL, _DAY), page=149),
    Question("one workspace, by hour", (_HOURS,), workspace_id="ws-7"),
    Question("one workspace, by key and day", (_KEY, _DAY), workspace_id="ws-7"),
)


async def fill(url: str, rows: int, start: int) -> None:
    """That many events in a month, evenly, and what they change in the sums."""
    database = Database(url)
    await MIGRATIONS.upgrade(database)
    await database.close()
    connection = await asyncpg.connect(_plain(url))
    step = _DAYS * 24 * _HOUR * 1_000_000 // rows
    indexes = await connection.fetch(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'usage_events' AND indexname NOT LIKE 'pk_%'"
    )
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['indexname']}")
    for first in range(0, rows, _BATCH):
        await connection.execute(_EVENTS, first, min(first + _BATCH, rows) - 1, start * 1_000_000, step)
    for index in indexes:
        await connection.execute(index["indexdef"])
    await connection.execute(_CHANGES)
    await connection.close()


async def rolled(url: str) -> None:
    """Returns once the service has summed everything, and checks that it has."""
    connection = await asyncpg.connect(_plain(url))
    while await connection.fetchval("SELECT count(*) FROM usage_changes"):  # noqa: ASYNC110 -- another process sums
        await asyncio.sleep(1)
    raw = await connection.fetchrow(_TOTAL)
    for table in ("hour", "day"):
        if await connection.fetchrow(_SUMMED.format(table)) != raw:
            raise RuntimeError(f"the sums by the {table} are not those of the events")
    # As autovacuum does in time.
    await connection.execute("VACUUM ANALYZE")
    for table in ("usage_events", "usage_hours", "usage_days"):
        count = await connection.fetchval(f"SELECT count(*) FROM {table}")
        print(f"{table:14s} {count:12,} rows")
    await connection.close()


async def ask(client: ServiceClient, question: Question, start: int) -> tuple[list[float], int]:
    """How long each of several calls took, in order, and how many rows an answer had."""
    stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
    request = usage_service_pb2.QueryUsageRequest(
        group_by=question.group_by,
        start_time=timestamp_to_proto(start + question.offset),
        end_time=timestamp_to_proto(start + _DAYS * 24 * _HOUR),
        workspace_id=question.workspace_id,
        page_size=100,
    )
    for _ in range(question.page):
        answer = await client.call(stub.QueryUsage, request, timeout=60)
        request.page_token = answer.next_page_token
    latencies = []
    for _ in range(_ASKED):
        begun = time.monotonic()
        answer = await client.call(stub.QueryUsage, request, timeout=60)
        latencies.append(time.monotonic() - begun)
    return sorted(latencies), len(answer.rows)


async def questions(address: Address, url: str, start: int) -> None:
    """Asks all of them."""
    begun = time.monotonic()
    await rolled(url)
    print(f"summed in {time.monotonic() - begun:.0f} s")
    client = address.client(ServiceName.OPERATOR)
    for question in _QUESTIONS:
        latencies, found = await ask(client, question, start)
        median, worst = percentile(latencies, 0.5) * 1_000, latencies[-1] * 1_000
        print(f"{question.what:36s} {found:4d} rows   p50 {median:6.0f} ms   worst {worst:6.0f} ms", flush=True)
    await client.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    # Whole days, the last of them yesterday.
    start = (int(time.time()) // 86_400 - _DAYS) * 86_400
    with redis_server() as redis_url, postgres_cluster() as cluster:
        database_url = cluster.new_database()
        begun = time.monotonic()
        asyncio.run(fill(database_url, arguments.rows, start))
        print(f"filled in {time.monotonic() - begun:.0f} s", flush=True)
        with accounting(database_url, redis_url) as address:
            asyncio.run(questions(address, database_url, start))


def _plain(url: str) -> str:
    """The URL without SQLAlchemy's driver."""
    return url.replace("+asyncpg", "")


if __name__ == "__main__":
    main()
