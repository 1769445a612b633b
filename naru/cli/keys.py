"""`naru keys`: make, list, change and end API keys."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any
from uuid import uuid4

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Column, Table

from naru.api.auth.v1 import api_key_pb2, api_key_service_pb2, api_key_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import duration_to_proto, role_to_proto, timestamp_to_proto
from naru.identity import Role

app = typer.Typer(no_args_is_help=True, help="Make, list, change and end API keys.")
_TIMEOUT_SECONDS = 10.0
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}
_NEVER = "never"
KeyId = Annotated[str, typer.Argument(help="Its public id: the 12 characters after sk-naru-.")]
Models = Annotated[str | None, typer.Option(help="Globs of models it may use, separated by commas.")]
Endpoints = Annotated[
    str | None, typer.Option(help="Globs of endpoints it may use, such as /v1/chat/*, separated by commas.")
]
Networks = Annotated[
    str | None, typer.Option(help="Networks it may be used from, such as 10.0.0.0/8, separated by commas.")
]
Metadata = Annotated[list[str] | None, typer.Option(help="A note as name=text; give it again for more.")]


class State(StrEnum):
    """How a key stands."""

    ACTIVE = "active"
    BLOCKED = "blocked"
    EXPIRED = "expired"
    REVOKED = "revoked"


@app.command()
def create(  # noqa: PLR0917 -- typer makes an option of each
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    tier: Annotated[str, typer.Option(help="Tier of its limits; the workspace's by default.")] = "",
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    service_account: Annotated[str, typer.Option(help="A service account that owns it, such as dev-team.")] = "",
    user: Annotated[str, typer.Option(help="The user that owns it, by id.")] = "",
    workspace: Annotated[str, typer.Option(help="The workspace's id; yours by default.")] = "",
    models: Models = None,
    endpoints: Endpoints = None,
    networks: Networks = None,
    metadata: Metadata = None,
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
        user_id=user,
        role=role_to_proto(role),
        tier=tier,
        scopes=principal_pb2.Scopes(models=_parts(models), endpoints=_parts(endpoints), source_cidrs=_parts(networks)),
        metadata=_notes(metadata),
    )
    if expires_in:
        request.expire_time.CopyFrom(_from_now(expires_in))
    _show_secret(_run("CreateApiKey", request))


@app.command("list")
def list_keys(  # noqa: PLR0917 -- typer makes an option of each
    show_revoked: Annotated[bool, typer.Option("--all", help="Revoked keys too.")] = False,
    workspace: Annotated[str, typer.Option(help="Only this workspace's.")] = "",
    tier: Annotated[str, typer.Option(help="Only those of this tier.")] = "",
    user: Annotated[str, typer.Option(help="Only this user's.")] = "",
    service_account: Annotated[str, typer.Option(help="Only this service account's.")] = "",
    state: Annotated[State | None, typer.Option(help="Only those that stand so.")] = None,
    containing: Annotated[str, typer.Option(help="Only those with this text in their description.")] = "",
) -> None:
    """List keys, newest first."""
    request = api_key_service_pb2.ListApiKeysRequest(
        page_size=1000,
        show_revoked=show_revoked,
        workspace_id=workspace,
        tier=tier,
        user_id=user,
        service_account=service_account,
        description_contains=containing,
        state=api_key_pb2.ApiKeyState.Value(f"API_KEY_STATE_{state.upper()}" if state else "API_KEY_STATE_UNSPECIFIED"),
    )

    async def call(client: ServiceClient) -> list[api_key_pb2.ApiKey]:
        stub = api_key_service_pb2_grpc.ApiKeyServiceStub(client.channel)
        return [key async for page in session.pages(client, stub.ListApiKeys, request) for key in page.api_keys]

    # The id is there to be copied, so it is never cut short.
    names = ("description", "owner", "role", "tier", "state", "created", "expires", "last used")
    table = Table(Column("key", no_wrap=True), *names)
    for key in session.run("authsvc", call):
        table.add_row(
            key.key_id,
            key.description,
            key.user_id or key.service_account,
            _name(principal_pb2.Role.Name(key.role), "ROLE_"),
            key.tier or "(workspace's)",
            _name(api_key_pb2.ApiKeyState.Name(key.state), "API_KEY_STATE_"),
            moment(key.create_time),
            moment(key.expire_time) if key.HasField("expire_time") else _NEVER,
            moment(key.last_used_time) if key.HasField("last_used_time") else "",
        )
    tables.show(table)


@app.command()
def show(key_id: KeyId) -> None:
    """Show all that is known of a key, which is not its secret."""
    response = _run("GetApiKey", api_key_service_pb2.GetApiKeyRequest(key_id=key_id))
    typer.echo(str(response.api_key).rstrip())


@app.command()
def update(  # noqa: PLR0917 -- typer makes an option of each
    key_id: KeyId,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    tier: Annotated[str | None, typer.Option(help='Tier of its limits; "" for the workspace\'s.')] = None,
    models: Models = None,
    endpoints: Endpoints = None,
    networks: Networks = None,
    metadata: Metadata = None,
    expires_in: Annotated[
        str | None, typer.Option(help="How long it lives from now on, such as 30m, 12h or 90d, or never.")
    ] = None,
) -> None:
    """Change a key. What is not given stays; an empty text clears, and notes are replaced together."""
    request = api_key_service_pb2.UpdateApiKeyRequest(request_id=str(uuid4()))
    key, paths = request.api_key, request.update_mask.paths
    key.key_id = key_id
    for name, text in (("description", description), ("tier", tier)):
        if text is not None:
            setattr(key, name, text)
            paths.append(name)
    for name, texts in (("models", models), ("endpoints", endpoints), ("source_cidrs", networks)):
        if texts is not None:
            getattr(key.scopes, name).extend(_parts(texts))
            paths.append(f"scopes.{name}")
    if metadata is not None:
        key.metadata.update(_notes(metadata))
        paths.append("metadata")
    if expires_in is not None:
        paths.append("expire_time")
        if expires_in != _NEVER:
            key.expire_time.CopyFrom(_from_now(expires_in))
    if not paths:
        raise typer.BadParameter("say what to change")
    _run("UpdateApiKey", request)
    typer.echo(f"Key {key_id} was changed.")


@app.command()
def rotate(
    key_id: KeyId,
    grace: Annotated[
        str, typer.Option(help="How long the secret before works on, such as 30m, 12h or 7d, or 0.")
    ] = "24h",
) -> None:
    """Give a key another secret. It is shown once."""
    seconds = 0.0 if grace == "0" else _span(grace, "--grace").total_seconds()
    request = api_key_service_pb2.RotateApiKeyRequest(
        key_id=key_id, request_id=str(uuid4()), grace_period=duration_to_proto(seconds)
    )
    _show_secret(_run("RotateApiKey", request))


@app.command()
def block(key_id: KeyId) -> None:
    """Block a key until it is unblocked."""
    _run("BlockApiKey", api_key_service_pb2.BlockApiKeyRequest(key_id=key_id, request_id=str(uuid4())))
    typer.echo(f"Key {key_id} is blocked.")


@app.command()
def unblock(key_id: KeyId) -> None:
    """Unblock a key."""
    _run("UnblockApiKey", api_key_service_pb2.UnblockApiKeyRequest(key_id=key_id, request_id=str(uuid4())))
    typer.echo(f"Key {key_id} is not blocked.")


@app.command()
def revoke(key_id: KeyId) -> None:
    """Revoke a key for good."""
    response = _run("RevokeApiKey", api_key_service_pb2.RevokeApiKeyRequest(key_id=key_id, request_id=str(uuid4())))
    typer.echo(f"Key {response.api_key.key_id} was revoked at {moment(response.api_key.revoke_time)}.")


def moment(message: Timestamp) -> str:
    """A time in UTC, to the second."""
    return message.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _run(rpc: str, request: Any) -> Any:
    """Makes a call of ApiKeyService; errors end the command."""

    def call(client: ServiceClient) -> Awaitable[Any]:
        method: Any = getattr(api_key_service_pb2_grpc.ApiKeyServiceStub(client.channel), rpc)
        return client.call(method, request, timeout=_TIMEOUT_SECONDS)

    return session.run("authsvc", call)


def _show_secret(
    response: api_key_service_pb2.CreateApiKeyResponse | api_key_service_pb2.RotateApiKeyResponse,
) -> None:
    # The key alone on standard output, so that a script can take it.
    typer.echo(response.secret_key)
    typer.secho(f"Key {response.api_key.key_id} is shown only this once.", err=True)


def _parts(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _notes(given: list[str] | None) -> dict[str, str]:
    notes = {}
    for one in given or []:
        name, separator, text = one.partition("=")
        if not separator:
            raise typer.BadParameter("give name=text", param_hint="--metadata")
        notes[name] = text
    return notes


def _name(value: str, prefix: str) -> str:
    return value.removeprefix(prefix).lower()


def _from_now(span: str) -> Timestamp:
    return timestamp_to_proto((datetime.now(UTC) + _span(span, "--expires-in")).timestamp())


def _span(text: str, option: str) -> timedelta:
    match = re.fullmatch(r"([1-9]\d{0,5})([mhd])", text)
    if match is None:
        raise typer.BadParameter("give a number and m, h or d, such as 30m, 12h or 90d", param_hint=option)
    return timedelta(**{_UNITS[match[2]]: int(match[1])})
