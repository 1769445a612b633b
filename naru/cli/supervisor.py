"""Keeps processes running: starts them, restarts what dies, leaves nothing behind."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from naru.cli import processes
from naru.lifecycle import EXIT_CONFIG

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 10.0
_SETTLED_SECONDS = 60.0
_TRIES_BEFORE_READY = 3


class GaveUpError(Exception):
    """A process cannot be kept running; the message shows the end of its log."""


@dataclass(frozen=True, slots=True)
class Program:
    """One process to keep running.

    Attributes:
        stop_seconds: How long it gets between SIGTERM and SIGKILL.
    """

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    log: Path
    stop_seconds: float = 10.0
    stop_signal: signal.Signals = signal.SIGTERM


@dataclass(slots=True)
class Supervised:
    """A program and how it is doing."""

    program: Program
    say: Callable[[str], None]
    ready: bool = False
    restarts: int = 0
    _process: subprocess.Popen[bytes] | None = None
    stopping: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def process_id(self) -> int | None:
        """Of the process, while it runs."""
        return None if self._process is None else self._process.pid

    def kill(self) -> None:
        """Ends it without waiting for anything; `stop` then finds it gone."""
        self.stopping = True
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    async def stop(self) -> None:
        """Ends it: its stop signal, SIGKILL when that was not enough, then whatever it left in its session."""
        self.stopping = True
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(self.program.stop_signal)
            try:
                await asyncio.to_thread(process.wait, self.program.stop_seconds)
            except subprocess.TimeoutExpired:
                self.say(f"{self.program.name} did not stop within {self.program.stop_seconds:.0f} s; killing it")
                process.kill()
        if self.task is not None:
            if process is None:
                self.task.cancel()  # it is pausing before a restart
            await asyncio.gather(self.task, return_exceptions=True)

    async def keep_running(self) -> None:
        """Runs it again and again until `stop`. Raises GaveUpError when that is hopeless."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            code = await self._run_once()
            if self.stopping:
                return
            if code == EXIT_CONFIG or (not self.ready and self.restarts + 1 >= _TRIES_BEFORE_READY):
                raise GaveUpError(
                    f"{self.program.name} exited with {code}. The end of {self.program.log}:\n{tail(self.program.log)}"
                )
            if time.monotonic() - started > _SETTLED_SECONDS:
                pause = _FIRST_PAUSE_SECONDS
            self.restarts += 1
            self.say(f"{self.program.name} exited with {code}; starting it again in {pause:.1f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> int:
        with self.program.log.open("ab") as output:
            process = processes.start(self.program.command, self.program.environ, output)
        self._process = process
        # A thread waits: the loop's child watcher and a subreaper's own waiting would take each other's children.
        code = await asyncio.to_thread(process.wait)
        leftovers = await asyncio.to_thread(processes.end_session, process.pid)
        if leftovers:
            self.say(f"{self.program.name} left {len(leftovers)} processes behind; ended them")
        self._process = None
        return code


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
