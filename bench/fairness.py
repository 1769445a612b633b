"""Whether one workspace that floods a busy engine makes another one wait: time to first token, over HTTP, in one run.

`python -m bench.fairness`: the four services on the simulated engine. A quiet workspace asks a few requests at a time, first
alone, then while another workspace keeps all slots full and a hundred requests waiting. The last row is what it would be if
nobody told the two apart: the same flood with keys of one workspace, which are served in the order in which they come.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.load import percentile
from tests.support.platform import MODEL, Platform, platform

_PROMPT = [{"role": "user", "content": "Tell me about ferries."}]
_QUIET_TOKENS = 2
_FEWER = 5
_REQUEST_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of what.

    Attributes:
        slots: Choices that the engine works on at the same time.
        backlog: Requests of the flooding workspace that wait at any time.
        quiet: Clients of the other one, which ask one request after the other.
        requests: What each of these asks in each part; a fifth of that in the last one, in which all wait long.
        tokens_per_second: Of the engine, per choice.
        prefill_seconds: Of the engine.
        settle_seconds: How long the flood goes on before anything is measured.
    """

    slots: int
    backlog: int
    quiet: int
    requests: int
    tokens_per_second: float
    prefill_seconds: float
    settle_seconds: float
    seed: int


@dataclass(slots=True)
class Part:
    """What the quiet workspace saw in one part, and how many answers the flood got meanwhile."""

    first_token_seconds: list[float] = field(default_factory=list)
    flood_answers: Counter[int] = field(default_factory=Counter)
    seconds: float = 0.0

    def milliseconds(self, share: float) -> float:
        """A percentile of the time to the first token."""
        return 1000 * percentile(sorted(self.first_token_seconds), share)


class Tenants:
    """Clients of two workspaces.

    Args:
        naru: The installation.
        plan: What to do.
    """

    def __init__(self, naru: Platform, plan: Plan, session: aiohttp.ClientSession) -> None:
        self._url = f"{naru.url}/v1/chat/completions"
        self._plan = plan
        self._session = session
        self._chance = random.Random(plan.seed)

    async def quiet(self, key: str, part: Part, requests: int) -> None:
        """All of the quiet workspace's requests, so many of each client."""
        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._plan.quiet):
                _ = tasks.create_task(self._ask_quietly(key, part, requests))
        part.seconds = time.monotonic() - started

    @asynccontextmanager
    async def flood(self, key: str, part: Part) -> AsyncIterator[None]:
        """Keeps the engine full inside the block, in which its answers are counted."""
        answers: Counter[int] = Counter()
        tasks = [
            asyncio.create_task(self._ask_on_and_on(key, answers)) for _ in range(self._plan.slots + self._plan.backlog)
        ]
        try:
            # By then the slots become free one by one, and not all at the same time as they were taken.
            await asyncio.sleep(self._plan.settle_seconds)
            before = answers.copy()
            yield
            part.flood_answers = answers - before
        finally:
            for task in tasks:
                _ = task.cancel()
            _ = await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.result()

    async def _ask_quietly(self, key: str, part: Part, requests: int) -> None:
        for _ in range(requests):
            # Like people, and unlike the flood, they do not ask again the moment they are answered.
            await asyncio.sleep(self._chance.uniform(0, 0.2))
            started = time.monotonic()
            async with self._session.post(
                self._url, json=_body(_QUIET_TOKENS, stream=True), headers=_auth(key)
            ) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if b'"content":"' in line and b'"content":""' not in line:
                        part.first_token_seconds.append(time.monotonic() - started)
                        break
                _ = await answer.read()

    async def _ask_on_and_on(self, key: str, answers: Counter[int]) -> None:
        while True:
            body = _body(self._chance.randrange(20, 80), stream=False)
            async with self._session.post(self._url, json=body, headers=_auth(key)) as answer:
                _ = await answer.read()
                answers[answer.status] += 1


def _auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _body(max_tokens: int, *, stream: bool) -> dict[str, object]:
    return {"model": MODEL, "messages": _PROMPT, "max_tokens": max_tokens, "ignore_eos": True, "stream": stream}


async def run(folder: Path, plan: Plan) -> dict[str, Part]:
    """Alone, beside another workspace's flood, and in the same workspace as the flood."""
    environ = {
        "NARU_INFERENCE_ENGINE": "simulated",
        "NARU_INFERENCE_SIMULATED_SLOTS": str(plan.slots),
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": str(plan.tokens_per_second),
        "NARU_INFERENCE_SIMULATED_PREFILL_SECONDS": str(plan.prefill_seconds),
        "NARU_LOG_LEVEL": "warning",
    }
    parts = {name: Part() for name in ("alone", "other workspace floods", "own workspace floods")}
    alone, beside, within = parts.values()
    timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
    connector = aiohttp.TCPConnector(limit=0)
    with platform(folder / "state", environ) as naru:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            tenants = Tenants(naru, plan, session)
            quiet, flooding = (
                naru.new_key(description=name, workspace_id=naru.new_workspace(name), tier="unlimited")
                for name in ("quiet", "flooding")
            )
            await tenants.quiet(quiet, alone, plan.requests)
            async with tenants.flood(flooding, beside):
                await tenants.quiet(quiet, beside, plan.requests)
            async with tenants.flood(quiet, within):
                await tenants.quiet(quiet, within, plan.requests // _FEWER)
    return parts


def report(plan: Plan, parts: dict[str, Part]) -> str:
    """The figures, as Markdown."""
    alone = parts["alone"].milliseconds(0.95)
    rows = [
        f"| {name} | {part.milliseconds(0.5):.0f} | {part.milliseconds(0.95):.0f} | {part.milliseconds(0.95) / alone:.2f} "
        f"| {part.flood_answers[200] / part.seconds:.1f} | {part.flood_answers.total() - part.flood_answers[200]} |"
        for name, part in parts.items()
    ]
    return "\n".join(
        [
            f"{plan.slots} slots, {plan.backlog} requests of the flood waiting, {plan.quiet} quiet clients.",
            "",
            "| quiet workspace | first token, p50 ms | p95 ms | p95 / alone | flood's answers per s | flood's refusals |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
            *rows,
        ]
    )


def main() -> int:
    """Prints the figures; exit code 1 when the quiet workspace's p95 is more than twice what it is alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--backlog", type=int, default=100)
    parser.add_argument("--quiet", type=int, default=4)
    parser.add_argument("--requests", type=int, default=25)
    parser.add_argument("--tokens-per-second", type=float, default=20.0)
    parser.add_argument("--prefill-seconds", type=float, default=0.25)
    parser.add_argument("--settle-seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=1)
    plan = Plan(**vars(parser.parse_args()))
    with tempfile.TemporaryDirectory(prefix="naru-fairness-") as folder:
        parts = asyncio.run(run(Path(folder), plan))
    print(report(plan, parts))
    return 0 if parts["other workspace floods"].milliseconds(0.95) <= 2 * parts["alone"].milliseconds(0.95) else 1


if __name__ == "__main__":
    sys.exit(main())
