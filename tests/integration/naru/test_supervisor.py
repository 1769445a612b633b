"""The supervisor, with real processes."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from naru.cli import processes
from naru.cli.state import StateFolder
from naru.cli.supervisor import GaveUpError, Program, Supervised

# Starts a child of its own, says both process ids, and sleeps.
PARENT = """
import subprocess, sys, os, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""


def program(tmp_path: Path, code: str, **fields: float) -> Program:
    """A program that runs Python code."""
    return Program("example", [sys.executable, "-c", code], dict(os.environ), tmp_path / "log", **fields)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for at most 10 seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


def lines(log: Path) -> list[list[int]]:
    """What each start of PARENT has printed."""
    return [[int(word) for word in line.split()] for line in log.read_text().splitlines()] if log.exists() else []


def alive(process_id: int) -> bool:
    """Whether it runs, zombies left out."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_a_killed_process_is_restarted_and_leaves_nothing(tmp_path: Path) -> None:
    """What it had started is ended before it starts again; `stop` ends all of it."""
    said: list[str] = []
    supervised = Supervised(program(tmp_path, PARENT), said.append, ready=True)
    supervised.task = asyncio.create_task(supervised.keep_running())
    log = tmp_path / "log"
    await until(lambda: len(lines(log)) == 1)
    parent, child = lines(log)[0]
    os.kill(parent, signal.SIGKILL)
    await until(lambda: len(lines(log)) == 2)
    assert not alive(parent)
    assert not alive(child)
    await supervised.stop()
    assert not any(alive(process_id) for process_id in lines(log)[1])
    assert any("left 1 processes behind" in text for text in said)


async def test_a_process_that_cannot_start_is_given_up(tmp_path: Path) -> None:
    """Exit code 2 means a wrong configuration: no second try, and the end of the log in the error."""
    code = "import sys; print('NARU_EDGE_PORT must be a number'); sys.exit(2)"
    supervised = Supervised(program(tmp_path, code), lambda _: None)
    with pytest.raises(GaveUpError, match="NARU_EDGE_PORT must be a number"):
        await supervised.keep_running()


async def test_a_process_that_crashes_before_it_was_ever_ready_gets_three_tries(tmp_path: Path) -> None:
    """Then it is given up."""
    supervised = Supervised(program(tmp_path, "print('boom'); raise SystemExit(1)"), lambda _: None)
    with pytest.raises(GaveUpError):
        await supervised.keep_running()
    assert (tmp_path / "log").read_text().split() == ["boom"] * 3


async def test_a_process_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """SIGKILL after its time to stop."""
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, 1, flush=True); time.sleep(600)"
    supervised = Supervised(program(tmp_path, code, stop_seconds=0.3), lambda _: None, ready=True)
    supervised.task = asyncio.create_task(supervised.keep_running())
    await until(lambda: len(lines(tmp_path / "log")) == 1)
    process_id = supervised.process_id
    assert process_id is not None
    await supervised.stop()
    assert not alive(process_id)


def test_a_subreaper_adopts_orphans() -> None:
    """The grandchild of a dead child becomes our own child, so it can be found and ended."""
    code = f"""
import os, subprocess, sys
from pathlib import Path
from naru.cli import processes
processes.become_subreaper()
middle = subprocess.Popen([sys.executable, "-c", {PARENT!r}], stdout=subprocess.PIPE, start_new_session=True)
parent, orphan = map(int, middle.stdout.readline().split())
middle.kill(); middle.wait()
assert int(Path(f"/proc/{{orphan}}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()
assert processes.end_session(parent) == [orphan]
assert not Path(f"/proc/{{orphan}}").exists()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_session_members_are_found(tmp_path: Path) -> None:
    """Only the session's own processes."""
    with (tmp_path / "log").open("wb") as output:
        process = processes.start([sys.executable, "-c", "import time; time.sleep(600)"], os.environ, output)
    assert processes.session_members(process.pid) == [process.pid]
    process.kill()
    process.wait()


def test_taken_ports_are_named_with_their_variable(tmp_path: Path) -> None:
    """A clear message, and nothing is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        environ = {**os.environ, "NARU_UP_STATE": str(tmp_path / "state"), "NARU_EDGE_PORT": str(port)}
        done = subprocess.run(
            [sys.executable, "-m", "naru", "up"], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
    assert done.returncode == 1
    assert f"port {port} is taken; choose another with NARU_EDGE_PORT=<port>" in done.stdout


@pytest.mark.parametrize("port", ["70000", "0", "-1", "http"])
def test_a_port_that_is_none_is_named(tmp_path: Path, port: str) -> None:
    """One line that says what is allowed, no traceback."""
    environ = {**os.environ, "NARU_UP_STATE": str(tmp_path / "state"), "NARU_EDGE_PORT": port}
    done = subprocess.run(
        [sys.executable, "-m", "naru", "up"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "NARU_EDGE_PORT must be a port number" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_second_up_says_that_there_is_a_first(tmp_path: Path) -> None:
    """And names it."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    state.pid_file.write_text(f"{os.getpid()}\n")
    environ = {**os.environ, "NARU_UP_STATE": str(state.root)}
    done = subprocess.run(
        [sys.executable, "-m", "naru", "up"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert f"running already, as process {os.getpid()}" in done.stdout


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    """The second run finds the first one's; nobody else can read them."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    first = {path.name: path.read_text() for path in state.secrets.iterdir()}
    state.prepare()
    assert first == {path.name: path.read_text() for path in state.secrets.iterdir()}
    assert len(set(first.values())) == len(first)
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.secrets.iterdir())
