"""`naru users`: people who can log in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC
from typing import Annotated
from uuid import uuid4

import typer
from rich.table import Column, Table

from naru.api.auth.v1 import user_pb2, user_service_pb2, user_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.cli import session, tables
from naru.cli.keys import moment
from naru.client import ServiceClient
from naru.convert import role_to_proto
from naru.errors import not_found
from naru.identity import Role

app = typer.Typer(no_args_is_help=True, help="Make, invite, list, change, block, log out and delete users.")
_TIMEOUT_SECONDS = 10.0
Who = Annotated[str, typer.Argument(help="Their address, or their id.")]


@app.command()
def create(
    email: Annotated[str, typer.Argument(help="Their address.")],
    name: Annotated[str, typer.Option(help="What to call them.")] = "",
    tier: Annotated[str, typer.Option(help="Tier of their limits; the workspace's by default.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="Let them manage the installation.")] = False,
    workspace: Annotated[str, typer.Option(help="The id of the workspace they join; yours by default.")] = "",
) -> None:
    """Make a user. The password is shown once."""
    user = user_pb2.User(
        email=email,
        name=name,
        tier=tier,
        role=role_to_proto(Role.ADMIN if admin else Role.USER),
        default_workspace_id=workspace,
    )
    request = user_service_pb2.CreateUserRequest(user=user, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> user_service_pb2.CreateUserResponse:
        return await client.call(_stub(client).CreateUser, request, timeout=_TIMEOUT_SECONDS)

    response = session.run("authsvc", call)
    # The password alone on standard output, so that a script can take it.
    typer.echo(response.password)
    typer.secho(f"The password of {response.user.email} is shown only this once.", err=True)


@app.command()
def invite(
    email: Annotated[str, typer.Option(help="Only for this address; by default for whoever has the code.")] = "",
    role: Annotated[Role, typer.Option(help="What they are in the workspace.")] = Role.USER,
    workspace: Annotated[str, typer.Option(help="The id of the workspace they join; yours by default.")] = "",
) -> None:
    """Make a code that lets one person register within 7 days. It is shown once."""
    wish = user_pb2.Invite(email=email, role=role_to_proto(role), workspace_id=workspace)
    request = user_service_pb2.CreateInviteRequest(invite=wish, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> user_service_pb2.CreateInviteResponse:
        return await client.call(_stub(client).CreateInvite, request, timeout=_TIMEOUT_SECONDS)

    response = session.run("authsvc", call)
    typer.echo(response.code)
    until = response.invite.expire_time.ToDatetime(UTC)
    typer.secho(f"Good until {until:%Y-%m-%d %H:%M} UTC. It is shown only this once.", err=True)


@app.command("invites")
def list_invites(
    workspace: Annotated[str, typer.Option(help="Only to this workspace.")] = "",
    email: Annotated[str, typer.Option(help="Only for this address.")] = "",
    show_ended: Annotated[
        bool, typer.Option("--all", help="Also those that were used or revoked, or are over.")
    ] = False,
) -> None:
    """List invites, newest first."""
    request = user_service_pb2.ListInvitesRequest(
        page_size=1000, workspace_id=workspace, email=email, show_ended=show_ended
    )

    async def call(client: ServiceClient) -> list[user_pb2.Invite]:
        pages = session.pages(client, _stub(client).ListInvites, request)
        return [invite async for page in pages for invite in page.invites]

    table = Table(Column("invite", no_wrap=True), "for", "workspace", "role", "good until", "used", "revoked")
    for invite in session.run("authsvc", call):
        table.add_row(
            invite.invite_id,
            invite.email or "(anybody)",
            invite.workspace_id,
            _role(invite.role),
            moment(invite.expire_time),
            moment(invite.use_time) if invite.HasField("use_time") else "",
            moment(invite.revoke_time) if invite.HasField("revoke_time") else "",
        )
    tables.show(table)


@app.command("revoke-invite")
def revoke_invite(invite_id: Annotated[str, typer.Argument(help="The invite's id.")]) -> None:
    """Revoke an invite; its code lets nobody in any more."""
    request = user_service_pb2.RevokeInviteRequest(invite_id=invite_id, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> None:
        await client.call(_stub(client).RevokeInvite, request, timeout=_TIMEOUT_SECONDS)

    session.run("authsvc", call)
    typer.echo(f"Invite {invite_id} is revoked.")


@app.command("list")
def list_users(workspace: Annotated[str, typer.Option(help="Only members of this workspace.")] = "") -> None:
    """List users, by address."""

    async def call(client: ServiceClient) -> list[user_pb2.User]:
        request = user_service_pb2.ListUsersRequest(page_size=1000, workspace_id=workspace)
        return [user async for page in session.pages(client, _stub(client).ListUsers, request) for user in page.users]

    table = Table(Column("user", no_wrap=True), "address", "name", "role", "tier", "blocked", "created")
    for user in session.run("authsvc", call):
        table.add_row(
            user.user_id,
            user.email,
            user.name,
            _role(user.role),
            user.tier or "(workspace's)",
            "yes" if user.blocked else "",
            moment(user.create_time),
        )
    tables.show(table)


@app.command()
def update(
    who: Who,
    name: Annotated[str | None, typer.Option(help="What to call them.")] = None,
    tier: Annotated[str | None, typer.Option(help="Tier of their limits; empty: the workspace's.")] = None,
    admin: Annotated[bool | None, typer.Option(help="Whether they manage the installation.")] = None,
    workspace: Annotated[str | None, typer.Option(help="The id of their default workspace.")] = None,
) -> None:
    """Change what a user is."""

    def change(user: user_pb2.User) -> None:
        user.name = user.name if name is None else name
        user.tier = user.tier if tier is None else tier
        user.default_workspace_id = user.default_workspace_id if workspace is None else workspace
        user.role = user.role if admin is None else role_to_proto(Role.ADMIN if admin else Role.USER)

    _update(who, change, "is changed")


@app.command()
def block(who: Who) -> None:
    """Shut a user out, at once."""

    def change(user: user_pb2.User) -> None:
        user.blocked = True

    _update(who, change, "is blocked")


@app.command()
def unblock(who: Who) -> None:
    """Let a blocked user in again."""

    def change(user: user_pb2.User) -> None:
        user.blocked = False

    _update(who, change, "is not blocked any more")


@app.command("reset-password")
def reset_password(who: Who) -> None:
    """Give a user another password, shown once; it logs them out everywhere."""

    async def call(client: ServiceClient) -> str:
        user = await _find(client, who)
        request = user_service_pb2.ResetPasswordRequest(user_id=user.user_id, request_id=str(uuid4()))
        return (await client.call(_stub(client).ResetPassword, request, timeout=_TIMEOUT_SECONDS)).password

    typer.echo(session.run("authsvc", call))
    typer.secho(f"The password of {who} is shown only this once.", err=True)


@app.command()
def logout(who: Who) -> None:
    """Log a user out everywhere."""

    async def call(client: ServiceClient) -> int:
        user = await _find(client, who)
        request = user_service_pb2.RevokeSessionsRequest(user_id=user.user_id, request_id=str(uuid4()))
        return (await client.call(_stub(client).RevokeSessions, request, timeout=_TIMEOUT_SECONDS)).sessions

    typer.echo(f"{session.run('authsvc', call)} sessions of {who} are ended.")


@app.command()
def delete(who: Who) -> None:
    """Delete a user for good, with their sessions, memberships and API keys. What they used stays in the books."""

    async def call(client: ServiceClient) -> user_pb2.User:
        user = await _find(client, who)
        request = user_service_pb2.DeleteUserRequest(user_id=user.user_id, request_id=str(uuid4()))
        await client.call(_stub(client).DeleteUser, request, timeout=_TIMEOUT_SECONDS)
        return user

    typer.echo(f"{session.run('authsvc', call).email} is deleted.")


def _role(role: principal_pb2.Role.ValueType) -> str:
    return principal_pb2.Role.Name(role).removeprefix("ROLE_").lower()


def _update(who: str, change: Callable[[user_pb2.User], None], done: str) -> None:
    async def call(client: ServiceClient) -> user_pb2.User:
        user = await _find(client, who)
        change(user)
        request = user_service_pb2.UpdateUserRequest(user=user, request_id=str(uuid4()))
        return (await client.call(_stub(client).UpdateUser, request, timeout=_TIMEOUT_SECONDS)).user

    typer.echo(f"{session.run('authsvc', call).email} {done}.")


async def _find(client: ServiceClient, who: str) -> user_pb2.User:
    """The user of an address or an id. Raises NaruError."""
    if "@" not in who:
        request = user_service_pb2.GetUserRequest(user_id=who)
        return (await client.call(_stub(client).GetUser, request, timeout=_TIMEOUT_SECONDS)).user
    query = user_service_pb2.ListUsersRequest(email=who)
    found = (await client.call(_stub(client).ListUsers, query, timeout=_TIMEOUT_SECONDS)).users
    if not found:
        raise not_found("user", who)
    return found[0]


def _stub(client: ServiceClient) -> user_service_pb2_grpc.UserServiceAsyncStub:
    return user_service_pb2_grpc.UserServiceStub(client.channel)
