"""The `naru` command."""

from __future__ import annotations

from typing import Annotated

import typer

from naru import __version__
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.cli import budgets, keys, ledger, prices, session, tiers
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
app.add_typer(tiers.app, name="tiers")
app.add_typer(budgets.app, name="budgets")
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
    """Make the first workspace and admin key, shown once. Needs the operator's service token."""

    async def call(client: ServiceClient) -> auth_service_pb2.BootstrapResponse:
        stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        request = auth_service_pb2.BootstrapRequest(additional=additional)
        return await client.call(stub.Bootstrap, request, timeout=10)

    response = session.run("authsvc", call, operator=True)
    typer.echo(response.api_key)
    typer.secho(f"Admin key of workspace {response.workspace_id}. It is shown only this once.", err=True)


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(__version__)


def main() -> None:
    """Entry point of the `naru` script."""
    app()
