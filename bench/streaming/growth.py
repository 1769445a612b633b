"""How cost and time grow: with more streams at one edge process, longer prompts, and more replicas.

`python -m bench.streaming.growth`. A stream has 200 tokens, one in 10 ms; one in 50 ms where there are so many streams that the
machine, which they share with engine and client, could not have theirs ready in time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import uvloop

from bench.streaming import prompts, replicas
from bench.streaming.client import allow_connections
from bench.streaming.contestants import Contestant, naru
from bench.streaming.report import Effort, Table, markdown, options
from bench.streaming.steady import STREAM_TOKENS, steady

PACES: Mapping[float, Sequence[int]] = {0.01: (1, 16, 64, 256), 0.05: (256, 1000)}
"""Streams at a time, by the seconds between their tokens: one count is in both, to tell what the pace makes of it."""
_WARM_UP_SECONDS = 1
_MEBIBYTE = 1 << 20


def _measure_streams(contestant: Contestant, streams: int, pace: float, seconds: float) -> dict[str, float]:
    processes = {"edge": contestant.pids["edge"], "inference": contestant.engine}
    seen = uvloop.run(steady(contestant, streams, seconds, processes))
    return {
        "tokens/s": seen.tokens / seen.seconds,
        "of those due": seen.share_of_due(pace),
        "edge, µs a token": seen.microseconds("edge"),
        "inference, µs a token": seen.microseconds("inference"),
        "slowest / median stream": seen.fairness(),
        "edge, MiB": seen.edge_bytes / _MEBIBYTE,
        "failed": seen.failed,
    }


def streams_table(effort: Effort, paces: Mapping[float, Sequence[int]] = PACES) -> Table:
    """Cost, evenness and memory by the number of streams. Each pace has an installation of its own."""
    allow_connections()
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pace, counts in paces.items():
        with naru(pace) as contestant:
            for number in range(effort.rounds + 1):
                for count in counts:
                    seconds = effort.seconds if number else min(effort.seconds, _WARM_UP_SECONDS)
                    figures = _measure_streams(contestant, count, pace, seconds)
                    for name, figure in figures.items() if number else ():
                        found[f"{count:,} at {pace * 1e3:.0f} ms"][name].append(figure)
    told = "; ".join(
        f"one token in {pace * 1e3:.0f} ms at {', '.join(f'{count:,}' for count in counts)}"
        for pace, counts in paces.items()
    )
    return Table(
        "growth-streams",
        f"Streams of {STREAM_TOKENS} tokens at one edge process: {told}",
        found,
        ["edge, µs a token", "slowest / median stream", "edge, MiB"],
        "Memory is what is in use (RSS), after what came before in the same process. With few streams the edge's "
        "time for a token has in it what it does anyway.",
    )


def measure(effort: Effort, *, paces: Mapping[float, Sequence[int]] = PACES) -> list[Table]:
    """All three: streams, prompts and replicas."""
    return [streams_table(effort, paces), *prompts.measure(effort), *replicas.measure(effort)]


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--only", choices=["streams", "prompts", "replicas"])
    given = parser.parse_args()
    effort = Effort(given.rounds, given.seconds)
    if given.only in (None, "streams"):
        print(markdown(streams_table(effort)), flush=True)
    if given.only in (None, "prompts"):
        print(*map(markdown, prompts.measure(effort)), sep="\n", flush=True)
    if given.only in (None, "replicas"):
        print(*map(markdown, replicas.measure(effort)), sep="\n", flush=True)


if __name__ == "__main__":
    main()
