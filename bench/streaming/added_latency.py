"""What all of Naru adds to an engine: times of streams behind the whole of it, and of the same engine called in this process.

`python -m bench.streaming.added_latency`: streams of 16 tokens, one in 10 ms, which come by chance, so many a second, whether
those before have ended or not. Times count from when a request was due, so that what comes late is slow.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import uvloop

from bench.load import percentile
from bench.streaming.client import Answer, Client, allow_connections, request_of, server_timing
from bench.streaming.contestants import Contestant, naru
from bench.streaming.report import Effort, Table, markdown, options
from inference.engine import ChoiceOutput, EngineRequest, InputKind
from inference.simulated_engine import SimulatedEngine, SimulatedEngineConfig
from naru.lifecycle import rarely_look_for_garbage
from naru.logs import get_logger
from tests.support.platform import MODEL

RATES = (100, 200, 500)
PACE = 0.01
_TOKENS = 16
_CONNECTIONS_OF_A_RATE = 0.5
"""Made beforehand, for each request a second: a stream takes about 0.17 s."""
_WARM_UP_SECONDS = 2
_TIMER_SECONDS = 0.001

Ask = Callable[[Answer], Awaitable[object]]
"""Has one request answered, and notes in its `Answer` when."""
Figures = dict[str, dict[str, float]]
"""By the table that they are for."""


@dataclass(frozen=True, slots=True)
class Times:
    """Of all streams of one measurement, in milliseconds, the shortest first."""

    first: Sequence[float]
    gaps: Sequence[float]
    late: Sequence[float]
    failed: int
    answers: Sequence[Answer]


def times_of(answers: Sequence[Answer]) -> Times:
    """Raises RuntimeError when no stream had a token."""
    whole = [answer for answer in answers if not answer.failed(_TOKENS)]
    if not whole:
        raise RuntimeError("no stream was answered")
    return Times(
        first=_milliseconds(answer.tokens[0] - answer.due for answer in whole),
        gaps=_milliseconds(
            after - before for answer in whole for before, after in zip(answer.tokens, answer.tokens[1:], strict=False)
        ),
        late=_milliseconds(answer.sent - answer.due for answer in whole),
        failed=len(answers) - len(whole),
        answers=whole,
    )


def _milliseconds(seconds: Iterable[float]) -> list[float]:
    return sorted(1e3 * one for one in seconds)


async def arrive(ask: Ask, rate: float, seconds: float, seed: int) -> list[Answer]:
    """Requests by chance, so many a second on average (a Poisson process), the same ones for the same seed.

    None is sent before it is due. A timer of the loop is about a millisecond coarse, so most are sent a little later.
    """
    chance, answers = random.Random(seed), list[Answer]()
    async with asyncio.TaskGroup() as tasks:
        started = time.monotonic()
        due = started + chance.expovariate(rate)
        while due < started + seconds:
            await _until(due)
            answers.append(Answer(due))
            _ = tasks.create_task(_run(ask, answers[-1]))
            due += chance.expovariate(rate)
    return answers


async def _until(due: float) -> None:
    left = due - time.monotonic()
    while left > 0:
        await asyncio.sleep(math.ceil(left / _TIMER_SECONDS) * _TIMER_SECONDS)
        left = due - time.monotonic()


async def _run(ask: Ask, answer: Answer) -> None:
    _ = await ask(answer)


async def behind_naru(contestant: Contestant, rate: int, seconds: float, seed: int) -> Times:
    """Streams through edge, authsvc, accounting and inference."""
    request = request_of(contestant.url, contestant.key, contestant.body(_TOKENS, stream=True))
    async with Client(contestant.url) as client:
        await client.open(int(rate * _CONNECTIONS_OF_A_RATE))
        return times_of(await arrive(lambda answer: client.ask(request, answer), rate, seconds, seed))


async def in_process(body: dict[str, Any], rate: int, seconds: float, seed: int) -> Times:
    """The same streams, asked of an engine in this process."""
    config = SimulatedEngineConfig(served_name=MODEL, tokens_per_second=1 / PACE, prefill_seconds=0.0)
    engine = SimulatedEngine(config, get_logger(__name__))
    request = EngineRequest(InputKind.OPENAI_CHAT, MODEL, stream=True, openai_json=json.dumps(body).encode())
    await engine.start()
    try:
        return times_of(await arrive(lambda answer: _ask_engine(engine, request, answer), rate, seconds, seed))
    finally:
        await engine.shutdown(1.0)


async def _ask_engine(engine: SimulatedEngine, request: EngineRequest, answer: Answer) -> None:
    over = asyncio.get_running_loop().create_future()

    def hear(output: ChoiceOutput) -> None:
        answer.tokens.append(time.monotonic())
        if output.finish_reason:
            over.set_result(None)

    answer.sent = time.monotonic()
    prepared = await engine.prepare(request)
    _ = await engine.submit(prepared, hear)
    await over
    answer.status, answer.end = 200, time.monotonic()


def measure(effort: Effort, *, rates: Sequence[int] = RATES) -> list[Table]:
    """Times to the first token, between tokens, and what the edge itself says of each request, at so many a second."""
    allow_connections()
    rarely_look_for_garbage()  # as a service does
    found: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with naru(PACE) as contestant:
        for number in range(effort.rounds + 1):
            for rate in rates:
                seconds = effort.seconds if number else min(effort.seconds, _WARM_UP_SECONDS)
                tables = _measure_rate(contestant, rate, seconds, seed=number)
                for slug, figures in tables.items() if number else ():
                    for name, figure in figures.items():
                        found[slug][f"{rate} requests/s"][name].append(figure)
    return _tables(found)


def _measure_rate(contestant: Contestant, rate: int, seconds: int, seed: int) -> Figures:
    alone = uvloop.run(in_process(contestant.body(_TOKENS, stream=True), rate, seconds, seed))
    behind = uvloop.run(behind_naru(contestant, rate, seconds, seed))
    return {
        "added-first": {
            "added p50, ms": percentile(behind.first, 0.5) - percentile(alone.first, 0.5),
            "added p99, ms": percentile(behind.first, 0.99) - percentile(alone.first, 0.99),
            **_both("Naru", behind.first),
            **_both("in process", alone.first),
            "client late, p99 ms": percentile(behind.late, 0.99),
            "in process late, p99 ms": percentile(alone.late, 0.99),
            "failed": behind.failed + alone.failed,
        },
        "added-between": {**_both("Naru", behind.gaps), **_both("in process", alone.gaps)},
        "added-server-timing": _server_timing(behind.answers),
    }


def _both(name: str, ordered: Sequence[float]) -> dict[str, float]:
    return {f"{name}, p{share:.0f} ms": percentile(ordered, share / 100) for share in (50, 99)}


def _server_timing(answers: Sequence[Answer]) -> dict[str, float]:
    parts: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for name, milliseconds in server_timing(answer.server_timing).items():
            parts[name].append(milliseconds)
    return {name: figure for part, heard in parts.items() for name, figure in _both(part, sorted(heard)).items()}


def _tables(found: dict[str, dict[str, dict[str, list[float]]]]) -> list[Table]:
    what = f"streams of {_TOKENS} tokens, one in {PACE * 1e3:.0f} ms, that come by chance"
    return [
        Table(
            "added-first",
            f"To the first token, from when it was due: {what}",
            found["added-first"],
            ["added p50, ms", "added p99, ms"],
            "Added is a percentile behind Naru less the same one in process. In both, a request falls anywhere into a step of "
            "the engine, which all streams share.",
        ),
        Table("added-between", f"Between tokens: {what}", found["added-between"], ["Naru, p99 ms"]),
        Table(
            "added-server-timing",
            f"What the edge says in `server-timing`: {what}",
            found["added-server-timing"],
            [],
            "`auth` knows the caller and `reserve` the limits; `first` is when the answer's head goes out, with both in it and "
            "before the first token: 2 ms after the engine has taken the request, unless a token comes before.",
        ),
    ]


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES), help="requests a second")
    given = parser.parse_args()
    for table in measure(Effort(given.rounds, given.seconds), rates=given.rates):
        print(markdown(table))


if __name__ == "__main__":
    main()
