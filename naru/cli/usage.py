"""`naru usage`: what was used, by key, model and day."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.cli import session
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto

_TIMEOUT_SECONDS = 30.0


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
    """Show tokens used; only what was settled counts."""
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
        rows: list[usage_service_pb2.UsageRow] = []
        while True:
            response = await client.call(stub.QueryUsage, request, timeout=_TIMEOUT_SECONDS)
            rows += response.rows
            if not response.next_page_token:
                return rows
            request.page_token = response.next_page_token

    rows = session.run("accounting", call)
    table = Table(
        *[Column(str(d), no_wrap=d is Dimension.KEY, overflow="fold") for d in dimensions], title="Usage, in tokens"
    )
    for column in ("requests", "prompt", "cached", "completion", "total"):
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
        )
    Console().print(table)
