"""What each front end costs, contestants in turn, medians of all rounds after one that warms up (least to most).

Paced: streams of 200 tokens, one token per stream and step of 10 ms, which none of them is busy with: CPU time of processes,
requests included, over the tokens that the engine generated. 256 streams at a time, and 16, which is what LiteLLM holds.
"Of those due" counts what clients have read by the end, by its bytes, the beginning of the streams included.
Capacity: streams are raised until fewer than 80 % of the tokens due are read, 4 s each, twice.
Saturated: 32 connections, as fast as it goes, whole answers of 16 tokens and streams of 64; and whole answers to 128 connections.
Each has the machine for itself: nobody is measured before those before have worked off what their clients left behind.

smg, vllm-router and LiteLLM check no key, take no reservation and write no ledger, and pass requests on to an engine that is
played and writes each token by itself; Naru does all of these, before its simulated engine. Load is wrk's, on the same cores.

Needs wrk, and a folder with the others' commands: `pip install smg vllm-router 'litellm[proxy]'` in an environment of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench.cpu import until_idle
from bench.streaming.capacity import capacity, search
from bench.streaming.contestants import Contestant, naru, others
from bench.streaming.paced import DUE, FAILED, PACE, TOKENS, ask, paced, token_bytes
from bench.streaming.report import Effort, Table, markdown, options

NAMES = ("smg", "vllm-router", "litellm")
STREAMS, FEW_STREAMS = 256, 16
SATURATING, CROWD, STREAMED_TOKENS, WHOLE_TOKENS = 32, 128, 64, 16
_HOLDS_FEW = "litellm"
_SEARCH_SECONDS, _SEARCH_ROUNDS = 4, 2


def measure(
    effort: Effort, executables: Path | None = None, names: Sequence[str] = NAMES, streams: int = STREAMS
) -> list[Table]:
    """Paced with many streams and with few, capacity, and saturated.

    Args:
        effort: How long.
        executables: Folder with the others' commands; None for Naru alone.
        names: Of the others.
        streams: Of the first table.

    Raises:
        RuntimeError: wrk did not run to its end, or somebody generated nothing.
        OSError: One of the others did not start, or does not answer.
    """
    with _contestants(PACE, executables, names) as all_of_them:
        sizes = {one.name: token_bytes(one) for one in all_of_them}
        many = [one for one in all_of_them if one.name != _HOLDS_FEW]
        few = [one for one in all_of_them if one.name in ("Naru", _HOLDS_FEW)]
        tables = [
            _paced_table("front-ends-paced", many, streams, sizes, effort),
            _paced_table("front-ends-few-streams", few, FEW_STREAMS, sizes, effort),
            *_capacity_tables(all_of_them, sizes, effort),
        ]
    with _contestants(0.0, executables, names) as all_of_them:
        tables.append(_saturated_table(all_of_them, effort))
    return tables


def in_turn(
    contestants: Sequence[Contestant], rounds: int, figures: Callable[[Contestant], dict[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """The figures of every round, by contestant; those of one round before them are left out."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number in range(rounds + 1):
        for contestant in contestants:
            until_idle()
            for name, figure in figures(contestant).items():
                if number:
                    found[contestant.name][name].append(figure)
    return found


def saturated(contestant: Contestant, seconds: int) -> dict[str, float]:
    """Whole answers a second and their time, also of a crowd, and streams a second."""
    whole = ask(contestant, WHOLE_TOKENS, stream=False, connections=SATURATING, seconds=seconds)
    until_idle()
    stream = ask(contestant, STREAMED_TOKENS, stream=True, connections=SATURATING, seconds=seconds)
    until_idle()
    crowd = ask(contestant, WHOLE_TOKENS, stream=False, connections=CROWD, seconds=seconds)
    return {
        "whole answers/s": whole.requests / whole.seconds,
        "p50, ms": whole.p50 * 1e3,
        "p99, ms": whole.p99 * 1e3,
        f"of {CROWD}/s": crowd.requests / crowd.seconds,
        "streams/s": stream.requests / stream.seconds,
        "streamed tokens/s": stream.requests * STREAMED_TOKENS / stream.seconds,
        FAILED: whole.failed + crowd.failed + stream.failed,
    }


@contextmanager
def _contestants(pace: float, executables: Path | None, names: Sequence[str]) -> Iterator[list[Contestant]]:
    with ExitStack() as stack:
        contestants = [stack.enter_context(naru(pace))]
        if executables is not None:
            contestants += stack.enter_context(others(names, executables, pace))
        yield contestants


def _paced_table(
    slug: str, contestants: Sequence[Contestant], streams: int, sizes: Mapping[str, float], effort: Effort
) -> Table:
    return Table(
        slug=slug,
        title=f"Paced: {streams} streams of {TOKENS} tokens, one in {PACE * 1e3:.0f} ms each",
        found=in_turn(contestants, effort.rounds, lambda one: paced(one, streams, effort.seconds, sizes[one.name])),
        drawn=["front end, µs a token", "services beside it, µs a token", "engine, µs a token", DUE],
    )


def _capacity_tables(contestants: Sequence[Contestant], sizes: Mapping[str, float], effort: Effort) -> list[Table]:
    """The most streams, and what came of each number that was tried. Nothing warms up: everybody has been asked before."""
    seconds = min(effort.seconds, _SEARCH_SECONDS)
    most: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    shares: dict[int, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    for _ in range(min(effort.rounds, _SEARCH_ROUNDS)):
        for contestant in contestants:
            found = search(partial(_share, contestant, seconds, sizes[contestant.name]))
            most[contestant.name]["streams"].append(capacity(found))
            for streams, came in found.items():
                shares[streams][contestant.name].append(came)
    return [
        Table("front-ends-capacity", "Capacity: streams of 100 tokens/s that are held", most, ["streams"]),
        Table(
            slug="front-ends-shares",
            title="Tokens/s of those due, by streams",
            found={str(streams): shares[streams] for streams in sorted(shares)},
            drawn=[contestant.name for contestant in contestants],
        ),
    ]


def _share(contestant: Contestant, seconds: int, bytes_of_a_token: float, streams: int) -> float:
    """Of the tokens that are due. Who turns streams away does not hold them."""
    seen = paced(contestant, streams, seconds, bytes_of_a_token)
    return 0.0 if seen[FAILED] else seen[DUE]


def _saturated_table(contestants: Sequence[Contestant], effort: Effort) -> Table:
    return Table(
        slug="front-ends-saturated",
        title=f"Saturated: {SATURATING} connections, {WHOLE_TOKENS} tokens whole, {STREAMED_TOKENS} streamed",
        found=in_turn(contestants, effort.rounds, lambda one: saturated(one, effort.seconds)),
        drawn=["whole answers/s", f"of {CROWD}/s", "p50, ms", "p99, ms", "streamed tokens/s"],
    )


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--executables", type=Path, help="folder of the others' commands; without it Naru is alone")
    parser.add_argument("--contestants", nargs="*", default=NAMES)
    parser.add_argument("--streams", type=int, default=STREAMS, help="of the paced part")
    given = parser.parse_args()
    effort = Effort(given.rounds, given.seconds)
    for table in measure(effort, given.executables, given.contestants, given.streams):
        print(markdown(table), flush=True)


if __name__ == "__main__":
    main()
