"""`naru usage`: what was used and what it cost, by key, model and day; and its export, event by event."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Column, Table

from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.api.auth.v1 import audit_service_pb2
from naru.cli import exporting, session, tables
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.export import ExportFormat
from naru.money import format_money
from naru.usage_export import USAGE


class Dimension(StrEnum):
    """What usage can be grouped by."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"
    WORKSPACE = "workspace"
    USER = "user"
    ENDPOINT = "endpoint"
    HOUR = "hour"
    SERVICE_ACCOUNT = "service_account"


_FIELDS = {
    Dimension.KEY: "key_id",
    Dimension.MODEL: "model",
    Dimension.DAY: "day",
    Dimension.WORKSPACE: "workspace_id",
    Dimension.USER: "user_id",
    Dimension.ENDPOINT: "endpoint",
    Dimension.HOUR: "hour",
    Dimension.SERVICE_ACCOUNT: "service_account",
}
_EXPORT_TIMEOUT = 3_600.0
Key = Annotated[str, typer.Option(help="Only this key, by its public id.")]
User = Annotated[str, typer.Option(help="Only this user.")]
Workspace = Annotated[str, typer.Option(help="Only this workspace.")]
Model = Annotated[str, typer.Option(help="Only this model.")]
Endpoint = Annotated[str, typer.Option(help="Only this endpoint, such as /v1/chat/completions.")]
Since = Annotated[datetime | None, typer.Option(help="Only from this day on (UTC).", formats=["%Y-%m-%d"])]
Until = Annotated[datetime | None, typer.Option(help="Only before this day (UTC).", formats=["%Y-%m-%d"])]
app = typer.Typer(invoke_without_command=True)


@app.callback()
def usage(  # noqa: PLR0917 -- typer makes an option of each
    context: typer.Context,
    by: Annotated[
        list[Dimension] | None, typer.Option(help="Group by this; give it again for more. Default: key, model and day.")
    ] = None,
    key: Key = "",
    user: User = "",
    workspace: Workspace = "",
    model: Model = "",
    endpoint: Endpoint = "",
    since: Since = None,
    until: Until = None,
) -> None:
    """Show tokens used and what they cost, in units of the currency; only what was settled counts.

    "unpriced" counts the requests that cost nothing because nobody had set a price for their model.
    """
    if context.invoked_subcommand is not None:
        refuse_options(context)
        return
    dimensions = by or [Dimension.KEY, Dimension.MODEL, Dimension.DAY]
    request = usage_service_pb2.QueryUsageRequest(
        group_by=[usage_service_pb2.UsageDimension.Value(f"USAGE_DIMENSION_{d.upper()}") for d in dimensions],
        key_id=key,
        user_id=user,
        workspace_id=workspace,
        model=model,
        endpoint=endpoint,
        page_size=1000,
    )
    between(request, since, until)

    async def call(client: ServiceClient) -> list[usage_service_pb2.UsageRow]:
        stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
        return [row async for page in session.pages(client, stub.QueryUsage, request) for row in page.rows]

    rows = session.run("accounting", call)
    table = Table(
        *[Column(str(d), no_wrap=d is Dimension.KEY, overflow="fold") for d in dimensions],
        title="Usage, in tokens, and its cost",
    )
    for column in ("requests", "prompt", "cached", "completion", "total", "cost", "unpriced"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        figures = row.usage
        table.add_row(
            *[getattr(row, _FIELDS[d]) for d in dimensions],
            f"{row.requests:,}",
            f"{figures.prompt_tokens:,}",
            f"{figures.cached_prompt_tokens:,}",
            f"{figures.completion_tokens:,}",
            f"{figures.prompt_tokens + figures.completion_tokens:,}",
            format_money(row.cost),
            f"{row.unpriced_requests:,}",
        )
    tables.show(table)


@app.command()
def export(  # noqa: PLR0917 -- typer makes an option of each
    output: Annotated[Path, typer.Option(help="Write it here; - is standard output.")],
    written: Annotated[ExportFormat, typer.Option("--format", help="csv or jsonl.")] = ExportFormat.CSV,
    key: Key = "",
    user: User = "",
    workspace: Workspace = "",
    model: Model = "",
    endpoint: Endpoint = "",
    since: Since = None,
    until: Until = None,
) -> None:
    """Export usage event by event, the oldest first, as far back as single events are kept. Costs are in nano-units."""
    request = usage_service_pb2.ExportUsageRequest(
        key_id=key, user_id=user, workspace_id=workspace, model=model, endpoint=endpoint
    )
    between(request, since, until)

    async def call(client: ServiceClient) -> int:
        stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
        exported = 0
        with exporting.opened(output) as file, exporting.progress() as progress:
            task = progress.add_task("events", total=None)
            file.write(USAGE.header(written))
            async with client.stream(stub.ExportUsage, request, timeout=_EXPORT_TIMEOUT) as responses:
                async for response in responses:
                    if response.total_records:
                        progress.update(task, total=response.total_records)
                    file.write(USAGE.lines(written, response.records))
                    exported += len(response.records)
                    progress.update(task, completed=exported)
            # It was only about right.
            progress.update(task, total=exported)
        return exported

    exported = session.run("accounting", call)
    typer.secho(f"{exported:,} events exported to {output}.", err=True)


def refuse_options(context: typer.Context) -> None:
    """Ends a command with options before its subcommand, which has its own and would not hear of them."""
    for name in context.params:
        source = context.get_parameter_source(name)
        # By its name: the class is another one in each version of typer.
        if source is not None and source.name != "DEFAULT":
            raise typer.BadParameter(f"give options after `{context.invoked_subcommand}`, not before it")


def between(
    request: usage_service_pb2.QueryUsageRequest
    | usage_service_pb2.ExportUsageRequest
    | usage_service_pb2.ListRequestsRequest
    | audit_service_pb2.ListAuditEntriesRequest
    | audit_service_pb2.ExportAuditEntriesRequest,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Narrows a request to days in UTC."""
    if since is not None:
        request.start_time.CopyFrom(timestamp_to_proto(since.replace(tzinfo=UTC).timestamp()))
    if until is not None:
        request.end_time.CopyFrom(timestamp_to_proto(until.replace(tzinfo=UTC).timestamp()))
