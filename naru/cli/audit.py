"""`naru audit`: who changed what."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from naru.api.auth.v1 import audit_service_pb2, audit_service_pb2_grpc
from naru.audit_export import AUDIT
from naru.cli import exporting, session, tables
from naru.cli.keys import moment
from naru.cli.usage import Since, Until, between, refuse_options
from naru.client import ServiceClient
from naru.export import ExportFormat

app = typer.Typer(invoke_without_command=True)
_EXPORT_TIMEOUT = 3_600.0
Actor = Annotated[str, typer.Option(help="Only what this one did, such as key:x7Gq01abcdEF or service:operator.")]
Action = Annotated[str, typer.Option(help="Only this action, such as api_key.revoke or api_key.*.")]
Object = Annotated[str, typer.Option("--object", help="Only what was done to this, by its id.")]
Workspace = Annotated[str, typer.Option(help="Only what was done in this workspace.")]


@app.callback()
def audit(  # noqa: PLR0917 -- typer makes an option of each
    context: typer.Context,
    actor: Actor = "",
    action: Action = "",
    object_id: Object = "",
    workspace: Workspace = "",
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Show at most so many.")] = 100,
) -> None:
    """Show who changed what, newest first. `naru audit export` has what it was before and after."""
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    request = audit_service_pb2.ListAuditEntriesRequest(
        page_size=limit, actor=actor, action=action, object_id=object_id, workspace_id=workspace
    )
    between(request, since, until)

    async def call(client: ServiceClient) -> list[audit_service_pb2.AuditEntry]:
        stub = audit_service_pb2_grpc.AuditServiceStub(client.channel)
        async for page in session.pages(client, stub.ListAuditEntries, request):
            return list(islice(page.entries, limit))
        return []

    table = Table("time", "actor", "action", Column("object", no_wrap=True), "workspace", "address", "request")
    for entry in session.run("authsvc", call):
        table.add_row(
            moment(entry.time),
            entry.actor,
            entry.action,
            entry.object_id,
            entry.workspace_id,
            entry.client_address,
            entry.request_id,
        )
    tables.show(table)


@app.command()
def export(  # noqa: PLR0917 -- typer makes an option of each
    output: Annotated[Path, typer.Option(help="Write it here; - is standard output.")],
    written: Annotated[ExportFormat, typer.Option("--format", help="csv or jsonl.")] = ExportFormat.CSV,
    actor: Actor = "",
    action: Action = "",
    object_id: Object = "",
    workspace: Workspace = "",
    since: Since = None,
    until: Until = None,
) -> None:
    """Export who changed what, the oldest first, with what it was before and after."""
    request = audit_service_pb2.ExportAuditEntriesRequest(
        actor=actor, action=action, object_id=object_id, workspace_id=workspace
    )
    between(request, since, until)

    async def call(client: ServiceClient) -> int:
        stub = audit_service_pb2_grpc.AuditServiceStub(client.channel)
        exported = 0
        with exporting.opened(output) as file:
            file.write(AUDIT.header(written))
            async with client.stream(stub.ExportAuditEntries, request, timeout=_EXPORT_TIMEOUT) as responses:
                async for response in responses:
                    file.write(AUDIT.lines(written, response.entries))
                    exported += len(response.entries)
        return exported

    exported = session.run("authsvc", call)
    typer.secho(f"{exported:,} entries exported to {output}.", err=True)
