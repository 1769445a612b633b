"""`naru workspaces`: who pays, and who belongs to them."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated
from uuid import uuid4

import typer
from rich.table import Column, Table

from naru.api.auth.v1 import user_pb2, workspace_service_pb2, workspace_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import role_to_proto
from naru.identity import Role

app = typer.Typer(no_args_is_help=True, help="Make, list, change and delete workspaces, and their members.")
_TIMEOUT_SECONDS = 10.0
WorkspaceId = Annotated[str, typer.Argument(help="The workspace's id.")]
UserId = Annotated[str, typer.Argument(help="The user's id.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name.")],
    tier: Annotated[str, typer.Option(help="Tier of keys and users that have none of their own.")] = "free",
) -> None:
    """Make a workspace."""
    workspace = workspace_service_pb2.Workspace(name=name, tier=tier)
    request = workspace_service_pb2.CreateWorkspaceRequest(workspace=workspace, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> workspace_service_pb2.Workspace:
        return (await client.call(_stub(client).CreateWorkspace, request, timeout=_TIMEOUT_SECONDS)).workspace

    typer.echo(session.run("authsvc", call).workspace_id)


@app.command("list")
def list_workspaces() -> None:
    """List the workspaces that you may see, by name."""

    async def call(client: ServiceClient) -> list[workspace_service_pb2.Workspace]:
        request = workspace_service_pb2.ListWorkspacesRequest(page_size=1000)
        pages = session.pages(client, _stub(client).ListWorkspaces, request)
        return [workspace async for page in pages for workspace in page.workspaces]

    table = Table(Column("workspace", no_wrap=True), "name", "tier", "created")
    for workspace in session.run("authsvc", call):
        created = f"{workspace.create_time.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}"
        table.add_row(workspace.workspace_id, workspace.name, workspace.tier, created)
    tables.show(table)


@app.command()
def update(
    workspace_id: WorkspaceId,
    name: Annotated[str, typer.Option(help="Its name; the one it has by default.")] = "",
    tier: Annotated[str, typer.Option(help="Its tier; the one it has by default.")] = "",
) -> None:
    """Change a workspace's name or tier."""

    async def call(client: ServiceClient) -> workspace_service_pb2.Workspace:
        stub = _stub(client)
        query = workspace_service_pb2.GetWorkspaceRequest(workspace_id=workspace_id)
        known = (await client.call(stub.GetWorkspace, query, timeout=_TIMEOUT_SECONDS)).workspace
        known.name, known.tier = name or known.name, tier or known.tier
        request = workspace_service_pb2.UpdateWorkspaceRequest(workspace=known, request_id=str(uuid4()))
        return (await client.call(stub.UpdateWorkspace, request, timeout=_TIMEOUT_SECONDS)).workspace

    workspace = session.run("authsvc", call)
    typer.echo(f"Workspace {workspace.name} has the tier {workspace.tier}.")


@app.command()
def delete(workspace_id: WorkspaceId) -> None:
    """Delete a workspace that has no members, for good, with its API keys. What it used stays in the books."""
    request = workspace_service_pb2.DeleteWorkspaceRequest(workspace_id=workspace_id, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> None:
        await client.call(_stub(client).DeleteWorkspace, request, timeout=_TIMEOUT_SECONDS)

    session.run("authsvc", call)
    typer.echo(f"Workspace {workspace_id} is deleted.")


@app.command()
def members(workspace_id: WorkspaceId) -> None:
    """List the members of a workspace, by address."""

    async def call(client: ServiceClient) -> list[user_pb2.Membership]:
        request = workspace_service_pb2.ListMembersRequest(workspace_id=workspace_id, page_size=1000)
        pages = session.pages(client, _stub(client).ListMembers, request)
        return [member async for page in pages for member in page.members]

    table = Table(Column("user", no_wrap=True), "address", "role", "since")
    for member in session.run("authsvc", call):
        role = principal_pb2.Role.Name(member.role).removeprefix("ROLE_").lower()
        table.add_row(member.user_id, member.email, role, f"{member.create_time.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}")
    tables.show(table)


@app.command()
def add(
    workspace_id: WorkspaceId,
    user_id: UserId,
    role: Annotated[Role, typer.Option(help="What they are in the workspace.")] = Role.USER,
) -> None:
    """Make a user a member, or change what they are."""
    member = user_pb2.Membership(workspace_id=workspace_id, user_id=user_id, role=role_to_proto(role))
    request = workspace_service_pb2.SetMemberRequest(member=member, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> user_pb2.Membership:
        return (await client.call(_stub(client).SetMember, request, timeout=_TIMEOUT_SECONDS)).member

    made = session.run("authsvc", call)
    typer.echo(f"{made.email} belongs to {made.workspace_name}.")


@app.command()
def remove(workspace_id: WorkspaceId, user_id: UserId) -> None:
    """End a membership."""
    request = workspace_service_pb2.RemoveMemberRequest(
        workspace_id=workspace_id, user_id=user_id, request_id=str(uuid4())
    )

    async def call(client: ServiceClient) -> None:
        await client.call(_stub(client).RemoveMember, request, timeout=_TIMEOUT_SECONDS)

    session.run("authsvc", call)
    typer.echo(f"{user_id} does not belong to {workspace_id} any more.")


def _stub(client: ServiceClient) -> workspace_service_pb2_grpc.WorkspaceServiceAsyncStub:
    return workspace_service_pb2_grpc.WorkspaceServiceStub(client.channel)
