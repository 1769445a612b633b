"""Starting processes so that none is ever left behind.

A service that is killed leaves its engine's processes alive. So each service runs in a session of its own, and the supervisor
is a child subreaper (prctl(2), PR_SET_CHILD_SUBREAPER): what a dead service leaves becomes the supervisor's child, is found by
its session, and is ended before the service starts again. A service whose supervisor dies is told to end (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Makes orphaned descendants children of this process. Raises OSError where the kernel refuses."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def start(command: Sequence[str], environ: Mapping[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Starts `command` in a session of its own; it gets SIGTERM when this process dies."""
    return subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 -- it makes one system call and takes no lock
    )


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def end_session(session: int) -> list[int]:
    """Kills every process of `session`, reaps those that are ours, and returns the ids of those it found.

    Returns once they are gone; a process that the kernel cannot end within 5 seconds is left.
    """
    found = session_members(session)
    for process_id in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while session_members(session) and time.monotonic() < deadline:
        time.sleep(0.01)
    # What was adopted is ours to reap, also what had ended by itself; the rest whoever started it reaps.
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-session, os.WNOHANG)[0]:
            pass
    return found


def session_members(session: int) -> list[int]:
    """Ids of the live processes in `session`, zombies left out."""
    members = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            # After the name in parentheses: state, parent, group, session (proc(5)).
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # ended while we looked
        if int(fields[3]) == session and fields[0] != "Z":
            members.append(int(entry.name))
    return members
