"""What was measured, as tables in Markdown."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Found = Mapping[str, Mapping[str, Sequence[float]]]
"""The figures of every round by row, which is mostly a contestant, and by what they say, units included."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table, and what of it is drawn.

    Attributes:
        slug: Name of its picture.
        found: Its rows and columns.
        drawn: Columns that the picture shows, each in axes of its own.
        note: Said below it.
    """

    slug: str
    title: str
    found: Found
    drawn: Sequence[str]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: In which contestants take turns; figures are medians of them. One before them warms up.
        seconds: Of each measurement.
    """

    rounds: int = 5
    seconds: int = 8


def options(description: str | None) -> argparse.ArgumentParser:
    """The options of a part that runs alone: `--rounds` and `--seconds`, as in `Effort`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--seconds", type=int, default=Effort().seconds, help="of each measurement")
    return parser


def markdown(table: Table) -> str:
    """The median, and the least and most, of every figure."""
    names = list(dict.fromkeys(name for figures in table.found.values() for name in figures))
    rows = [
        [contestant, *(_cell(figures.get(name, ())) for name in names)] for contestant, figures in table.found.items()
    ]
    head = ["", *names]
    lines = (f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
    return "\n".join([f"## {table.title}", "", *lines, *(["", table.note] if table.note else [])])


def figure_text(figure: float, most: float) -> str:
    """A figure, as exact as one among figures of which this is the most needs to be."""
    digits = 2 if most < 10 else 1 if most < 100 else 0
    return f"{figure:,.{digits}f}"


def _cell(figures: Sequence[float]) -> str:
    if not figures:
        return ""
    most = max(figures)
    least, middle, greatest = (figure_text(figure, most) for figure in (min(figures), statistics.median(figures), most))
    return middle if least == greatest else f"{middle} ({least} to {greatest})"
