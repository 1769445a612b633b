"""`python -m bench.streaming.beside_vllm`: Naru and `vllm serve` on the same engine, in turn; medians of all rounds.

First a real vLLM with a tiny model, then a core that is played, which gives each stream a token per step of 10 ms whether the
front end keeps up or not. Naru has everything on; `vllm serve` checks no key, takes no reservation and writes no ledger.

Of so many streams one is watched event by event, and wrk has the others; a single one is watched in turns of a request each,
and then wrk's. CPU time is that of processes over the tokens that the engine generated: of the engine's own, of databases,
and of all others, which are the front end.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from bench.cpu import Meter
from bench.streaming.contestants import Contestant
from bench.streaming.report import Effort, Table, markdown, options
from bench.streaming.vllm_contestants import naru_and_vllm_serve
from bench.streaming.watching import Watched, Watcher
from bench.streaming.wrk import Load, load

_PATH = "/v1/chat/completions"
_PACE = 0.01
_STREAMED_TOKENS, _WHOLE_TOKENS, _PACED_TOKENS, _PACED_STREAMS = 64, 16, 200, 256
_CONCURRENCIES = (1, 16, 64, 256)
_FIRST_TOKEN, _STREAM, _EVENT = "first token, p50 ms", "stream, p50 ms", "tokens an event"
_FRONT_END, _ENGINE = "front end, µs a token", "engine, µs a token"
_NOTE = "CPU time of the front end is that of all processes but the engine's and databases: Naru's four services."

Figures = dict[str, float]
Rows = dict[str, dict[str, list[float]]]


def measure(effort: Effort, concurrencies: Sequence[int] = _CONCURRENCIES) -> list[Table]:
    """Both engines."""
    return [on_a_real_engine(effort, concurrencies), on_a_played_engine(effort)]


def on_a_real_engine(effort: Effort, concurrencies: Sequence[int] = _CONCURRENCIES) -> Table:
    """Streams of 64 tokens and whole answers of 16, with so many of them at the same time."""

    def figures(contestant: Contestant, streams: int) -> Figures:
        whole = _load(contestant, _WHOLE_TOKENS, stream=False, connections=streams, seconds=effort.seconds)
        streamed = _streamed(contestant, _STREAMED_TOKENS, streams, effort.seconds)
        return streamed | {
            "whole answers/s": whole.requests / whole.seconds,
            "failed": streamed["failed"] + whole.failed,
        }

    with naru_and_vllm_serve(pace=None) as contestants:
        found = _rounds(contestants, effort, concurrencies, figures)
    return Table(
        "beside-vllm",
        f"Naru and vllm serve on one tiny engine: streams of {_STREAMED_TOKENS} tokens, whole answers of {_WHOLE_TOKENS}",
        found,
        ["streamed tokens/s", _FRONT_END, "whole answers/s"],
        _NOTE,
    )


def on_a_played_engine(effort: Effort, streams: int = _PACED_STREAMS) -> Table:
    """Streams of 200 tokens, one in 10 ms each."""

    def figures(contestant: Contestant, streams: int) -> Figures:
        return _streamed(contestant, _PACED_TOKENS, streams, effort.seconds)

    with naru_and_vllm_serve(pace=_PACE) as contestants:
        found = _rounds(contestants, effort, [streams], figures)
    return Table(
        "beside-vllm-played",
        f"vLLM's own output processing on a played core: streams of {_PACED_TOKENS} tokens, one in {_PACE * 1e3:.0f} ms each",
        found,
        [_FRONT_END, _EVENT, _STREAM],
        f"{_NOTE} On time, a stream takes {_PACED_TOKENS * _PACE * 1e3:,.0f} ms and an event brings one token.",
    )


def _rounds(
    contestants: Sequence[Contestant],
    effort: Effort,
    concurrencies: Sequence[int],
    figures: Callable[[Contestant, int], Figures],
) -> Rows:
    found: Rows = defaultdict(lambda: defaultdict(list))
    for number in range(effort.rounds + 1):
        for streams in concurrencies:
            alone = _in_turns(contestants, effort.seconds) if streams == 1 else {}
            for contestant in contestants:
                row = f"{contestant.name}, {streams} stream{'s' * (streams > 1)}"
                for name, figure in {**alone.get(contestant.name, {}), **figures(contestant, streams)}.items():
                    if number:  # the first one warms up
                        found[row][name].append(figure)
    return found


def _streamed(contestant: Contestant, tokens: int, streams: int, seconds: int) -> Figures:
    """Of `streams` at the same time; what could not be seen in that time is left out."""
    before = contestant.generated()
    meter = Meter({**contestant.pids, "engine": contestant.engine, **contestant.databases})
    with ThreadPoolExecutor(1) as pool:
        others = max(streams - 1, 1)
        loading = pool.submit(_load, contestant, tokens, stream=True, connections=others, seconds=seconds)
        watched = list(_beside(contestant, tokens, loading)) if streams > 1 else []
        seen = loading.result()
    generated = contestant.generated() - before
    taken = {name: spent / generated * 1e6 for name, spent in meter.taken().items()}
    ended = [one for one in watched if one.whole is not None]
    return {
        **_latencies(watched, tokens),
        "streamed tokens/s": generated / seen.seconds,
        "streams/s": (seen.requests + len(ended)) / seen.seconds,
        _FRONT_END: sum(taken[name] for name in contestant.pids),
        **{f"of it {name}": taken[name] for name in ("edge", "inference") if name in contestant.pids},
        "databases, µs a token": sum(taken[name] for name in contestant.databases),
        _ENGINE: taken["engine"],
        "failed": float(seen.failed),
    }


def _beside(contestant: Contestant, tokens: int, loading: Future[Load]) -> Iterator[Watched]:
    """Streams one after the other while the others are under way."""
    watcher = _watcher(contestant, tokens)
    while not loading.done():
        if (watched := watcher.watch(loading.done)) is not None:
            yield watched
    watcher.close()


def _in_turns(contestants: Sequence[Contestant], seconds: int) -> dict[str, Figures]:
    """Single streams of each in turn, for so long for each."""
    watchers = {contestant.name: _watcher(contestant, _STREAMED_TOKENS) for contestant in contestants}
    watched: dict[str, list[Watched]] = defaultdict(list)
    ends = time.monotonic() + seconds * len(watchers)
    while time.monotonic() < ends:
        for name, watcher in watchers.items():
            watched[name] += filter(None, [watcher.watch()])
    for watcher in watchers.values():
        watcher.close()
    return {name: _latencies(of_one, _STREAMED_TOKENS) for name, of_one in watched.items()}


def _latencies(watched: Sequence[Watched], tokens: int) -> Figures:
    if not watched:
        return {}
    figures = {_FIRST_TOKEN: statistics.median(one.first_token for one in watched) * 1e3}
    ended = [(one.whole, one.events) for one in watched if one.whole is not None]
    if ended:
        figures[_STREAM] = statistics.median(whole for whole, _ in ended) * 1e3
        figures[_EVENT] = tokens * len(ended) / max(sum(events for _, events in ended), 1)
    return figures


def _watcher(contestant: Contestant, tokens: int) -> Watcher:
    return Watcher(contestant.url + _PATH, contestant.key, contestant.body(tokens, stream=True))


def _load(contestant: Contestant, tokens: int, *, stream: bool, connections: int, seconds: int) -> Load:
    body = contestant.body(tokens, stream=stream)
    return load(contestant.url + _PATH, contestant.key, body, connections=connections, seconds=seconds)


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--concurrencies", type=int, nargs="*", default=list(_CONCURRENCIES), help="on the real engine")
    parser.add_argument("--only", choices=["real", "played"])
    given = parser.parse_args()
    effort = Effort(given.rounds, given.seconds)
    if given.only != "played":
        print(markdown(on_a_real_engine(effort, given.concurrencies)), flush=True)
    if given.only != "real":
        print(markdown(on_a_played_engine(effort)), flush=True)


if __name__ == "__main__":
    main()
