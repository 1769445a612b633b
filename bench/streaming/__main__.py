"""`python -m bench.streaming`: what each front end costs, contestants in turn, medians of all rounds.

Paced: so many streams of 200 tokens, one token per stream and step of 10 ms, which none of them is busy with: CPU time for each
token that was delivered. Saturated: 32 connections, as fast as it goes, whole answers of 16 tokens and streams of 64.

Needs wrk, and a folder with the commands of those to compare with: `pip install smg vllm-router 'litellm[proxy]'` in an
environment of their own. They check no key, take no reservation and write no ledger; Naru does.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.cpu import Meter
from bench.streaming.contestants import Contestant, naru, others
from bench.streaming.report import Table, markdown
from bench.streaming.wrk import Load, load

_PATH = "/v1/chat/completions"
_PACE = 0.01
_PACED_TOKENS, _STREAMED_TOKENS, _WHOLE_TOKENS = 200, 64, 16
_SATURATING = 32


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it, and with whom."""

    streams: int
    seconds: int
    rounds: int
    executables: Path | None
    contestants: tuple[str, ...]


def paced(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """Microseconds of CPU for each token: of the process that clients talk to, of those beside it, of the engine."""
    meter = Meter({**contestant.pids, "engine": contestant.engine})
    before = contestant.generated()
    seen = _load(contestant, _PACED_TOKENS, stream=True, connections=plan.streams, seconds=plan.seconds)
    tokens = contestant.generated() - before
    front, *beside, engine = (seconds / tokens * 1e6 for seconds in meter.taken().values())
    return {
        "front end, µs a token": front,
        "services beside it, µs a token": sum(beside),
        "engine, µs a token": engine,
        # Each stream has one a step, unless somebody is late.
        "tokens/s, of those due": tokens / seen.seconds / (plan.streams / _PACE),
        "failed": seen.failed,
    }


def saturated(contestant: Contestant, plan: Plan) -> dict[str, float]:
    """Whole answers a second and their time, and streams a second."""
    whole = _load(contestant, _WHOLE_TOKENS, stream=False, connections=_SATURATING, seconds=plan.seconds)
    stream = _load(contestant, _STREAMED_TOKENS, stream=True, connections=_SATURATING, seconds=plan.seconds)
    return {
        "whole answers/s": whole.requests / whole.seconds,
        "p50, ms": whole.p50 * 1e3,
        "p99, ms": whole.p99 * 1e3,
        "streams/s": stream.requests / stream.seconds,
        "streamed tokens/s": stream.requests * _STREAMED_TOKENS / stream.seconds,
        "failed": whole.failed + stream.failed,
    }


def _load(contestant: Contestant, tokens: int, *, stream: bool, connections: int, seconds: int) -> Load:
    body = contestant.body(tokens, stream=stream)
    return load(contestant.url + _PATH, contestant.key, body, connections=connections, seconds=seconds)


def run(plan: Plan, pace: float) -> dict[str, dict[str, list[float]]]:
    """Every figure of every round, by contestant."""
    measure = paced if pace else saturated
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with ExitStack() as stack:
        contestants = [stack.enter_context(naru(pace))]
        if plan.executables is not None:
            contestants += stack.enter_context(others(plan.contestants, plan.executables, pace))
        for number in range(plan.rounds + 1):
            for contestant in contestants:
                for name, figure in measure(contestant, plan).items():
                    if number:  # the first one warms up
                        found[contestant.name][name].append(figure)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256, help="of the paced part")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--executables", type=Path, help="folder of the others' commands; without it Naru is alone")
    parser.add_argument("--contestants", nargs="*", default=["smg", "vllm-router", "litellm"])
    parser.add_argument("--only", choices=["paced", "saturated"])
    given = parser.parse_args()
    plan = Plan(given.streams, given.seconds, given.rounds, given.executables, tuple(given.contestants))
    if given.only != "saturated":
        title = f"Paced: {plan.streams} streams of {_PACED_TOKENS} tokens, one in {_PACE * 1e3:.0f} ms each"
        print(markdown(Table("paced", title, run(plan, _PACE), ["front end, µs a token"])), flush=True)
    if given.only != "paced":
        title = f"Saturated: {_SATURATING} connections, {_WHOLE_TOKENS} tokens whole, {_STREAMED_TOKENS} streamed"
        print(markdown(Table("saturated", title, run(plan, 0.0), ["whole answers/s", "streams/s"])), flush=True)


if __name__ == "__main__":
    main()
