"""`naru up` as a whole, on the simulated engine: started, interrupted, killed, started again."""

from __future__ import annotations

import os
import pty
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from naru.identity import ServiceName
from tests.support.platform import ROOT, Platform, alive, descendants, program, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]
MODEL = "some-model"
ENVIRON = {
    "NARU_INFERENCE_ENGINE": "simulated",
    "NARU_INFERENCE_MODEL": MODEL,
    "NARU_INFERENCE_SERVED_MODEL_NAME": "",
    "NARU_INFERENCE_SIMULATED_ANSWER_TOKENS": "8000",
}


@pytest.fixture
def naru(tmp_path: Path) -> Iterator[Platform]:
    """One installation that the test starts; nothing of it is left, whatever the test did."""
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    for name in ServiceName:
        (tokens / f"service-token-{name}").write_text(secrets.token_urlsafe(32))
    environ = ENVIRON | {"NARU_SERVICE_TOKENS_DIR": str(tokens)}
    platform = Platform(tmp_path / "state", environ)
    yield platform
    if platform.process.poll() is None:
        platform.stop()
    platform.process.wait()
    until(lambda: not platform.left(), 30, "all processes to have ended")


def ask(naru: Platform, max_tokens: int = 2) -> str:
    """One chat's text."""
    messages = [{"role": "user", "content": "Go."}]
    answer = naru.client().chat.completions.create(model=MODEL, messages=messages, max_tokens=max_tokens)  # type: ignore[arg-type] # a message
    return answer.choices[0].message.content or ""


def test_killed_and_started_again(naru: Platform) -> None:
    """After a kill -9 the next `naru up` waits for what was left, and has the same key; `naru down` ends it in order."""
    naru.start()
    first_key, first = naru.api_key, naru.state.read_dev_env()
    assert first["NARU_ADMIN_EMAIL"] == "admin@localhost"
    assert first["NARU_ADMIN_PASSWORD"] in naru.output.read_text()
    assert f'"model": "{MODEL}"' in naru.output.read_text(), "the curl line names the model"
    naru.process.kill()
    naru.process.wait()
    naru.start()
    assert naru.api_key == first_key
    assert naru.state.read_dev_env() == first
    assert first["NARU_ADMIN_PASSWORD"] not in naru.output.read_text(), "a password is shown once"
    assert ask(naru)
    down = subprocess.run(
        [sys.executable, "-m", "naru", "down"],
        cwd=ROOT,
        env=naru.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (down.returncode, down.stdout.strip()) == (0, "Naru has stopped.")
    assert naru.process.wait(timeout=60) == 0
    assert naru.state.pid_file.read_text() == ""


def test_a_second_signal_ends_it_at_once(naru: Platform) -> None:
    """The first lets a running answer end, which takes 30 seconds at most; the second waits for nothing."""
    naru.start()

    def long_answer() -> None:
        with pytest.raises(openai.APIError):
            ask(naru, 6000)

    client = threading.Thread(target=long_answer)
    client.start()
    until(lambda: naru.metric("inference", "naru_inference_generations") == 1, 30, "the answer to begin")
    (edge,) = naru.service_ids("edge")
    naru.process.send_signal(signal.SIGINT)
    until(lambda: '"stopping"' in (naru.state.logs / "edge.log").read_text(), 30, "the edge to begin to stop")
    assert alive(edge)
    naru.process.send_signal(signal.SIGINT)
    assert naru.process.wait(timeout=15) == 0
    client.join()


def test_closing_the_terminal_ends_it_in_order(naru: Platform) -> None:
    """Nothing can be printed any more then; everything is taken down all the same."""
    ours, theirs = pty.openpty()
    # Whoever runs the tests under nohup has the signal ignored, and what they start inherits that.
    code = (
        "import fcntl, signal, termios; signal.signal(signal.SIGHUP, signal.SIG_DFL);"
        " fcntl.ioctl(0, termios.TIOCSCTTY, 0); from naru.cli.main import main; main()"
    )
    naru.process = subprocess.Popen(
        [sys.executable, "-c", code, "up"],
        cwd=ROOT,
        env=naru.environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    shown = b""
    while b"authsvc is ready" not in shown:
        shown += os.read(ours, 4096)
    below = descendants(naru.process.pid)
    assert any("redis-server" in program(process_id) for process_id in below)
    os.close(ours)
    assert naru.process.wait(timeout=60) == 0
    assert not any(map(alive, below))
    assert naru.state.pid_file.read_text() == ""


def test_a_refused_up_changes_nothing(naru: Platform) -> None:
    """Whoever starts a second one, with a port of its own for Redis, leaves the first one's services what they need."""
    naru.start()
    redis_url = (naru.state.secrets / "redis-url").read_text()
    second = subprocess.run(
        [sys.executable, "-m", "naru", "up"],
        cwd=ROOT,
        env=naru.environ | {"NARU_UP_REDIS_PORT": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode == 1
    assert "running already" in second.stdout
    assert (naru.state.secrets / "redis-url").read_text() == redis_url


def test_an_edge_with_an_address_and_names_of_its_own(naru: Platform) -> None:
    """It is asked at that address, by one of those names; the key in dev.env is kept."""
    naru.environ |= {"NARU_EDGE_HOST": "127.0.0.2", "NARU_EDGE_TRUSTED_HOSTS": "*.example.com"}
    naru.start()
    first = naru.state.read_dev_env()
    assert first["OPENAI_BASE_URL"] == f"http://127.0.0.2:{naru.ports['NARU_EDGE_PORT']}/v1"
    assert naru.stop() == 0
    naru.start()
    assert naru.state.read_dev_env() == first
