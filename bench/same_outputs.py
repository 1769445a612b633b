"""Whether another version of Naru answers as this one does, byte for byte.

`python -m bench.same_outputs --before <folder of another checkout>`: starts the installation of that tree and of this one, both
on the simulated engine, asks both the same over HTTP, and prints where answers differ; exit code 1 when any do. Compared are the
status, the names of the headers, and all bytes of the body or the stream, whatever pieces it came in, but for ids and times. Both
trees run with this Python and its packages; the other one needs a `bench/installation.py`.
"""

from __future__ import annotations

import argparse
import difflib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.same_requests import MOST_BODY_BYTES, Request, requests
from tests.support.platform import MODEL

_ROOT = Path(__file__).parents[1]
_TRIES = 3
_SECONDS = 60
_SETTINGS = {
    "NARU_EDGE_MAX_BODY_BYTES": str(MOST_BODY_BYTES),
    # Slow enough for each token to be an event of its own.
    "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "100",
}
_ID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|(?=\d*[a-f])[0-9a-f]{16,}")
_TIME = re.compile(rb'("(?:created|created_at|completed_at|reset_delay|\w+_time)": ?)(?:\d+(?:\.\d+)?|"[^"]*")')


@dataclass(frozen=True, slots=True)
class Version:
    """One that runs."""

    port: int
    key: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What is compared of an answer; `headers` are the names, sorted, as they were written."""

    status: int
    headers: tuple[str, ...]
    body: bytes

    def lines(self) -> list[str]:
        """For people, who see differences of white space too."""
        return [str(self.status), *self.headers, *map(repr, self.body.splitlines(keepends=True))]


@contextmanager
def running(tree: Path, folder: Path) -> Iterator[Version]:
    """Runs the installation of a tree. Raises ValueError when the tree has none, RuntimeError when it does not start."""
    # Otherwise the folder in which a process starts would come first.
    environ = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    _require_code(tree, environ)
    command = [sys.executable, str(_ROOT / "bench/same_installation.py"), str(folder), json.dumps(_SETTINGS)]
    process = subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # Leaving it closes its standard input, upon which it stops, and waits for that.
    with process:
        line = process.stdout.readline() if process.stdout else b""
        if not line:
            raise RuntimeError(f"the installation of {tree} did not start")
        yield Version(**json.loads(line))


def _require_code(tree: Path, environ: Mapping[str, str]) -> None:
    """The installed package, which may be a third tree's, must not come first."""
    asked = [sys.executable, "-c", "import bench.installation, edge; print(edge.__file__)"]
    told = subprocess.run(asked, env=environ, capture_output=True, text=True, check=True).stdout
    if Path(told.strip()).parents[1] != tree:
        raise ValueError(f"{tree} has no code of Naru: {told.strip()} would run")


def ask(version: Version, request: Request) -> Answer:
    """Asks on a connection of its own. Raises OSError or http.client.HTTPException when there is no answer."""
    usual = {"Authorization": f"Bearer {version.key}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", version.port, timeout=_SECONDS)
    try:
        headers = {name: value for name, value in (usual | dict(request.headers)).items() if value}
        connection.request(request.method, request.path, request.body, headers)
        response = connection.getresponse()
        body = _TIME.sub(rb"\1-", _ID.sub(b"-", response.read()))
        return Answer(response.status, tuple(sorted(name for name, _ in response.getheaders())), body)
    finally:
        connection.close()


def difference(before: Version, now: Version, request: Request) -> list[str]:
    """How the answers to a request differ, in lines of a diff; empty when they do not.

    Asks again where they do: a token that comes late can share an event, in any version.
    """
    earlier: list[Answer] = []
    later: list[Answer] = []
    for _ in range(_TRIES):
        earlier.append(ask(before, request))
        later.append(ask(now, request))
        if set(earlier) & set(later):
            return []
    return list(difflib.unified_diff(earlier[-1].lines(), later[-1].lines(), "before", "now", n=1, lineterm=""))


def main() -> int:
    """The command; exit code 1 when any answer differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="folder of the other checkout")
    given = parser.parse_args()
    asked = list(requests(MODEL))
    differing = 0
    with tempfile.TemporaryDirectory(prefix="naru-same-") as name, ExitStack() as stack:
        before = stack.enter_context(running(given.before.resolve(), Path(name) / "before"))
        now = stack.enter_context(running(_ROOT, Path(name) / "now"))
        for request in asked:
            if lines := difference(before, now, request):
                differing += 1
                print(f"## {request.name}", *lines, "", sep="\n", flush=True)
    print(f"{differing} of {len(asked)} answers differ.")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
