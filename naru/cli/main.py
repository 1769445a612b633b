"""The `naru` command."""

from __future__ import annotations

from typing import Annotated

import typer

from naru import __version__
from naru.cli import (
    audit,
    bootstrapping,
    budgets,
    database,
    keys,
    ledger,
    logins,
    models,
    prices,
    session,
    tiers,
    users,
    workspaces,
)
from naru.cli import up as supervision
from naru.cli import usage as usages
from naru.cli.limits import limits
from naru.cli.requests import requests
from naru.client import ServiceClient

# A traceback that shows local variables would show keys.
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Naru: a self-hosted LLM API platform.",
)
app.add_typer(keys.app, name="keys")
app.add_typer(audit.app, name="audit")
app.add_typer(database.app, name="db")
app.add_typer(users.app, name="users")
app.add_typer(workspaces.app, name="workspaces")
for command in (logins.login, logins.register, logins.logout, logins.password, logins.whoami):
    app.command()(command)
app.add_typer(tiers.app, name="tiers")
app.add_typer(budgets.app, name="budgets")
app.add_typer(models.app, name="models")
app.add_typer(prices.app, name="prices")
app.add_typer(ledger.app, name="ledger")
app.command()(limits)
app.add_typer(usages.app, name="usage")
app.command()(requests)


@app.command()
def up() -> None:
    """Run Redis and the four services on this machine, supervised, until Ctrl-C."""
    raise typer.Exit(supervision.up(session.state_folder()))


@app.command()
def down() -> None:
    """Stop a running `naru up`."""
    raise typer.Exit(supervision.down(session.state_folder()))


@app.command()
def bootstrap(
    additional: Annotated[bool, typer.Option(help="Make one more admin key on an installation that has one.")] = False,
) -> None:
    """Make the first workspace, its admin key and an administrator. Needs the operator's service token.

    Key and password are shown once, and written to dev.env where there is a state folder.
    """

    async def call(client: ServiceClient) -> tuple[bootstrapping.FirstKey, bootstrapping.FirstAdmin | None]:
        return await bootstrapping.first_key(client, additional=additional), await bootstrapping.first_admin(client)

    key, admin = session.run("authsvc", call, operator=True)
    # The key alone on standard output, so that a script can take it.
    typer.echo(key.api_key)
    typer.secho(f"Admin key of workspace {key.workspace_id}. It is shown only this once.", err=True)
    if admin is not None:
        typer.secho(f"Administrator {admin.email}, password {admin.password}. It is shown only this once.", err=True)
    bootstrapping.remember(session.state_folder(), key, admin)


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the `naru` script."""
    app()
