"""What more replicas of inference make of the same streams, at one edge.

`python -m bench.streaming.replicas`: all replicas run all the time, and so many of them take requests; an operator's call
drains the others.
"""

from __future__ import annotations

import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import uvloop

from bench.installation import Installation
from bench.streaming.client import allow_connections
from bench.streaming.contestants import Contestant, contestant_of, simulated
from bench.streaming.report import Effort, Table, markdown, options
from bench.streaming.steady import STREAM_TOKENS, steady
from naru.testing.redis_server import free_ports
from tests.support.platform import Platform, until

COUNTS = (1, 2, 4, 8)
STREAMS = 256
_PACE = 0.01
_WARM_UP_SECONDS = 2
_PATIENCE_SECONDS = 20
_HEARD_SECONDS = 1.0
"""Until the edge has heard who takes requests."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One that runs."""

    address: str
    ops_port: int
    pid: int


@contextmanager
def replicas(most: int) -> Iterator[tuple[Installation, Sequence[Replica]]]:
    """An installation with so many replicas, to all of which its edge is connected."""
    free = free_ports(2 * most)
    ports, ops_ports = free[:most], free[most:]
    environ = {
        "NARU_INFERENCE_PORT": str(ports[0]),
        "NARU_INFERENCE_ADDRESSES": ",".join(f"127.0.0.1:{port}" for port in ports),
    }
    with simulated(_PACE, environ) as installed, ExitStack() as stack:
        running = installed.naru
        first = Replica(
            f"127.0.0.1:{ports[0]}", running.ports["NARU_INFERENCE_OPS_PORT"], running.service_ids("inference")[0]
        )
        found = [first]
        for number in range(1, most):
            own = _environ(running, number, ports[number], ops_ports[number])
            process = stack.enter_context(running.second("inference", own))
            found.append(Replica(f"127.0.0.1:{ports[number]}", ops_ports[number], process.pid))
        until(lambda: all(_sessions(running, one) for one in found), _PATIENCE_SECONDS, "the edge to find all replicas")
        yield installed, found


def _environ(running: Platform, number: int, port: int, ops_port: int) -> Mapping[str, str]:
    return {
        "NARU_INFERENCE_PORT": str(port),
        "NARU_INFERENCE_OPS_PORT": str(ops_port),
        "NARU_INFERENCE_JOURNAL_DIR": str(running.state.data / f"journal-{number}"),
        "NARU_INFERENCE_REPLICA_ID": f"replica-{number}",
    }


def _sessions(running: Platform, replica: Replica) -> bool:
    return running.metric_at(replica.ops_port, "naru_inference_sessions") > 0


def _generated(running: Platform, replica: Replica) -> float:
    return running.metric_at(replica.ops_port, "naru_inference_completion_tokens_total")


def _let(running: Platform, replica: Replica, verb: str) -> None:
    """Has it `drain` or `resume`. Raises urllib.error.HTTPError when it is refused."""
    request = urllib.request.Request(
        f"{running.url}/api/replicas/{replica.address}/{verb}",
        b"{}",
        {"Authorization": f"Bearer {running.api_key}", "Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        answer.read()


def measure(effort: Effort, *, counts: Sequence[int] = COUNTS, streams: int = STREAMS) -> list[Table]:
    """Tokens a second and the edge's CPU of each, with the same streams spread over so many replicas."""
    allow_connections()
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with replicas(max(counts)) as (installed, all_of_them):
        running, contestant = installed.naru, contestant_of(installed)
        for number in range(effort.rounds + 1):
            for count in counts:
                _take_requests(running, all_of_them, count)
                seconds = effort.seconds if number else min(effort.seconds, _WARM_UP_SECONDS)
                figures = _measure_count(running, contestant, all_of_them[:count], streams, seconds)
                for name, figure in figures.items() if number else ():
                    found[f"{count} replica{'s' if count > 1 else ''}"][name].append(figure)
    title = f"Replicas: {streams} streams of {STREAM_TOKENS} tokens, one in {_PACE * 1e3:.0f} ms each, on one machine"
    return [Table("growth-replicas", title, found, ["tokens/s", "edge, µs a token"])]


def _take_requests(running: Platform, all_of_them: Sequence[Replica], count: int) -> None:
    for number, replica in enumerate(all_of_them):
        _let(running, replica, "resume" if number < count else "drain")
    time.sleep(_HEARD_SECONDS)


def _measure_count(
    running: Platform, contestant: Contestant, serving: Sequence[Replica], streams: int, seconds: float
) -> dict[str, float]:
    before = [_generated(running, replica) for replica in serving]
    engines = {replica.address: replica.pid for replica in serving}
    seen = uvloop.run(steady(contestant, streams, seconds, {"edge": contestant.pids["edge"], **engines}))
    shares = [_generated(running, replica) - one for replica, one in zip(serving, before, strict=True)]
    return {
        "tokens/s": seen.tokens / seen.seconds,
        "of those due": seen.share_of_due(_PACE),
        "edge, µs a token": seen.microseconds("edge"),
        "all replicas, µs a token": sum(seen.microseconds(address) for address in engines),
        "least busy / busiest": min(shares) / max(shares) if max(shares) else float("nan"),
        "failed": seen.failed,
    }


def main() -> None:
    """The command."""
    parser = options(__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS), help="replicas")
    parser.add_argument("--streams", type=int, default=STREAMS)
    given = parser.parse_args()
    for table in measure(Effort(given.rounds, given.seconds), counts=given.counts, streams=given.streams):
        print(markdown(table))


if __name__ == "__main__":
    main()
