"""`naru usage`: what was used and what it cost, by key, model and day."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Column, Table

from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.money import format_money


class Dimension(StrEnum):
    """What usage can be grouped by."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"
    WORKSPACE = "workspace"


_FIELDS = {
    Dimension.KEY: "key_id",
    Dimension.MODEL: "model",
    Dimension.DAY: "day",
    Dimension.WORKSPACE: "workspace_id",
}


def usage(
    by: Annotated[
        list[Dimension] | None, typer.Option(help="Group by this; give it again for more. Default: key, model and day.")
    ] = None,
    key: Annotated[str, typer.Option(help="Only this key, by its public id.")] = "",
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Only from this day on (UTC).", formats=["%Y-%m-%d"])] = None,
    until: Annotated[datetime | None, typer.Option(help="Only before this day (UTC).", formats=["%Y-%m-%d"])] = None,
) -> None:
    """Show tokens used and what they cost, in units of the currency; only what was settled counts.

    "unpriced" counts the requests that cost nothing because nobody had set a price for their model.
    """
    dimensions = by or [Dimension.KEY, Dimension.MODEL, Dimension.DAY]
    request = usage_service_pb2.QueryUsageRequest(
        group_by=[usage_service_pb2.UsageDimension.Value(f"USAGE_DIMENSION_{d.upper()}") for d in dimensions],
        key_id=key,
        model=model,
        page_size=1000,
    )
    if since is not None:
        request.start_time.CopyFrom(timestamp_to_proto(since.replace(tzinfo=UTC).timestamp()))
    if until is not None:
        request.end_time.CopyFrom(timestamp_to_proto(until.replace(tzinfo=UTC).timestamp()))

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
