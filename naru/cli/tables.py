"""Tables on the terminal."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.table import Table


def show(table: Table, *, file: IO[str] | None = None, width: int | None = None) -> None:
    """Prints a table as wide as it needs to be: a cell that is cut or missing is worse than a line that goes on.

    Texts are shown as they are. Some were written by others, who could end the command with what means something to rich, or
    hide what they wrote.

    Args:
        table: What to print.
        file: Where to; standard output by default.
        width: How wide at least; as the terminal by default.
    """
    console = Console(file=file, width=width, markup=False, emoji=False)
    needed = console.measure(table, options=console.options.update(max_width=10_000)).maximum
    console.width = max(console.width, needed)
    console.print(table)
