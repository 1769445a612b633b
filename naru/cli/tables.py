"""Tables on the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def show(table: Table, console: Console | None = None) -> None:
    """Prints a table as wide as it needs to be: a cell that is cut or missing is worse than a line that goes on."""
    console = console or Console()
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
