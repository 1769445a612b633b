"""Does memory stay flat? Many short requests on a whole installation, and how much its services hold meanwhile.

`python -m bench.soak` prints its report; the exit code is 1 when accounting or edge grew by more than 5 %.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench.installation import installation
from tests.support.platform import MODEL, Platform, descendants

SERVICES = ("edge", "accounting", "inference", "authsvc")
JUDGED = ("edge", "accounting")
MOST_DRIFT = 0.05
KEYS, AT_ONCE = 50, 32
_SAMPLES = 400
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MEBIBYTE = 1 << 20
_MESSAGES = [{"role": "user", "content": "Tell me about ferries."}]
# What is asked, and how often of a hundred times.
_KINDS = {
    "plain": 46,
    "streamed": 42,
    "hung up": 5,
    "over its limit": 3,
    "unknown model": 2,
    "wrong key": 1,
    "no JSON": 1,
}
_HEAD = """# Soak

Short requests on the simulated engine, through edge, authsvc, accounting and inference, with Redis (AOF) and PostgreSQL on
the same machine: plain and streamed ones, hang-ups and refusals, with 50 keys, limits of every kind and a price. Memory is
what `/proc` says of each service's processes, RSS, the median of each tenth of the requests; PSS counts shared pages once.
Drift: the last tenth against the one after the first, which is warm-up.
"""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a service holds, and its processes."""

    process_ids: tuple[int, ...]
    rss: int
    pss: int


@dataclass(slots=True)
class Soak:
    """What happened. `tenths`: for each tenth of the requests, the samples of all services."""

    requests: int
    answers: Counter[str] = field(default_factory=Counter)
    tenths: list[list[dict[str, Memory]]] = field(default_factory=lambda: [[] for _ in range(10)])
    seconds: float = 0.0

    def rss(self, service: str, tenth: int) -> float:
        """The median of a tenth."""
        return statistics.median(sample[service].rss for sample in self.tenths[tenth])

    def drift(self, service: str) -> float:
        """How much larger it was at the end than after its warm-up, as a share."""
        return self.rss(service, 9) / self.rss(service, 1) - 1

    def wrong(self) -> list[str]:
        """What speaks against flat memory. Empty: nothing."""
        found = [
            f"{service} grew by {self.drift(service):.1%}" for service in JUDGED if self.drift(service) > MOST_DRIFT
        ]
        samples = [sample for tenth in self.tenths for sample in tenth]
        for service in SERVICES:
            if len({sample[service].process_ids for sample in samples}) > 1:
                found.append(f"{service} did not stay the same processes")
        broken = sum(number for answer, number in self.answers.items() if ": 5" in answer or answer.endswith("Error"))
        if broken:
            found.append(f"{broken} requests failed")
        return found


