"""`naru db`: the databases of the services."""

from __future__ import annotations

import subprocess
import sys
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Prepare the databases.")
_SERVICES = ("authsvc", "accounting")


@app.command()
def upgrade(
    services: Annotated[list[str] | None, typer.Argument(help="authsvc, accounting or, by default, both.")] = None,
) -> None:
    """Bring the schemas up to date, by the services' own settings. What is up to date stays as it is."""
    unknown = [name for name in services or () if name not in _SERVICES]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]} is none of {', '.join(_SERVICES)}")
    # Not imported: this command is a client of the services, and belongs to none of them.
    for name in services or _SERVICES:
        code = subprocess.run([sys.executable, "-m", name, "migrate"], check=False).returncode
        if code:
            raise typer.Exit(code)
        typer.echo(f"The database of {name} is up to date.")
