"""`naru keys`: make, list and revoke API keys."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import uuid4

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Column, Table

from naru.api.auth.v1 import api_key_pb2, api_key_service_pb2, api_key_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import role_to_proto, timestamp_to_proto
from naru.identity import Role

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")
_TIMEOUT_SECONDS = 10.0
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@app.command()
def create(  # noqa: PLR0917 -- typer makes an option of each
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    tier: Annotated[str, typer.Option(help="Tier of its limits; the workspace's by default.")] = "",
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    service_account: Annotated[str, typer.Option(help="A service account that owns it, such as dev-team.")] = "",
    workspace: Annotated[str, typer.Option(help="The workspace's id; yours by default.")] = "",
    models: Annotated[str, typer.Option(help="Globs of models it may use, separated by commas; all by default.")] = "",
    expires_in: Annotated[
        str, typer.Option(help="How long it lives, such as 30m, 12h or 90d; for ever by default.")
    ] = "",
) -> None:
    """Make a key. It is shown once."""
    request = api_key_service_pb2.CreateApiKeyRequest(
        request_id=str(uuid4()),
        description=description,
        workspace_id=workspace,
        service_account=service_account,
        role=role_to_proto(role),
        tier=tier,
        scopes=principal_pb2.Scopes(models=[glob.strip() for glob in models.split(",") if glob.strip()]),
    )
    if expires_in:
        request.expire_time.CopyFrom(timestamp_to_proto((datetime.now(UTC) + _span(expires_in)).timestamp()))

    async def call(client: ServiceClient) -> api_key_service_pb2.CreateApiKeyResponse:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(client.channel)
        return await client.call(stub.CreateApiKey, request, timeout=_TIMEOUT_SECONDS)

    response = session.run("authsvc", call)
    # The key alone on standard output, so that a script can take it.
    typer.echo(response.secret_key)
    typer.secho(f"Key {response.api_key.key_id} is shown only this once.", err=True)


@app.command("list")
def list_keys(
    show_revoked: Annotated[bool, typer.Option("--all", help="Revoked keys too.")] = False,
    workspace: Annotated[str, typer.Option(help="Only this workspace's.")] = "",
) -> None:
    """List keys, newest first."""

    async def call(client: ServiceClient) -> list[api_key_pb2.ApiKey]:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(client.channel)
        request = api_key_service_pb2.ListApiKeysRequest(
            page_size=1000, show_revoked=show_revoked, workspace_id=workspace
        )
        return [key async for page in session.pages(client, stub.ListApiKeys, request) for key in page.api_keys]

    # The id is there to be copied, so it is never cut short.
    names = ("description", "owner", "role", "tier", "created", "expires", "revoked")
    table = Table(Column("key", no_wrap=True), *names)
    for key in session.run("authsvc", call):
        table.add_row(
            key.key_id,
            key.description,
            key.user_id or key.service_account,
            principal_pb2.Role.Name(key.role).removeprefix("ROLE_").lower(),
            key.tier or "(workspace's)",
            _moment(key.create_time),
            _moment(key.expire_time) if key.HasField("expire_time") else "never",
            _moment(key.revoke_time) if key.HasField("revoke_time") else "",
        )
    tables.show(table)


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="Its public id: the 12 characters after sk-naru-.")]) -> None:
    """Revoke a key for good."""
    request = api_key_service_pb2.RevokeApiKeyRequest(key_id=key_id, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> api_key_service_pb2.RevokeApiKeyResponse:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(client.channel)
        return await client.call(stub.RevokeApiKey, request, timeout=_TIMEOUT_SECONDS)

    response = session.run("authsvc", call)
    typer.echo(f"Key {response.api_key.key_id} was revoked at {_moment(response.api_key.revoke_time)}.")


def _span(text: str) -> timedelta:
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None:
        raise typer.BadParameter("give a number and m, h or d, such as 30m, 12h or 90d", param_hint="--expires-in")
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


def _moment(message: Timestamp) -> str:
    return message.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")
