"""CPU time that processes took: noise from beside disturbs it less than it disturbs the time on a clock."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_LOOK_SECONDS, _IDLE_SHARE, _PATIENCE_SECONDS = 0.5, 0.05, 15.0


def cpu_seconds(pid: int, without: Collection[int] = ()) -> float:
    """What a process and all that descend from it took so far, those that ended included.

    Not what is in `without` and descends from that; what of it has ended before is counted none the less.
    """
    parents, ticks = {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        one = int(path.parent.name)
        parents[one] = int(fields[1])
        # Its own, and what those of its children took that it has waited for.
        ticks[one] = sum(map(int, fields[11:15]))
    found = {pid}
    while more := {one for one, parent in parents.items() if parent in found} - found - set(without):
        found |= more
    return sum(ticks.get(one, 0) for one in found) / _TICKS


def until_idle() -> None:
    """Waits until the cores were busy for less than a twentieth of half a second, 15 s at most.

    Whoever still works on what its clients left behind would do so at the cost of whoever is measured next.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while time.monotonic() < deadline:
        idle, whole = _core_ticks()
        time.sleep(_LOOK_SECONDS)
        idle_after, whole_after = _core_ticks()
        if idle_after - idle > (1 - _IDLE_SHARE) * (whole_after - whole):
            return


def _core_ticks() -> tuple[int, int]:
    """How long all cores have been idle, waits for disks included, and how long there were any."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


class Meter:
    """What named processes took since it was made, each with what descends from it, but without those that have another name."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._pids = pids
        self._before = self._so_far()

    def taken(self) -> dict[str, float]:
        """Seconds of CPU time."""
        return {name: seconds - self._before[name] for name, seconds in self._so_far().items()}

    def report(self, items: int) -> str:
        """Microseconds of CPU time for each item."""
        return each(self.taken(), items)

    def _so_far(self) -> dict[str, float]:
        named = set(self._pids.values())
        return {name: cpu_seconds(pid, named - {pid}) for name, pid in self._pids.items()}


def each(taken: Mapping[str, float], items: int) -> str:
    """Seconds of CPU time as microseconds for each item."""
    return ", ".join(f"{name} {seconds / items * 1e6:,.0f} us" for name, seconds in taken.items())
