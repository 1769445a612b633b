"""Load on a whole installation while its processes are killed at random, and the books afterwards."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from accounting.tables import settlement_outbox, usage_events
from naru.testing.postgres_server import PostgresServer, postgres_cluster
from tests.support.platform import MODEL, Platform, children, command_line, platform, until

SERVICES = ("edge", "inference", "accounting")
VICTIMS = (*SERVICES, "redis", "postgres")
LEASE_SECONDS = 60.0
_PROMPT = [{"role": "user", "content": "Tell me about ferries."}]


@dataclass(slots=True)
class Told:
    """What a client was told of one request that was admitted."""

    request_id: str
    chunks: int = 0
    ending: str = "broken"
    completion_tokens: int = 0


@dataclass(slots=True)
class Story:
    """All that happened."""

    requests: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    told: list[Told] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    load_seconds: float = 0.0
    drain_seconds: float = 0.0
    outcomes: int = 0

    def endings(self) -> Counter[str]:
        """How the admitted requests ended, as their clients saw it."""
        return Counter(told.ending for told in self.told)


@contextmanager
def installation(folder: Path) -> Iterator[tuple[Platform, PostgresServer, str]]:
    """The services, with accounting on PostgreSQL; yields the database's URL too."""
    with postgres_cluster() as postgres:
        url = postgres.new_database()
        environ = {
            "NARU_INFERENCE_ENGINE": "simulated",
            "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "200",
            "NARU_ACCOUNTING_DATABASE_URL": url,
        }
        with platform(folder, environ) as naru:
            yield naru, postgres, url


