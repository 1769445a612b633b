"""So many streams at a time, each followed by the next one, looked at over a while in which nothing else changes."""

from __future__ import annotations

import asyncio
import statistics
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.cpu import Meter
from bench.streaming.client import Answer, Client, request_of
from bench.streaming.contestants import Contestant
from bench.streaming.memory import held

STREAM_TOKENS = 200
_BEGUN_PER_SECOND = 250
_SETTLE_SECONDS = 0.5
_LEAST_TOKENS = 20
"""Fewer than these say little about the rate of a stream."""


@dataclass(frozen=True, slots=True)
class Steady:
    """What was seen.

    Attributes:
        streams: How many at a time.
        seconds: For how long.
        tokens: That came in that time.
        failed: Answers that were not what was asked for, also before and after.
        rates: Tokens a second of each stream while it ran, the slowest first.
        cpu: Seconds that each of the named processes took.
        edge_bytes: What the process that clients talk to held at the end, of memory that is in use (RSS).
    """

    streams: int
    seconds: float
    tokens: int
    failed: int
    rates: Sequence[float]
    cpu: Mapping[str, float]
    edge_bytes: int

    def share_of_due(self, pace: float) -> float:
        """Tokens of those that the engine would have had, at so many seconds between two of a stream."""
        return self.tokens / self.seconds / (self.streams / pace)

    def microseconds(self, process: str) -> float:
        """Of CPU time for each token."""
        return self.cpu[process] / self.tokens * 1e6 if self.tokens else float("nan")

    def fairness(self) -> float:
        """The slowest stream's rate over the median one."""
        return self.rates[0] / statistics.median(self.rates) if self.rates else float("nan")


class _Slot:
    """One of the clients: asks for a stream, and for another one at its end."""

    def __init__(self, contestant: Contestant, client: Client, first_tokens: int) -> None:
        self.answers: list[tuple[Answer, int]] = []
        self._contestant = contestant
        self._client = client
        self._tokens = first_tokens

    async def run(self, begin: float, stop: asyncio.Event) -> None:
        """From a moment on until it is to stop; ends its last stream."""
        await asyncio.sleep(begin - time.monotonic())
        first = _request(self._contestant, self._tokens)
        await self._ask(first, self._tokens)
        request = _request(self._contestant, STREAM_TOKENS)
        while not stop.is_set():
            await self._ask(request, STREAM_TOKENS)

    async def _ask(self, request: bytes, tokens: int) -> None:
        answer = Answer(time.monotonic())
        self.answers.append((answer, tokens))
        _ = await self._client.ask(request, answer)


def _request(contestant: Contestant, tokens: int) -> bytes:
    return request_of(contestant.url, contestant.key, contestant.body(tokens, stream=True))


async def steady(contestant: Contestant, streams: int, seconds: float, processes: Mapping[str, int]) -> Steady:
    """Streams of 200 tokens; the first ones are shorter, each by another number, so that ends are spread evenly from then on.

    Args:
        contestant: Whom to ask.
        streams: How many at a time.
        seconds: How long to look, once all have begun; they begin 250 a second.
        processes: Whose CPU time to take, by name.
    """
    stop, start = asyncio.Event(), time.monotonic()
    async with Client(contestant.url) as client, asyncio.TaskGroup() as tasks:
        slots = [
            _Slot(contestant, client, 1 + STREAM_TOKENS * (streams - number - 1) // streams)
            for number in range(streams)
        ]
        for number, slot in enumerate(slots):
            _ = tasks.create_task(slot.run(start + number / _BEGUN_PER_SECOND, stop))
        await asyncio.sleep(streams / _BEGUN_PER_SECOND + _SETTLE_SECONDS)
        # In threads: reading all of /proc takes a while on a busy machine, and nobody would hear the streams meanwhile.
        begin = time.monotonic()
        meter = await asyncio.to_thread(Meter, processes)
        await asyncio.sleep(seconds)
        end, cpu = time.monotonic(), await asyncio.to_thread(meter.taken)
        edge_bytes = (await asyncio.to_thread(held, next(iter(contestant.pids.values())))).rss
        stop.set()
    return _seen(slots, begin, end, cpu, edge_bytes)


def _seen(slots: Sequence[_Slot], begin: float, end: float, cpu: Mapping[str, float], edge_bytes: int) -> Steady:
    answers = [one for slot in slots for one in slot.answers]
    tokens, rates = 0, []
    for answer, _ in answers:
        first, following = bisect_left(answer.tokens, begin), bisect_left(answer.tokens, end)
        tokens += following - first
        if following - first < _LEAST_TOKENS:
            continue
        between = answer.tokens[following - 1] - answer.tokens[first]
        # All at once is no slow stream.
        rates.append((following - first - 1) / between if between else float("inf"))
    return Steady(
        streams=len(slots),
        seconds=end - begin,
        tokens=tokens,
        failed=sum(answer.failed(asked) for answer, asked in answers),
        rates=sorted(rates),
        cpu=cpu,
        edge_bytes=edge_bytes,
    )
