"""A real Redis for a test."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from naru.embedded import redis_executable

SERVER_VARIABLE = "NARU_TEST_REDIS_SERVER"
"""Names another redis-server for tests to run on."""


@contextmanager
def redis_server() -> Iterator[str]:
    """Runs an empty Redis on a free port of 127.0.0.1 and yields its URL."""
    executable = os.environ.get(SERVER_VARIABLE) or redis_executable()
    with tempfile.TemporaryDirectory(prefix="naru-redis-") as folder:
        port = free_port()
        process = subprocess.Popen(  # noqa: S603 -- our own executable and arguments
            [executable, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for_port(port, process)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """So many different ports of 127.0.0.1 that nobody listens on at this moment."""
    with ExitStack() as stack:
        # All at once: a port that was let go may be given out again.
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    (port,) = free_ports(1)
    return port


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"redis-server exited with {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise RuntimeError("redis-server did not listen within 10 seconds")
