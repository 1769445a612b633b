"""Which CPUs threads run on."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from naru.cli.settings import settings_from
from naru.cli.state import StateFolder
from naru.placement import beside_an_engine, cpus_from

ALLOWED = sorted(os.sched_getaffinity(0))
FIRST = ALLOWED[0]
several = pytest.mark.skipif(len(ALLOWED) < 2, reason="one CPU has to do for everything")

# Says where its threads run, and the first and the second one of a process that it made.
PROCESS = """
import multiprocessing, os, sys, threading
from pathlib import Path
from naru.placement import cpus_from, run_on

def threads(process_id):
    return [sorted(os.sched_getaffinity(int(path.name))) for path in sorted(Path(f"/proc/{process_id}/task").iterdir())]

def engine(ready):
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    ready.set()
    threading.Event().wait()

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=engine, args=(ready,), daemon=True)
    child.start()
    ready.wait()
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    run_on(cpus_from(sys.argv[1]))
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    print(threads(os.getpid()), threads(child.pid), sep="\\n")
    child.kill()
"""


def placed(cpus: str) -> tuple[list[list[int]], list[list[int]]]:
    """What PROCESS says."""
    ran = subprocess.run([sys.executable, "-c", PROCESS, cpus], capture_output=True, text=True, timeout=60, check=True)
    own, child = ran.stdout.splitlines()
    return ast.literal_eval(own), ast.literal_eval(child)


@pytest.mark.parametrize(
    ("text", "cpus"), [("", ALLOWED), (str(FIRST), [FIRST]), (f"{FIRST}-{FIRST},100000", [FIRST]), ("0-99999", ALLOWED)]
)
def test_numbers_and_ranges(text: str, cpus: list[int]) -> None:
    """Of what is named, those count that the process may run on."""
    assert sorted(cpus_from(text)) == cpus


@pytest.mark.parametrize("text", ["x", "1-", "-1", "1,,2", "1-2-3", "1.5", "99999"])
def test_what_is_no_list_is_refused(text: str) -> None:
    """Neither are CPUs that are not there."""
    with pytest.raises(ValueError, match="CPUs"):
        _ = cpus_from(text)


@several
def test_all_threads_move_and_the_engine_gets_the_rest() -> None:
    """Those there are and those to come; of another process only the first."""
    own, child = placed(str(FIRST))
    assert own == [[FIRST]] * 3
    assert child == [ALLOWED[1:], ALLOWED]


def test_all_cpus_for_all_leaves_the_engine_alone() -> None:
    """As where nothing is said."""
    own, child = placed("")
    assert own == [ALLOWED] * 3
    assert child == [ALLOWED] * 2


def chosen(folder: Path, **environ: str) -> str | None:
    """What `naru up` tells the services."""
    state = StateFolder(folder / "state")
    state.prepare()
    return settings_from(environ, state).environ.get("NARU_CPUS")


@several
def test_an_engine_has_a_cpu_for_itself(tmp_path: Path) -> None:
    """Where `naru up` starts vLLM, and one of it; what the caller says wins."""
    assert chosen(tmp_path) == ",".join(map(str, ALLOWED[1:])) == beside_an_engine()
    assert chosen(tmp_path, NARU_INFERENCE_ENGINE="simulated") is None
    assert chosen(tmp_path, NARU_UP_EMBEDDINGS="some/model") is None
    assert chosen(tmp_path, NARU_CPUS="0-63") == "0-63"
