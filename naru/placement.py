"""Which CPUs the threads of a service run on."""

from __future__ import annotations

import multiprocessing
import os
from contextlib import suppress
from pathlib import Path


def cpus_from(text: str) -> frozenset[int]:
    """CPUs by their numbers, as in `1-3,5`; empty: all that this process may run on.

    Raises:
        ValueError: That is no list of numbers, or this process may run on none of them.
    """
    allowed = frozenset(os.sched_getaffinity(0))
    if not text:
        return allowed
    named: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"must be numbers of CPUs as in 1-3,5, not {text!r}")
        named |= {cpu for cpu in allowed if int(first) <= cpu <= int(last or first)}
    if not named:
        raise ValueError(f"names none of the CPUs that this process may run on: {text!r}")
    return frozenset(named)


def run_on(cpus: frozenset[int]) -> None:
    """Has all threads of this process run on these only, and those that they will make.

    Of processes that it made with `multiprocessing`, as vLLM's engine is one, the first thread, which decides what the engine
    does next and mostly does it, gets all other CPUs to itself, if there are any; their further threads run anywhere.
    """
    others = os.sched_getaffinity(0) - cpus
    for process in multiprocessing.active_children():
        if others and process.pid is not None:
            with suppress(ProcessLookupError):  # it ended
                os.sched_setaffinity(process.pid, others)
    moved: set[str] = set()
    # One that was made meanwhile may have got its place from one that had not moved yet.
    while new := {path.name for path in Path("/proc/self/task").iterdir()} - moved:
        for thread in new:
            with suppress(ProcessLookupError):  # it ended
                os.sched_setaffinity(int(thread), cpus)
        moved |= new


def beside_an_engine() -> str:
    """All CPUs but the first, as `cpus_from` reads them: that one is then the engine's alone. Empty where there is one only."""
    _, *others = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, others))
