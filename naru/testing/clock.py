"""A clock that moves only when told to."""

from __future__ import annotations


class FakeClock:
    """Starts at `start` seconds since the Unix epoch."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._now = start

    def time(self) -> float:
        """Seconds since the Unix epoch."""
        return self._now

    def monotonic(self) -> float:
        """The same figure; it never goes back."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Lets time pass. Raises ValueError for a negative span."""
        if seconds < 0:
            raise ValueError("time does not go back")
        self._now += seconds
