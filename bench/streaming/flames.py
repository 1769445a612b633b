"""Where the time of each process of Naru goes, by py-spy: 300 looks a second at threads that run, 600 looks in all for a graph.

Paced: 256 streams of 200 tokens, one in 10 ms each. Saturated: whole answers of 16 tokens on 32 connections, as fast as it goes.
One round. Processes are sampled one after the other, so that samplers do not disturb each other, and each twice: for the flame
graph, and for the shares; how many samples there are says how busy a process is. None is stopped for a look: a stop makes all
threads run for a moment, so that those which wait are seen at work. The few looks that find a stack which changes do not count.
A sample belongs to the innermost of its frames that is of a known package. Frames are Python's: what C does counts for the Python
that called it, and for the event loop where that called it itself, as it does to read and write sockets.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path

from bench.streaming.contestants import Contestant, naru
from bench.streaming.layers import samples_of, shares
from bench.streaming.paced import PACE, TOKENS, ask
from bench.streaming.report import Effort, Table, markdown

_RATE = 300
_GRAPH_LOOKS = 600
"""For each flame graph, however long it takes: a graph of more has more stacks, and gets too large to look at."""
_NO_SAMPLES = "No stack counts found"
_TITLE = re.compile(r'(<text id="title"[^>]*>)[^<]*')
_SETTLE_SECONDS = 1
_TAIL_SECONDS = 3
"""For which the load goes on beside what is sampled: py-spy takes a while to begin and to write."""


@dataclass(frozen=True, slots=True)
class _Load:
    name: str
    title: str
    pace: float
    connections: int
    tokens: int
    stream: bool


_LOADS = (
    _Load("paced", "Paced, 256 streams", PACE, 256, TOKENS, stream=True),
    _Load("saturated", "Saturated, whole answers of 16 tokens", 0.0, 32, 16, stream=False),
)


def measure(effort: Effort, folder: Path) -> list[Table]:
    """The share of each layer in each process, a table for each load; one round, of `effort.seconds`.

    Args:
        effort: How long each process is sampled.
        folder: Where flame graphs are written, as `flame-<load>-<process>.svg`.

    Raises:
        FileNotFoundError: py-spy is not installed.
        RuntimeError: py-spy or wrk did not run to its end: mostly since only root may look into processes.
    """
    spy = _py_spy()
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for one in _LOADS:
        with naru(one.pace) as contestant:
            tables.append(_table(spy, one, contestant, effort.seconds, folder))
    return tables


def _table(spy: str, one: _Load, contestant: Contestant, seconds: int, folder: Path) -> Table:
    found: dict[str, dict[str, list[float]]] = defaultdict(dict)
    processes = {**contestant.pids, "inference": contestant.engine}
    told = []
    for process, pid in processes.items():
        graph = f"flame-{one.name}-{process}.svg"
        with _loaded(contestant, one, 2 * seconds + _TAIL_SECONDS):
            rate = min(_RATE, max(_GRAPH_LOOKS // seconds, 1))
            _record(spy, pid, seconds, folder / graph, ["--format", "flamegraph", "--rate", str(rate)])
            _name(folder / graph, f"{process}: {one.title}")
            samples = _samples(spy, pid, seconds)
        told.append(f"[{process}]({graph}) {samples.total():,}")
        for layer, share in shares(samples).items():
            found[layer][f"{process}, %"] = [share]
    return Table(
        slug=f"flames-{one.name}",
        title=f"{one.title}: share of the samples of each process, by layer",
        found=found,
        drawn=[f"{process}, %" for process in processes],
        note=f"Flame graphs, and samples in {seconds * _RATE:,} looks: {', '.join(told)}.",
    )


def _samples(spy: str, pid: int, seconds: int) -> Counter[str]:
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as folder:
        path = Path(folder) / "stacks"
        _record(spy, pid, seconds, path, ["--format", "raw", "--full-filenames", "--rate", str(_RATE)])
        return samples_of(path.read_text())


@contextmanager
def _loaded(contestant: Contestant, one: _Load, seconds: int) -> Iterator[None]:
    """Puts the load on inside the block, and waits for its end. Raises RuntimeError when requests failed."""
    with ThreadPoolExecutor(1) as pool:
        seen = pool.submit(ask, contestant, one.tokens, stream=one.stream, connections=one.connections, seconds=seconds)
        time.sleep(_SETTLE_SECONDS)
        yield
    if failed := seen.result().failed:
        raise RuntimeError(f"{failed} requests failed while processes were sampled")


def _record(spy: str, pid: int, seconds: int, path: Path, form: Sequence[str]) -> None:
    """Lines of one function are put together: graphs get small, and nobody reads them by line."""
    options = ["--pid", str(pid), "--duration", str(seconds), "--function", "--nonblocking"]
    command = [spy, "record", *options, *form, "--output", str(path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    # Of a process that had nothing to do there is a graph which says so.
    if ended.returncode and _NO_SAMPLES not in ended.stderr:
        raise RuntimeError(f"py-spy: {ended.stderr}")


def _name(graph: Path, title: str) -> None:
    """Gives it a title of its own: py-spy's is its command, with where things lie on this machine."""
    _ = graph.write_text(_TITLE.sub(lambda match: match[1] + escape(title), graph.read_text(), count=1))


def _py_spy() -> str:
    """Of this environment, or else of the search path. Raises FileNotFoundError."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = shutil.which("py-spy", path=path)
    if found is None:
        raise FileNotFoundError("py-spy is not installed: pip install 'naru[bench]'")
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=Effort().seconds, help="for which each process is sampled")
    parser.add_argument("--folder", type=Path, required=True, help="for the flame graphs")
    given = parser.parse_args()
    for table in measure(Effort(seconds=given.seconds), given.folder):
        print(markdown(table), flush=True)


if __name__ == "__main__":
    main()
