"""`naru limits`: where limits stand."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Annotated

import typer
from rich.table import Table

from naru.api.accounting.v1 import quota_service_pb2, quota_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.cli import session, tables
from naru.cli.rules import amount_text, kind_text, scope_text, window_text
from naru.client import ServiceClient

_TIMEOUT_SECONDS = 10.0


def limits(  # noqa: PLR0917 -- typer makes an option of each
    key: Annotated[str, typer.Option(help="Of this key, by its public id.")] = "",
    user: Annotated[str, typer.Option(help="Of this user.")] = "",
    workspace: Annotated[str, typer.Option(help="Of this workspace.")] = "",
    tier: Annotated[str, typer.Option(help="The tier they have; free by default.")] = "",
    address: Annotated[str, typer.Option(help="Of this client address.")] = "",
    model: Annotated[str, typer.Option(help="Also the limits of this served model alone.")] = "",
) -> None:
    """Show where your limits stand, tightest first; those of others by the operator's service token."""
    others = bool(key or user or workspace or tier or address)
    if others and not workspace:
        raise typer.BadParameter("Give --workspace too: every caller belongs to one.")
    request = quota_service_pb2.GetLimitsRequest(client_address=address, model=model)
    if others:
        request.principal.CopyFrom(
            principal_pb2.Principal(key_id=key, user_id=user, workspace_id=workspace, tier=tier or "free")
        )

    async def call(client: ServiceClient) -> quota_service_pb2.GetLimitsResponse:
        stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
        return await client.call(stub.GetLimits, request, timeout=_TIMEOUT_SECONDS)

    response = session.run("accounting", call, operator=others)
    table = Table("for", "kind", "window", "model", title=f"Limits of tier {response.tier}")
    for column in ("limit", "left", "all of it in"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for state in response.limits:
        table.add_row(
            scope_text(state.scope),
            kind_text(state.kind),
            window_text(state.window),
            state.model or "(all)",
            amount_text(state.kind, state.limit),
            amount_text(state.kind, state.remaining),
            str(timedelta(seconds=math.ceil(state.reset_delay.ToTimedelta().total_seconds())))
            if state.HasField("reset_delay")
            else "never",
            "shadow" if state.shadow else "",
        )
    tables.show(table)
