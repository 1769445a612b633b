"""A picture of each table: a panel for each column that is drawn, medians as bars or lines, from the least to the most."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from bench.streaming.report import Table, figure_text

_OURS, _OTHERS, _SPREAD = "#1f6feb", "#9aa4b2", "#30363d"
_PANELS_WIDE = 2
_PANEL_WIDTH, _LINE_HEIGHT, _BAR_HEIGHT, _FRAME_HEIGHT = 5.0, 2.6, 0.36, 0.75
_FEWEST_POINTS = 3
_LOGARITHMIC_FROM = 16
"""Rows that grow by more than this are drawn on a logarithmic axis: they are chosen by doubling."""


@dataclass(frozen=True, slots=True)
class _Spread:
    """Of the rounds of one row."""

    least: float
    middle: float
    most: float


def draw(table: Table, folder: Path) -> Path | None:
    """Writes `<slug>.png`, and returns where; None when nothing of the table is to be drawn.

    Rows that are numbers which grow, with or without the same unit behind each, become the horizontal axis of lines. All others
    become bars, those of Naru in a colour of their own.
    """
    columns = {name: spread for name in table.drawn if (spread := _column(table, name))}
    if not columns:
        return None
    path = folder / f"{table.slug}.png"
    points = _numbers(list(table.found))
    wide = min(len(columns), _PANELS_WIDE)
    high = -(-len(columns) // wide)
    panel_height = _FRAME_HEIGHT + (_LINE_HEIGHT if points else _BAR_HEIGHT * len(table.found))
    figure = Figure(figsize=(_PANEL_WIDTH * max(wide, _PANELS_WIDE), 0.45 + panel_height * high), layout="constrained")
    _ = FigureCanvasAgg(figure)
    figure.suptitle(table.title, fontsize=11, fontweight="bold", wrap=True)
    panels = figure.subplots(high, wide, squeeze=False).flatten()
    for axes, (name, spread) in zip(panels, columns.items(), strict=False):
        _plain(axes, name)
        if points:
            _lines(axes, spread, points)
        else:
            _bars(axes, spread)
    for axes in panels[len(columns) :]:
        axes.set_axis_off()
    folder.mkdir(parents=True, exist_ok=True)
    # Without the library's version a picture of the same figures is the same file.
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _column(table: Table, name: str) -> dict[str, _Spread]:
    """By row, those left out that have no figure."""
    return {
        row: _Spread(min(figures[name]), statistics.median(figures[name]), max(figures[name]))
        for row, figures in table.found.items()
        if figures.get(name)
    }


def _numbers(rows: Sequence[str]) -> dict[str, float]:
    """Each row's number, where all are numbers that grow and have the same unit; empty otherwise."""
    parsed = [re.fullmatch(r"([\d,]*\.?\d+)\s*(.*)", row) for row in rows]
    told = [(float(match[1].replace(",", "")), match[2]) for match in parsed if match]
    values = [value for value, _ in told]
    grows = all(before < after for before, after in pairwise(values))
    if len(told) < max(len(rows), _FEWEST_POINTS) or not grows or len({unit for _, unit in told}) > 1:
        return {}
    return dict(zip(rows, values, strict=True))


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8.5, length=2)


def _bars(axes: Axes, spread: Mapping[str, _Spread]) -> None:
    """Rows from the top to the bottom, and the median behind each."""
    rows, values = list(spread), list(spread.values())
    middles = [value.middle for value in values]
    below_and_above = [[v.middle - v.least for v in values], [v.most - v.middle for v in values]]
    ours = [row.startswith("Naru") for row in rows]
    # Where nobody is Naru, or everybody, nobody stands out.
    colours = [_OURS if mine or not any(ours) else _OTHERS for mine in ours]
    _ = axes.barh(range(len(rows)), middles, color=colours, height=0.62)
    if any(value.least < value.most for value in values):  # one round has no spread
        _ = axes.errorbar(
            middles, range(len(rows)), xerr=below_and_above, fmt="none", ecolor=_SPREAD, capsize=2.5, lw=1
        )
    for position, value in enumerate(values):
        text = figure_text(value.middle, value.most)
        _ = axes.annotate(
            text, (value.most, position), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.invert_yaxis()
    # Room for the figures behind the bars; a bar begins at nothing, so that lengths compare.
    axes.set_xlim(min(0.0, *(value.least for value in values)), max(value.most for value in values) * 1.22 or 1.0)
    axes.xaxis.set_major_formatter(FuncFormatter(_tick))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="x", alpha=0.25, lw=0.6)
    axes.set_axisbelow(True)


def _lines(axes: Axes, spread: Mapping[str, _Spread], points: Mapping[str, float]) -> None:
    """The median by the rows' numbers, in the shade of the spread."""
    x = [points[row] for row in spread]
    values = list(spread.values())
    _ = axes.fill_between(x, [v.least for v in values], [v.most for v in values], color=_OURS, alpha=0.18, lw=0)
    _ = axes.plot(x, [v.middle for v in values], color=_OURS, marker="o", ms=3.5, lw=1.4)
    every = list(points.values())
    if every[0] > 0 and every[-1] / every[0] >= _LOGARITHMIC_FROM:
        axes.set_xscale("log", base=2)
    axes.set_xlim(*(_with_margin(every, logarithmic=axes.get_xscale() == "log")))
    axes.set_xticks(every, [f"{value:,.10g}" for value in every], rotation=40 if len(every) > 7 else 0)
    axes.xaxis.set_minor_locator(NullLocator())
    units = {re.sub(r"^[\d,.]+\s*", "", row) for row in points}
    axes.set_xlabel(units.pop(), fontsize=8.5)
    axes.set_ylim(min(0.0, *(v.least for v in values)), max(v.most for v in values) * 1.12 or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(_tick))
    axes.grid(alpha=0.25, lw=0.6)


def _with_margin(every: Sequence[float], *, logarithmic: bool) -> tuple[float, float]:
    """The same for all panels, so that they compare, also where somebody has no figure."""
    first, last = every[0], every[-1]
    if logarithmic:
        margin = (last / first) ** 0.04
        return first / margin, last * margin
    return first - (last - first) * 0.04, last + (last - first) * 0.04


def _tick(value: float, _: int | None) -> str:
    return f"{value:,.10g}"
