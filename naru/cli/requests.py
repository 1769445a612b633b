"""`naru requests`: the request log."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from naru.api.accounting.v1 import usage_event_pb2, usage_service_pb2, usage_service_pb2_grpc
from naru.api.common.v1 import error_reason_pb2
from naru.cli import session, tables
from naru.cli.usage import Endpoint, Key, Model, Since, Until, User, Workspace, between
from naru.client import ServiceClient
from naru.money import format_money

_PAGE = 1_000


def requests(  # noqa: PLR0917 -- typer makes an option of each
    key: Key = "",
    user: User = "",
    workspace: Workspace = "",
    model: Model = "",
    endpoint: Endpoint = "",
    status: Annotated[str, typer.Option(help="Only this HTTP status, such as 429, or class, such as 4xx.")] = "",
    request_id: Annotated[str, typer.Option(help="Only this request id.")] = "",
    trace_id: Annotated[str, typer.Option(help="Only this trace id.")] = "",
    since: Since = None,
    until: Until = None,
    most: Annotated[int, typer.Option("--limit", min=1, help="How many to show at most.")] = 100,
) -> None:
    """Show requests, the newest first, refused ones included; tokens and cost once they are settled."""
    if status and re.fullmatch("[1-5]([0-9]{2}|xx)", status) is None:
        raise typer.BadParameter("Give a status such as 429, or a class such as 4xx.", param_hint="--status")
    request = usage_service_pb2.ListRequestsRequest(
        key_id=key,
        user_id=user,
        workspace_id=workspace,
        model=model,
        endpoint=endpoint,
        status=int(status) if status and not status.endswith("xx") else 0,
        status_class=int(status[0]) if status.endswith("xx") else 0,
        request_id=request_id,
        trace_id=trace_id,
        page_size=min(most, _PAGE),
    )
    between(request, since, until)

    async def call(client: ServiceClient) -> list[usage_event_pb2.LoggedRequest]:
        stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
        found: list[usage_event_pb2.LoggedRequest] = []
        async for page in session.pages(client, stub.ListRequests, request):
            found += page.requests
            if len(found) >= most:
                break
        return found[:most]

    found = session.run("accounting", call)
    table = Table(
        *[Column(name, no_wrap=True) for name in ("time (UTC)", "key", "endpoint", "model")],
        title="Requests",
    )
    for name in ("status", "ms", "first byte", "prompt", "completion", "cost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ended", no_wrap=True)
    table.add_column("request id", no_wrap=True)
    for one in found:
        table.add_row(*_cells(one))
    tables.show(table)


def _cells(one: usage_event_pb2.LoggedRequest) -> list[str]:
    used = one.HasField("usage")
    return [
        f"{one.start_time.ToDatetime():%Y-%m-%d %H:%M:%S}",
        one.key_id,
        one.endpoint,
        one.served_model or one.requested_model,
        str(one.status),
        f"{one.duration_us / 1_000:,.0f}",
        f"{one.first_byte_us / 1_000:,.0f}" if one.first_byte_us else "",
        f"{one.usage.prompt_tokens:,}" if used else "",
        f"{one.usage.completion_tokens:,}" if used else "",
        format_money(one.cost) if used else "",
        _short(error_reason_pb2.ErrorReason, one.reason)
        or one.finish_reason
        or _short(usage_event_pb2.Outcome, one.outcome),
        one.request_id,
    ]


def _short(enum: Any, value: int) -> str:
    """The name of a value without that of its enum; empty for none."""
    if not value:
        return ""
    name = enum.Name(value) if value in enum.values() else str(value)
    for prefix in ("ERROR_REASON_", "OUTCOME_"):
        name = name.removeprefix(prefix)
    return str(name).lower()
