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
from rich.console import Console

from accounting.config import AccountingConfig
from authsvc.config import AuthsvcConfig
from naru.cli import processes
from naru.cli.log_files import keep_small
from naru.cli.settings import settings_from
from naru.cli.state import StateFolder
from naru.cli.supervisor import GaveUpError, Program, Supervised
from naru.cli.up import Up
from naru.config import load

pytestmark = pytest.mark.faults

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
    """Waits for at most 20 seconds."""
    async with asyncio.timeout(20):
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
from naru.cli.log_files import keep_small
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


def naru(command: str, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs one command of `naru` that is to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "naru", command],
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_taken_ports_are_named_with_their_variable(tmp_path: Path) -> None:
    """A clear message, and nothing is started."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = naru("up", {"NARU_UP_STATE": str(tmp_path / "state"), "NARU_EDGE_PORT": str(port)})
    assert done.returncode == 1
    assert f"port {port} is taken; choose another with NARU_EDGE_PORT=<port>" in done.stdout


@pytest.mark.parametrize("port", ["70000", "0", "-1", "http"])
def test_a_port_that_is_none_is_named(tmp_path: Path, port: str) -> None:
    """One line that says what is allowed, no traceback."""
    done = naru("up", {"NARU_UP_STATE": str(tmp_path / "state"), "NARU_EDGE_PORT": port})
    assert done.returncode == 1
    assert "NARU_EDGE_PORT must be a port number" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"NARU_EDGE_PORT": "50051"}, "NARU_EDGE_PORT and NARU_AUTHSVC_PORT are both 50051"),
        ({"NARU_UP_REDISPORT": "1"}, "NARU_UP_REDISPORT is not a setting of `naru up`"),
        ({"NARU_UP_STATE": "/dev/null/state"}, "Cannot write to /dev/null/state"),
    ],
)
def test_what_up_cannot_do_is_said_in_a_line(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    """Clashing ports, an unknown variable, a folder that cannot be: no traceback."""
    done = naru("up", {"NARU_UP_STATE": str(tmp_path / "state"), **environ})
    assert done.returncode == 1
    assert said in " ".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


def test_a_secret_by_file_replaces_the_default(tmp_path: Path) -> None:
    """`..._FILE` of the caller and the default of `naru up` would be two values for one setting."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    url_file = tmp_path / "url"
    url_file.write_text("sqlite+aiosqlite:////tmp/x.db\n")
    environ = settings_from({"NARU_AUTHSVC_DATABASE_URL_FILE": str(url_file)}, state).environ
    assert load(AuthsvcConfig, environ).database_url == "sqlite+aiosqlite:////tmp/x.db"


def test_no_secret_is_in_the_environment(tmp_path: Path) -> None:
    """Services read them from files; a value that the caller has set takes the place of the file."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    settings = settings_from({}, state)
    Up(settings, Console())._redis()
    environ = settings.environ
    made = {path.read_text().strip() for path in state.secrets.iterdir()}
    assert not [name for name, value in environ.items() if any(secret in value for secret in made)]
    config = load(AccountingConfig, environ)
    assert config.outcome_key == state.secret("outcome-key")
    assert config.redis_url == f"redis://:{state.secret('redis-password')}@127.0.0.1:50064/0"
    own = {"NARU_ACCOUNTING_OUTCOME_KEY": "k" * 40}
    assert load(AccountingConfig, settings_from(own, state).environ).outcome_key == "k" * 40


async def test_a_log_stays_small(tmp_path: Path) -> None:
    """What came before is kept once; the process writes on into the same file."""
    code = "import time\nfor n in range(1000000): print(n, flush=True); time.sleep(0.001)"
    supervised = Supervised(program(tmp_path, code), lambda _: None, ready=True)
    supervised.task = asyncio.create_task(supervised.keep_running())
    log, kept = tmp_path / "log", tmp_path / "log.1"
    for _ in range(2):
        await until(lambda: log.exists() and log.stat().st_size > 200)
        keep_small(log, 200)
        assert kept.stat().st_size > 200
    seen = [int(line) for line in kept.read_text().splitlines()]
    assert seen == sorted(seen)
    await until(lambda: log.stat().st_size > 0)
    assert int(log.read_text().splitlines()[0]) > seen[-1]
    await supervised.stop()


def test_a_log_that_has_no_room_for_a_copy_stays_small(tmp_path: Path) -> None:
    """A full disk loses what came before, and nothing else; no part of a copy takes room."""
    log, kept = tmp_path / "log", tmp_path / "log.1"
    log.write_bytes(b"x" * 300)
    kept.symlink_to("/dev/full")
    keep_small(log, 200)
    assert log.stat().st_size == 0
    assert not kept.is_symlink()


def test_a_service_gets_the_time_to_stop_that_it_was_given(tmp_path: Path) -> None:
    """SIGKILL comes after its own grace for running requests, not before."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    up = Up(settings_from({"NARU_INFERENCE_SHUTDOWN_GRACE": "120"}, state), Console())
    assert (up._stop_seconds("inference"), up._stop_seconds("accounting")) == (135, 45)
    assert up._all_stop_seconds() > 135 + 3 * 45
    embeddings = {"NARU_INFERENCE_SHUTDOWN_GRACE": "120", "NARU_UP_EMBEDDINGS": "minilm"}
    both = Up(settings_from(embeddings, state), Console())
    assert both._all_stop_seconds() == up._all_stop_seconds() + 135


def test_down_waits_as_long_as_the_supervisor_may_take(tmp_path: Path) -> None:
    """It writes down how long that is; then the one that asked gets its line and exit code 1."""
    code = f"""
import signal, time
from pathlib import Path
from naru.cli.state import StateFolder
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with StateFolder(Path({str(tmp_path)!r})).claimed(1.0):
    print("claimed", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        assert supervisor.stdout.readline() == "claimed\n"
        done = naru("down", {"NARU_UP_STATE": str(tmp_path)})
        supervisor.kill()
    assert done.returncode == 1
    assert f"Process {supervisor.pid} has not stopped within 1 seconds." in done.stdout


def test_a_second_up_says_that_there_is_a_first(tmp_path: Path) -> None:
    """And names it."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    with state.claimed():
        done = naru("up", {"NARU_UP_STATE": str(state.root)})
        assert state.supervisor() == os.getpid()
    assert done.returncode == 1
    assert f"running already, as process {os.getpid()}" in done.stdout
    assert state.supervisor() is None


def test_a_stale_process_id_is_nobody(tmp_path: Path) -> None:
    """After a kill -9 the id stays in the file and may become another process's: that one is neither stopped nor in the way."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        state.pid_file.write_text(f"{stranger.pid}\n")
        done = naru("down", {"NARU_UP_STATE": str(state.root)})
        assert (done.returncode, done.stdout.strip()) == (0, "Naru is not running.")
        assert stranger.poll() is None
        with state.claimed() as last_was_killed:
            assert last_was_killed
        with state.claimed() as last_was_killed:
            assert not last_was_killed
    finally:
        stranger.kill()
        stranger.wait()


def test_secrets_are_made_once_and_private(tmp_path: Path) -> None:
    """The second run finds the first one's; nobody else can read them."""
    state = StateFolder(tmp_path / "state")
    state.prepare()
    first = {path.name: path.read_text() for path in state.secrets.iterdir()}
    state.prepare()
    assert first == {path.name: path.read_text() for path in state.secrets.iterdir()}
    assert len(set(first.values())) == len(first)
    assert all(path.stat().st_mode & 0o077 == 0 for path in state.secrets.iterdir())
