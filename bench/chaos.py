"""Load on a whole installation while its processes are killed at random, and the books afterwards.

`python -m bench.chaos` prints its report; the exit code is 1 when something did not agree.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp

from bench.chaos_books import Kill, Story, Told, disagreements, read_books, read_worked
from bench.chaos_rest import money_wrong, wait_for_rest
from bench.installation import Installation, installation
from naru import api_key
from tests.support.platform import MODEL

SERVICES = ("edge", "inference", "accounting")
VICTIMS = (*SERVICES, "redis", "postgres")
_PROMPT = [{"role": "user", "content": "Tell me about ferries."}]
_MOST_TOLD = 50
_HEAD = """# Chaos

Streams on the simulated engine while edge, inference, accounting, Redis (AOF) and PostgreSQL are each killed with SIGKILL at
random moments, and clients hang up. After the load one lease passes and the journal drains. Then each request is looked up
by its id with its client, in the engine's own account and in the books: it has one outcome, billed with what the engine
generated where its process lived, else with what the edge delivered, with the prompt alone where that died as well. VerifyLedger
finds nothing; Redis holds no lease, no place in flight and no open reservation; the limiter's credit is the ledger's balance;
the ledger's cost is that of the tokens in the books.
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what.

    Attributes:
        requests: At least so many that are admitted; as many more as it takes for the kills.
        kills: So many; the load goes on until they are done.
        at_once: Clients that ask one request after the other.
        calm: Seconds between kills at most.
        lease_seconds: Length of a lease.
    """

    requests: int
    kills: int
    at_once: int
    seed: int
    calm: float
    lease_seconds: float


class Chaos:
    """Puts load on an installation and kills its processes meanwhile."""

    def __init__(self, running: Installation, plan: Plan) -> None:
        self._naru = running.naru
        self._postgres = running.postgres
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._numbers = itertools.count()
        self.story = Story()
        self.key = self._naru.new_key(description="chaos", tier="busy")

    async def run(self) -> None:
        """Ends when both load and kills are through, and every client has heard the end of its last request."""
        started = time.monotonic()
        connector, headers = aiohttp.TCPConnector(limit=0), {"Authorization": f"Bearer {self.key}"}
        timeout = aiohttp.ClientTimeout(total=60)
        async with (
            aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for work in (self._kill(), *(self._client(session) for _ in range(self._plan.at_once))):
                _ = tasks.create_task(work)
        self.story.load_seconds = time.monotonic() - started

    def _goes_on(self) -> bool:
        return self.story.admitted < self._plan.requests or len(self.story.kills) < self._plan.kills

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while self._goes_on():
            # The same name for client, engine and books.
            request_id = f"chaos-{next(self._numbers)}"
            told = self.story.told[request_id] = Told(time.monotonic())
            try:
                await self._stream(session, request_id, told)
            except (aiohttp.ClientError, TimeoutError) as error:
                told.answer = told.answer or type(error).__name__
            told.ended = time.monotonic()
            if not told.admitted:
                await asyncio.sleep(self._chance.uniform(0.1, 0.6))

    async def _stream(self, session: aiohttp.ClientSession, request_id: str, told: Told) -> None:
        chance = self._chance
        hang_up_after = chance.randrange(1, 20) if chance.random() < 0.2 else None
        body = {
            "model": MODEL,
            "messages": _PROMPT,
            "max_tokens": chance.randrange(1, 40),
            "n": 2 if chance.random() < 0.1 else 1,
            "user": request_id,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        url, headers = f"{self._naru.url}/v1/chat/completions", {"X-Request-Id": request_id}
        async with session.post(url, json=body, headers=headers) as response:
            told.answer = str(response.status)
            if told.admitted:
                self.story.admitted += 1
                told.ending = "broken"
                await _listen(response, told, hang_up_after)

    async def _kill(self) -> None:
        """Kills one after the other, in rounds of random order, at random moments."""
        order: list[str] = []
        while len(self.story.kills) < self._plan.kills:
            assert self._naru.process.poll() is None, self._naru.diagnosis()
            await asyncio.sleep(self._chance.uniform(0.2, self._plan.calm))
            if not order:
                order = list(VICTIMS)
                self._chance.shuffle(order)
            victim = order.pop()
            away_seconds = self._chance.uniform(0.2, 1.5)
            killed = await asyncio.to_thread(self._kill_one, victim, away_seconds)
            if killed:
                self.story.kills.append(killed)
            else:
                order.append(victim)

    def _kill_one(self, victim: str, away_seconds: float) -> Kill | None:
        """Kills it with SIGKILL if it runs. The supervisor starts it again; PostgreSQL we do, after `away_seconds`."""
        if victim == "postgres":
            process_ids = [self._postgres.pid]
        elif victim == "redis":
            process_ids = self._naru.redis_ids()
        else:
            process_ids = self._naru.service_ids(victim)
        if not process_ids:
            return None
        killed = Kill(victim, time.monotonic(), tuple(process_ids))
        for process_id in process_ids:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        if victim == "postgres":
            time.sleep(away_seconds)
            self._start_postgres()
        return killed

    def _start_postgres(self) -> None:
        # Its other processes need a moment to notice that the first one is gone; until then it refuses to start.
        deadline = time.monotonic() + 30
        while True:
            try:
                self._postgres.start()
            except subprocess.CalledProcessError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.3)
            else:
                return


async def _listen(response: aiohttp.ClientResponse, told: Told, hang_up_after: int | None) -> None:
    async for line in response.content:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            told.ending = "error" if told.ending == "error" else "complete"
            return
        event = json.loads(line[6:])
        if "error" in event:
            told.ending = "error"
        elif event.get("usage"):
            told.completion_tokens = event["usage"]["completion_tokens"]
        else:
            # A token of the simulated engine is a word.
            told.words += sum(len((one["delta"].get("content") or "").split()) for one in event["choices"])
            if hang_up_after is not None and told.words >= hang_up_after:
                told.ending = "hung up"
                response.close()
                return


@dataclass(frozen=True, slots=True)
class Result:
    """What happened, and what is wrong; nothing should be."""

    story: Story
    facts: dict[str, int]
    wrong: tuple[str, ...]


async def run(folder: Path, plan: Plan) -> Result:
    """The whole of it."""
    account = folder / "engine.jsonl"
    environ = {
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "100",
        "NARU_INFERENCE_SIMULATED_ACCOUNT": str(account),
        "NARU_LEASE_SECONDS": str(plan.lease_seconds),
    }
    with installation(folder, environ) as running:
        chaos = Chaos(running, plan)
        await chaos.run()
        story, stopped = chaos.story, time.monotonic()
        unrest = await wait_for_rest(running, plan.lease_seconds)
        story.drain_seconds = time.monotonic() - stopped
        books, worked = await read_books(running.database_url), read_worked(account)
        key_id = api_key.parse(chaos.key).key_id
        money, verified = await asyncio.to_thread(money_wrong, running.naru, key_id, books)
    evidence = Counter(one.evidence.name.lower() for rows in books.values() for one in rows)
    lived = sum(work.ended for work in worked.values())
    facts = {
        "requests that the engine took": len(worked),
        "of these, ended while their process lived": lived,
        "of these, killed with their process": len(worked) - lived,
        "tokens that the engine generated for those that ended": sum(one.generated for one in worked.values()),
        **{f"outcomes by evidence `{name}`": number for name, number in sorted(evidence.items())},
        "events that VerifyLedger compared": verified.events,
        "ledger entries that it compared": verified.entries,
    }
    return Result(story, facts, (*unrest, *disagreements(story, worked, books), *money))


def report(plan: Plan, result: Result) -> str:
    """What happened, as Markdown."""
    story = result.story
    admitted = [told for told in story.told.values() if told.admitted]
    rows = {
        "requests": len(story.told),
        "admitted (HTTP 200)": len(admitted),
        **_counted("admitted, stream", (told.ending for told in admitted)),
        **_counted("not admitted:", (told.answer for told in story.told.values() if not told.admitted)),
        "kills": len(story.kills),
        **_counted("kills of", (kill.victim for kill in story.kills)),
        "seconds of load": round(story.load_seconds),
        "length of a lease in seconds": round(plan.lease_seconds),
        "seconds until all was at rest": round(story.drain_seconds),
        **result.facts,
        "disagreements": len(result.wrong),
    }
    options = [f"--{name.replace('_', '-')} {value}" for name, value in asdict(plan).items()]
    command = f"python -m bench.chaos {' '.join(options)}"
    table = [f"| {what} | {number:,} |" for what, number in rows.items()]
    wrong = [f"- {one}" for one in result.wrong[:_MOST_TOLD]]
    return "\n".join(
        [_HEAD, f"```\n{command}\n```", "", "| | |", "| --- | ---: |", *table, *([""] if wrong else []), *wrong]
    )


def _counted(what: str, values: Iterable[str]) -> dict[str, int]:
    return {f"{what} {value}": number for value, number in sorted(Counter(values).items())}


def main() -> int:
    """The long form; prints its report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--at-once", type=int, default=40)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--calm", type=float, default=20.0, help="seconds between kills at most")
    parser.add_argument("--lease-seconds", type=float, default=60.0)
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory(prefix="naru-chaos-") as folder:
        result = asyncio.run(run(Path(folder), plan))
    print(report(plan, result))
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
