"""A real Redis for a test."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from naru.embedded import redis_executable

SERVER_VARIABLE = "NARU_TEST_REDIS_SERVER"
"""Names another redis-server for tests to run on."""
_given: set[int] = set()
"""Ports that were given out: whoever asked for them may not listen on them yet."""


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
    """So many different ports of 127.0.0.1 that nobody listens on at this moment, and none that was given out before.

    They lie below the ports that systems hand out by themselves (32768 on Linux), so that no connection takes one before it is
    listened on, nor while its process is being started again.
    """
    with ExitStack() as stack:
        found: list[int] = []
        # Held until all are found. In an order of chance: several test runs may look at the same time.
        for port in random.sample(range(10_000, 32_000), 1_000):
            if port in _given:
                continue
            probe = stack.enter_context(socket.socket())
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                _given.update(found)
                return found
    raise RuntimeError("too few free ports from 10000 to 31999")


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
