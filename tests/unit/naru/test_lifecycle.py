"""How a process stops."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys

import pytest

from naru.lifecycle import Background

# Says what it does; unwinding takes until it is told to go on, or for ever.
SERVICE = """
import asyncio, sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import ClassVar
from naru.config import ServiceConfig
from naru.lifecycle import Running, main

fails = sys.argv[1] == "fails"

@dataclass(frozen=True, slots=True, kw_only=True)
class Config(ServiceConfig):
    SERVICE: ClassVar[str] = "edge"

@asynccontextmanager
async def running(config, lifecycle):
    if fails:
        asyncio.get_running_loop().call_soon(lifecycle.fail, "a test")
    else:
        print("serving", flush=True)
    yield Running(1)
    print("stopping", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    print("stopped", flush=True)

sys.exit(main(Config, running, []))
"""


def service(how: str, before: str = "") -> subprocess.Popen[str]:
    """A process that runs SERVICE, and something before."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\n{SERVICE}", how],
        # A shell that has sourced an installation's settings holds some that this service does not know.
        env={name: value for name, value in os.environ.items() if not name.startswith("NARU_")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def heard(process: subprocess.Popen[str]) -> str:
    """The next line it prints."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_stops_in_order_and_the_second_at_once(number: signal.Signals) -> None:
    """Exit code 0 when it could finish; 128 and the signal when it could not."""
    with service("runs") as process:
        assert heard(process) == "serving"
        process.send_signal(number)
        assert heard(process) == "stopping"
        process.send_signal(number)
        assert process.wait(10) == 128 + number
    with service("runs") as process:
        assert heard(process) == "serving"
        process.send_signal(number)
        assert heard(process) == "stopping"
        assert process.communicate("\n", timeout=10)[0] == "stopped\n"
        assert process.returncode == 0


def test_the_first_signal_does_not_cut_a_failed_service_short() -> None:
    """One that stops because something failed still finishes what it has, and exits with 1."""
    with service("fails") as process:
        assert heard(process) == "stopping"
        process.send_signal(signal.SIGTERM)
        assert process.communicate("\n", timeout=10)[0] == "stopped\n"
        assert process.returncode == 1


@pytest.mark.parametrize(("hard", "soft"), [(2_048, 2_048), (256, 256), (None, 65_536)])
def test_it_may_open_as_many_files_as_the_system_lets_it(hard: int | None, soft: int) -> None:
    """Many systems let a program open 1,024 until it asks for more; beyond what it needs it does not ask."""
    hard = hard or resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    before = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))"
    with service("runs", before) as process:
        assert heard(process) == "serving"
        found = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        process.kill()
    assert found == (soft, hard)


async def test_a_task_that_missed_its_cancellation_is_told_again() -> None:
    """Closing does not wait for ever for a task in which a library took the cancellation for its own."""
    heard = 0

    async def deaf() -> None:
        nonlocal heard
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                heard += 1
                if heard == 2:
                    raise

    background = Background(lambda *_: None)
    _ = background.start("deaf", deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await background.close()
    assert heard == 2
