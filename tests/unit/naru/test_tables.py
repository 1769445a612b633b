"""Tables of the command line."""

from __future__ import annotations

import io

from rich.console import Console
from rich.table import Table

from naru.cli.tables import show


def test_nothing_is_cut_where_a_terminal_is_narrow() -> None:
    """Every column and every character is there."""
    cells = [f"{name}-" + "x" * 40 for name in "abcdef"]
    table = Table(*cells)
    table.add_row(*cells)
    output = io.StringIO()
    show(table, Console(file=output, width=80))
    assert all(output.getvalue().count(cell) == 2 for cell in cells)
