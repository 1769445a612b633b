"""What a connection and a stream hold: memory of edge and inference at more and more of them.

`python -m bench.streaming.memory`: each round has two installations of its own, since memory that was given back once is used
again and would hide what the next ones need. In the first one connections are made, each is asked one token and stays open; in
the second one streams are, which get a token every half second.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import linear_regression

import uvloop

from bench.streaming.client import Answer, Client, allow_connections, request_of
from bench.streaming.contestants import Contestant, naru
from bench.streaming.report import Effort, Table, markdown

COUNTS = (0, 200, 1000)
_BEGUN_PER_SECOND = 100
_SETTLE_SECONDS = 1.5
_FAST, _SLOW = 0.001, 0.5
_WARM_UP_CONNECTIONS = 20
_SLOW_TOKENS = 64
"""For longer than all of it takes; the simulated engine keeps the whole answer from its beginning."""
_PATIENCE_SECONDS = 30
_KIBIBYTE, _MEBIBYTE = 1 << 10, 1 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes of memory that a process holds: all that is in use, and what it shares with no other process."""

    rss: int
    uss: int


def held(pid: int) -> Held:
    """Of one process, those below it excluded. Raises OSError when it has ended."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    kibibytes = {fields[0]: int(fields[1]) for fields in lines}
    private = kibibytes["Private_Clean:"] + kibibytes["Private_Dirty:"]
    return Held(kibibytes["Rss:"] * _KIBIBYTE, private * _KIBIBYTE)


Found = dict[str, list[int]]
"""Bytes of each process, at each of the counts."""


async def _at_counts(contestant: Contestant, counts: Sequence[int], more: Callable[[int], Awaitable[None]]) -> Found:
    processes = {"edge": contestant.pids["edge"], "inference": contestant.engine}
    found: Found = {name: [] for name in processes}
    there = 0
    for count in counts:
        await more(count - there)
        there = count
        await asyncio.sleep(_SETTLE_SECONDS)
        for name, pid in processes.items():
            found[name].append(held(pid).uss)
    return found


async def _warm_up(contestant: Contestant, requests: int) -> None:
    """What requests leave behind belongs to no connection: so many of them beforehand, on few."""
    request = request_of(contestant.url, contestant.key, contestant.body(1, stream=True))

    async def some() -> None:
        for _ in range(requests // _WARM_UP_CONNECTIONS):
            await _expect(client, request, 1)

    async with Client(contestant.url) as client, asyncio.TaskGroup() as tasks:
        for _ in range(_WARM_UP_CONNECTIONS):
            _ = tasks.create_task(some())


async def _expect(client: Client, request: bytes, tokens: int) -> None:
    answer = await client.ask(request, Answer(time.monotonic()))
    if answer.failed(tokens):
        raise RuntimeError(f"an answer has failed: status {answer.status}, {len(answer.tokens)} tokens")


async def idle(contestant: Contestant, counts: Sequence[int]) -> Found:
    """Connections that were asked one token each, one after the other. Raises RuntimeError when one fails."""
    request = request_of(contestant.url, contestant.key, contestant.body(1, stream=True))
    async with Client(contestant.url) as client:

        async def more(number: int) -> None:
            for _ in range(number):
                # The newest one is the next that is asked.
                await client.open(1)
                await _expect(client, request, 1)

        await _warm_up(contestant, max(counts))
        return await _at_counts(contestant, counts, more)


async def active(contestant: Contestant, counts: Sequence[int]) -> Found:
    """Streams that all have had their first token. Raises RuntimeError when one ends, or does not begin within 30 s."""
    request = request_of(contestant.url, contestant.key, contestant.body(_SLOW_TOKENS, stream=True))
    async with Client(contestant.url) as client:
        answers: list[Answer] = []
        tasks: list[asyncio.Task[Answer]] = []

        async def more(number: int) -> None:
            for _ in range(number):
                answers.append(Answer(time.monotonic()))
                tasks.append(asyncio.create_task(client.ask(request, answers[-1])))
                await asyncio.sleep(1 / _BEGUN_PER_SECOND)
            deadline = time.monotonic() + _PATIENCE_SECONDS
            while not all(answer.tokens for answer in answers):
                if time.monotonic() > deadline or any(task.done() for task in tasks):
                    raise RuntimeError("a stream did not begin, or has ended")
                await asyncio.sleep(0.1)

        await _warm_up(contestant, max(counts))
        found = await _at_counts(contestant, counts, more)
    _ = await asyncio.gather(*tasks)
    return found


def measure(effort: Effort, *, counts: Sequence[int] = COUNTS) -> list[Table]:
    """KiB of each connection and of each stream. No round warms up, and none takes a set time.

    Args:
        effort: How many rounds.
        counts: How many connections or streams there are when memory is looked at, from few to many.
    """
    allow_connections()
    table: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(effort.rounds):
        with naru(_FAST) as contestant:
            _add(table, "idle connection", counts, uvloop.run(idle(contestant, counts)))
        with naru(_SLOW) as contestant:
            _add(table, "active stream", counts, uvloop.run(active(contestant, counts)))
    note = (
        "Memory that no other process shares (USS); KiB of each is the slope of a line through the figures, by least squares. "
        f"A stream's include its connection, and at inference the {_SLOW_TOKENS} tokens that the simulated engine has ready; "
        "what the kernel keeps for a socket is in none of them."
    )
    return [Table("memory", f"Memory at {_listed(counts)} connections or streams", table, ["KiB each"], note)]


def _add(table: dict[str, dict[str, list[float]]], what: str, counts: Sequence[int], found: Found) -> None:
    for process, sizes in found.items():
        row = table[f"{process}, {what}"]
        row["KiB each"].append(linear_regression(counts, sizes).slope / _KIBIBYTE)
        for count, size in zip(counts, sizes, strict=True):
            row[f"MiB at {count:,}"].append(size / _MEBIBYTE)


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="connections, and streams")
    given = parser.parse_args()
    for table in measure(Effort(rounds=given.rounds), counts=given.counts):
        print(markdown(table))


if __name__ == "__main__":
    main()