async def unleash(
    naru: Platform, postgres: PostgresServer, *, requests: int, kills: int, at_once: int, seed: int
) -> Story:
    """Streams so many requests while so many processes are killed; ends when both are through."""
    story, chance = Story(), random.Random(seed)
    key = naru.new_key(description="chaos", tier="unlimited")
    started = time.monotonic()
    waiting = iter(range(requests))
    connector, headers = aiohttp.TCPConnector(limit=0), {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def client() -> None:
            for _ in waiting:
                story.requests += 1
                await _stream(session, naru.url, story, chance)

        killing = asyncio.create_task(_kill(naru, postgres, story, chance, kills))
        await asyncio.gather(*(client() for _ in range(at_once)))
        while not killing.done():
            await _stream(session, naru.url, story, chance)
            story.requests += 1
        await killing
    story.load_seconds = time.monotonic() - started
    return story


async def _stream(session: aiohttp.ClientSession, url: str, story: Story, chance: random.Random) -> None:
    hang_up_after = chance.randrange(1, 20) if chance.random() < 0.2 else None
    body = {
        "model": MODEL,
        "messages": _PROMPT,
        "max_tokens": chance.randrange(1, 40),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as response:
            if response.status != 200:
                story.refused[str(response.status)] += 1
                await asyncio.sleep(chance.uniform(0.05, 0.3))
                return
            told = Told(response.headers["X-Request-Id"])
            story.told.append(told)
            await _listen(response, told, hang_up_after)
    except (aiohttp.ClientError, TimeoutError):
        # Before the answer began: nobody knows whether it was admitted. After: `told` says broken.
        story.refused["unreachable"] += 1
        await asyncio.sleep(chance.uniform(0.05, 0.3))


async def _listen(response: aiohttp.ClientResponse, told: Told, hang_up_after: int | None) -> None:
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            told.ending = "complete" if told.ending != "error" else "error"
            return
        event = json.loads(line[6:])
        if "error" in event:
            told.ending = "error"
        elif event.get("usage"):
            told.completion_tokens = event["usage"]["completion_tokens"]
        elif event["choices"] and event["choices"][0]["delta"].get("content"):
            told.chunks += 1
            if hang_up_after is not None and told.chunks >= hang_up_after:
                told.ending = "hung up"
                response.close()
                return


async def _kill(naru: Platform, postgres: PostgresServer, story: Story, chance: random.Random, kills: int) -> None:
    """Kills one after the other, in turn and in random order, at random moments."""
    order: list[str] = []
    while sum(story.kills.values()) < kills:
        await asyncio.sleep(chance.uniform(0.5, 4.0))
        if not order:
            order = list(VICTIMS)
            chance.shuffle(order)
        victim = order.pop()
        if await asyncio.to_thread(_kill_one, naru, postgres, victim, chance.uniform(0.2, 1.5)):
            story.kills[victim] += 1
        else:
            order.append(victim)


def _kill_one(naru: Platform, postgres: PostgresServer, victim: str, away_seconds: float) -> bool:
    """Kills it with SIGKILL if it runs; the supervisor starts it again, or we do PostgreSQL after `away_seconds`."""
    if victim == "postgres":
        postgres.kill()
        time.sleep(away_seconds)
        _start_again(postgres)
        return True
    process_ids = (
        naru.service_ids(victim)
        if victim in SERVICES
        else [one for one in children(naru.process.pid) if "redis-server" in command_line(one)[0]]
    )
    for process_id in process_ids:
        with suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    return bool(process_ids)


def _start_again(postgres: PostgresServer) -> None:
    # Its other processes need a moment to notice that the first one is gone; until then it refuses to start.
    deadline = time.monotonic() + 30
    while True:
        try:
            postgres.start()
        except subprocess.CalledProcessError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)
        else:
            return


async def at_rest(naru: Platform, url: str, story: Story) -> None:
    """Returns when nothing is reserved, waits in the outbox or is unsettled: one lease and a drained journal later."""
    started = time.monotonic()
    engine = create_async_engine(url)

    async def open_work() -> int:
        async with engine.connect() as connection:
            unsettled = sa.select(sa.func.count()).where(usage_events.c.settled_time.is_(None))
            waiting = sa.select(sa.func.count()).select_from(settlement_outbox)
            return int((await connection.execute(unsettled)).scalar_one()) + int(
                (await connection.execute(waiting)).scalar_one()
            )

    try:
        deadline = started + 4 * LEASE_SECONDS
        while naru.leases() or await open_work():
            assert time.monotonic() < deadline, f"{naru.leases()} leases, {await open_work()} open\n{naru.diagnosis()}"
            await asyncio.sleep(0.5)
    finally:
        await engine.dispose()
    story.drain_seconds = time.monotonic() - started


@dataclass(frozen=True, slots=True)
class Billed:
    """What the books say of one request."""

    attempts: int
    evidence: int
    completion_tokens: int


async def books(url: str) -> dict[str, Billed]:
    """By request id: how many attempts have an outcome, and what the highest counts with."""
    engine = create_async_engine(url)
    found: dict[str, Billed] = {}
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(
                sa.select(
                    usage_events.c.request_id,
                    usage_events.c.event_id,
                    usage_events.c.attempt,
                    usage_events.c.evidence,
                    usage_events.c.completion_tokens,
                ).order_by(usage_events.c.request_id, usage_events.c.attempt)
            )
            for row in rows:
                before = found.get(row.request_id)
                found[row.request_id] = Billed(
                    1 + (before.attempts if before else 0), row.evidence, row.completion_tokens
                )
    finally:
        await engine.dispose()
    return found


def wrong(story: Story, billed: dict[str, Billed]) -> list[str]:
    """What does not agree between what clients were told and the books. Empty: everything does."""
    found = []
    for told in story.told:
        one = billed.get(told.request_id)
        if one is None:
            found.append(f"{told.request_id}: admitted, and has no outcome")
        elif told.ending == "complete" and one.completion_tokens != told.completion_tokens:
            found.append(f"{told.request_id}: answered {told.completion_tokens}, billed {one.completion_tokens}")
        elif one.completion_tokens < told.chunks and one.evidence >= 2:
            found.append(f"{told.request_id}: {told.chunks} chunks came, billed {one.completion_tokens}")
    return found


async def run(folder: Path, *, requests: int, kills: int, at_once: int, seed: int) -> tuple[Story, list[str]]:
    """The whole of it; what is wrong with the books afterwards."""
    with installation(folder) as (naru, postgres, url):
        story = await unleash(naru, postgres, requests=requests, kills=kills, at_once=at_once, seed=seed)
        until(lambda: naru.service_ids("accounting") != [], 30, "accounting to be back")
        await at_rest(naru, url, story)
        billed = await books(url)
    story.outcomes = len(billed)
    return story, wrong(story, billed)


def report(story: Story, found: list[str], seed: int) -> str:
    """What happened, as Markdown."""
    rows = [
        ("requests", story.requests),
        ("admitted (HTTP 200)", len(story.told)),
        *((f"admitted, {ending}", number) for ending, number in sorted(story.endings().items())),
        *((f"not admitted: {why}", number) for why, number in sorted(story.refused.items())),
        *((f"kills of {victim}", number) for victim, number in sorted(story.kills.items())),
        ("seconds of load", round(story.load_seconds)),
        ("seconds until the books were at rest", round(story.drain_seconds)),
        ("requests with an outcome", story.outcomes),
        ("disagreements", len(found)),
    ]
    table = [f"| {what} | {number:,} |" for what, number in rows]
    return "\n".join(["| | |", "| --- | ---: |", f"| seed | {seed} |", *table, "", *found, ""])


def main() -> int:
    """`python -m tests.support.chaos`: the long form; prints its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="naru-chaos-") as folder:
        story, found = asyncio.run(
            run(
                Path(folder) / "state",
                requests=arguments.requests,
                kills=arguments.kills,
                at_once=arguments.at_once,
                seed=arguments.seed,
            )
        )
    print(report(story, found, arguments.seed))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