class Load:
    """Clients that ask one request after the other, and a look at memory every so often."""

    def __init__(self, naru: Platform, soak: Soak, keys: Sequence[str], narrow: str) -> None:
        self._naru = naru
        self._soak = soak
        self._keys = keys
        self._narrow = narrow
        self._chance = random.Random(0)
        self._begun = 0
        self._every = max(soak.requests // _SAMPLES, 1)

    async def run(self) -> None:
        """Asks all of it."""
        started = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            await asyncio.gather(*(self._client(session) for _ in range(AT_ONCE)))
        self._soak.seconds = time.monotonic() - started

    async def _client(self, session: aiohttp.ClientSession) -> None:
        while self._begun < self._soak.requests:
            number, self._begun = self._begun, self._begun + 1
            if number % self._every == 0:
                tenth = number * 10 // self._soak.requests
                self._soak.tenths[tenth].append({service: memory(self._naru, service) for service in SERVICES})
            (kind,) = self._chance.choices(list(_KINDS), list(_KINDS.values()))
            try:
                answer = await self._ask(session, kind, self._keys[number % len(self._keys)])
            except (aiohttp.ClientError, TimeoutError) as error:
                answer = f"{type(error).__name__} Error"
            self._soak.answers[f"{kind}: {answer}"] += 1

    async def _ask(self, session: aiohttp.ClientSession, kind: str, key: str) -> str:
        if kind == "over its limit":
            key = self._narrow
        elif kind == "wrong key":
            key = f"{key[:-1]}{'a' if key[-1] != 'a' else 'b'}"
        body = {
            "model": "unknown" if kind == "unknown model" else MODEL,
            "messages": _MESSAGES,
            "max_tokens": self._chance.randrange(1, 7),
            "stream": kind in {"streamed", "hung up"},
        }
        url, headers = f"{self._naru.url}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
        content = {"data": b"{"} if kind == "no JSON" else {"json": body}
        async with session.post(url, headers=headers, **content) as response:
            if response.status >= 500:
                return f"{response.status} {(await response.json())['error']['message']}"
            if kind == "hung up":
                await response.content.readany()
                response.close()
            else:
                await response.read()
            return str(response.status)


def memory(naru: Platform, service: str) -> Memory:
    """What a service holds now, with all processes below it."""
    own = naru.service_ids(service)
    process_ids = [*own, *(below for one in own for below in descendants(one))]
    rss = pss = 0
    for process_id in process_ids:
        folder = Path(f"/proc/{process_id}")
        rss += int((folder / "statm").read_text().split()[1]) * _PAGE_BYTES
        lines = (folder / "smaps_rollup").read_text().splitlines()
        pss += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return Memory(tuple(process_ids), rss, pss)


async def run(folder: Path, requests: int) -> Soak:
    """The whole of it."""
    environ = {
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "1000",
        "NARU_INFERENCE_SIMULATED_PREFILL_SECONDS": "0",
    }
    soak = Soak(requests)
    with installation(folder, environ) as running:
        naru = running.naru
        keys = [naru.new_key(description=f"soak {number}", tier="busy") for number in range(KEYS)]
        await Load(naru, soak, keys, naru.new_key(description="soak narrow", tier="narrow")).run()
    return soak


def report(soak: Soak) -> str:
    """What happened, as Markdown."""
    lines = [_HEAD, f"```\npython -m bench.soak --requests {soak.requests}\n```", ""]
    lines += [f"| MiB of RSS | {' | '.join(SERVICES)} |", f"| ---: |{' ---: |' * len(SERVICES)}"]
    for tenth in range(10):
        cells = [f"{soak.rss(service, tenth) / _MEBIBYTE:,.1f}" for service in SERVICES]
        lines.append(
            f"| {soak.requests * tenth // 10:,} to {soak.requests * (tenth + 1) // 10:,} requests | {' | '.join(cells)} |"
        )
    drifts = [f"{soak.drift(service):+.1%}" for service in SERVICES]
    lines.append(f"| drift | {' | '.join(drifts)} |")
    ends = [statistics.median(sample[service].pss for sample in soak.tenths[9]) for service in SERVICES]
    lines.append(f"| PSS at the end | {' | '.join(f'{one / _MEBIBYTE:,.1f}' for one in ends)} |")
    lines += ["", "| asked: answered | requests |", "| --- | ---: |"]
    lines += [f"| {answer} | {number:,} |" for answer, number in sorted(soak.answers.items())]
    rate = soak.requests / soak.seconds
    wrong = soak.wrong()
    verdict = f"Not flat: {'; '.join(wrong)}." if wrong else f"Flat: {' and '.join(JUDGED)} within {MOST_DRIFT:.0%}."
    lines += ["", f"{soak.seconds:,.0f} seconds, {rate:,.0f} requests a second.", "", verdict]
    return "\n".join(lines)


def main() -> int:
    """Prints the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000)
    requests: int = parser.parse_args().requests
    with tempfile.TemporaryDirectory(prefix="naru-soak-") as folder:
        soak = asyncio.run(run(Path(folder), requests))
    print(report(soak))
    return 1 if soak.wrong() else 0


if __name__ == "__main__":
    sys.exit(main())
