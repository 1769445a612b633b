"""`naru tiers`: what each tier allows."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated
from uuid import uuid4

import typer
from rich.markup import escape
from rich.table import Column, Table

from naru.api.accounting.v1 import tier_service_pb2, tier_service_pb2_grpc
from naru.cli import session, tables
from naru.cli.rules import LIMIT_SYNTAX, limit_text, parse_limit
from naru.client import ServiceClient
from naru.errors import NaruError, Reason

app = typer.Typer(no_args_is_help=True, help="See and change what each tier allows.")
_TIMEOUT_SECONDS = 10.0
_Name = Annotated[str, typer.Argument(help="The tier's name.")]


@app.command("list")
def list_tiers() -> None:
    """List tiers."""

    async def call(client: ServiceClient) -> list[tier_service_pb2.Tier]:
        stub = tier_service_pb2_grpc.TierServiceStub(client.channel)
        request = tier_service_pb2.ListTiersRequest(page_size=1000)
        return [tier async for page in session.pages(client, stub.ListTiers, request) for tier in page.tiers]

    table = Table(Column("tier", no_wrap=True), Column("limits", overflow="fold"), "default output tokens", "changed")
    for tier in session.run("accounting", call):
        table.add_row(
            tier.name,
            "\n".join(map(limit_text, tier.limits)) or "(none)",
            f"{tier.default_output_tokens:,}",
            _changed(tier),
        )
    tables.show(table)


@app.command()
def show(name: _Name) -> None:
    """Show a tier: a line for each limit, as `naru tiers set` takes it."""

    async def call(client: ServiceClient) -> tier_service_pb2.Tier:
        stub = tier_service_pb2_grpc.TierServiceStub(client.channel)
        request = tier_service_pb2.GetTierRequest(name=name)
        return (await client.call(stub.GetTier, request, timeout=_TIMEOUT_SECONDS)).tier

    tier = session.run("accounting", call)
    for limit in tier.limits:
        typer.echo(f"--limit {limit_text(limit)}")
    typer.echo(f"--default-output-tokens {tier.default_output_tokens}")
    typer.secho(f"Tier {tier.name}, {_changed(tier)}.", err=True)


@app.command("set")
def set_tier(
    name: _Name,
    limit: Annotated[list[str] | None, typer.Option(help=f"Give it again for more. {escape(LIMIT_SYNTAX)}")] = None,
    default_output_tokens: Annotated[
        int,
        typer.Option(help="Generated tokens to reserve where the caller sets no cap; 0 takes 4096.", min=0),
    ] = 0,
) -> None:
    """Make a tier, or replace all that it allows. Without any limit it allows everything.

    For example: naru tiers set team --limit requests/minute=60 --limit workspace:cost/month=50.00,warn=80
    """
    tier = tier_service_pb2.Tier(
        name=name, limits=map(_read_limit, limit or []), default_output_tokens=default_output_tokens
    )

    async def call(client: ServiceClient) -> tier_service_pb2.Tier:
        stub = tier_service_pb2_grpc.TierServiceStub(client.channel)
        update = tier_service_pb2.UpdateTierRequest(request_id=str(uuid4()), tier=tier)
        try:
            return (await client.call(stub.UpdateTier, update, timeout=_TIMEOUT_SECONDS)).tier
        except NaruError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
        create = tier_service_pb2.CreateTierRequest(request_id=str(uuid4()), tier=tier)
        return (await client.call(stub.CreateTier, create, timeout=_TIMEOUT_SECONDS)).tier

    made = session.run("accounting", call)
    typer.echo(f"Tier {made.name} has {len(made.limits)} limits now.")


@app.command()
def delete(name: _Name) -> None:
    """Delete a tier that no key or budget has; a built-in one is put back to what it was."""
    request = tier_service_pb2.DeleteTierRequest(name=name, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> None:
        stub = tier_service_pb2_grpc.TierServiceStub(client.channel)
        await client.call(stub.DeleteTier, request, timeout=_TIMEOUT_SECONDS)

    session.run("accounting", call)
    typer.echo(f"Deleted tier {name}.")


def _read_limit(text: str) -> tier_service_pb2.TierLimit:
    try:
        return parse_limit(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--limit") from error


def _changed(tier: tier_service_pb2.Tier) -> str:
    if not tier.HasField("create_time"):
        return "built in or configured"
    return tier.update_time.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")
