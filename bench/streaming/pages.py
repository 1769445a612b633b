"""A page for each part, with its tables and their pictures beside it, and a list of the pages."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path

from bench.streaming.pictures import draw
from bench.streaming.report import Effort, Table, markdown

_LIST = "README.md"
_ABOUT = "What streaming costs, a page for each part of `make bench`, which writes them and this list."


def write(folder: Path, part: str, *, title: str, how: str, tables: Sequence[Table], effort: Effort) -> Path:
    """Writes the page of a part and its pictures, and returns where the page is. Other parts' stay as they are.

    Args:
        folder: For pages and pictures.
        part: Name of the page.
        title: Its headline.
        how: How it was measured, in Markdown.
        tables: Its tables.
        effort: Said on the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told = [f"# {title}", how.strip(), f"{_effort(effort)} {machine()}"]
    for table in tables:
        told.append(markdown(table))
        if picture := draw(table, folder):
            told.append(f"![{table.title}]({picture.name})")
    page = folder / f"{part}.md"
    _ = page.write_text("\n\n".join(told) + "\n")
    return page


def write_list(folder: Path) -> Path:
    """Lists the pages that there are, by their headlines."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = [page for page in sorted(folder.glob("*.md")) if page.name != _LIST]
    lines = [f"- [{page.read_text().partition(chr(10))[0].removeprefix('# ')}]({page.name})" for page in pages]
    told = ["# Streaming", _ABOUT, *(["\n".join(lines)] if lines else [])]
    path = folder / _LIST
    _ = path.write_text("\n\n".join(told) + "\n")
    return path


def machine() -> str:
    """Cores, memory and Python, as a sentence."""
    gibibytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    cores = len(os.sched_getaffinity(0))
    return f"All on one machine: {cores} cores, {gibibytes:.0f} GiB of memory, Python {platform.python_version()}."


def _effort(effort: Effort) -> str:
    return f"{effort.rounds} rounds, {effort.seconds} s for each measurement, unless it says otherwise."
