"""How many streams somebody holds: the most at which four fifths of the tokens that are due still come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

HELD = 0.8
"""Share of the tokens that are due. Below it steps take more than a fifth longer than they should."""
STEPS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048)


def search(share: Callable[[int], float], steps: Sequence[int] = STEPS) -> dict[int, float]:
    """The share that came with each number of streams that was tried.

    More and more until too few tokens come, or fewer and fewer where the first number is too many, and at last half-way between
    the most that were held and the least that were not.

    Args:
        share: Measures it, for a number of streams.
        steps: Numbers to try, growing. Below the first it is halved, down to one.
    """
    found: dict[int, float] = {}
    for streams in steps:
        found[streams] = share(streams)
        if found[streams] < HELD:
            break
    streams = steps[0]
    while not capacity(found) and streams > 1:
        streams //= 2
        found[streams] = share(streams)
    most = capacity(found)
    above = min((tried for tried in found if tried > most), default=most)
    if above - most > 1:
        between = (most + above) // 2
        found[between] = share(between)
    return dict(sorted(found.items()))


def capacity(found: dict[int, float]) -> int:
    """The most streams that were held; 0 for none."""
    return max((streams for streams, share in found.items() if share >= HELD), default=0)
