"""Files that exports are written to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file that is there only once it is whole; errors end the command."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    part = path.with_name(f"{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    except OSError as error:
        typer.secho(f"{path}: {error.strerror or error}", fg="red", err=True)
        raise typer.Exit(1) from error
    finally:
        part.unlink(missing_ok=True)


def progress() -> Progress:
    """How far an export is, on standard error."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
    )
