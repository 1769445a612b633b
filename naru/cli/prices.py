"""`naru prices`: what models cost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated
from uuid import uuid4

import typer
from google.protobuf.timestamp_pb2 import Timestamp
from rich.table import Column, Table

from naru.api.accounting.v1 import price_pb2, pricing_service_pb2, pricing_service_pb2_grpc
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.money import format_money, parse_money

app = typer.Typer(no_args_is_help=True, help="See and set what models cost, in units of the currency.")
_TIMEOUT_SECONDS = 10.0


@app.command("set")
def set_price(  # noqa: PLR0917 -- typer makes an option of each
    model: Annotated[str, typer.Argument(help="The served model.")],
    input_price: Annotated[str, typer.Option("--input", help="Per million prompt tokens, such as 0.15.")],
    output_price: Annotated[str, typer.Option("--output", help="Per million generated tokens.")],
    cached_input: Annotated[
        str, typer.Option(help="Per million prompt tokens that were in the cache; as --input by default.")
    ] = "",
    request: Annotated[str, typer.Option(help="Per request; 0 by default.")] = "0",
    workspace: Annotated[str, typer.Option(help="For this workspace alone; for all by default.")] = "",
    begin: Annotated[
        datetime | None,
        typer.Option("--from", help="From when on (UTC); at once by default.", formats=["%Y-%m-%dT%H:%M", "%Y-%m-%d"]),
    ] = None,
) -> None:
    """Set what a model costs from a time on. What was used before is never priced anew."""
    price = price_pb2.Price(
        model=model,
        workspace_id=workspace,
        unit_prices=price_pb2.UnitPrices(
            input_million=_money(input_price, "--input"),
            cached_input_million=_money(cached_input or input_price, "--cached-input"),
            output_million=_money(output_price, "--output"),
            request=_money(request, "--request"),
        ),
    )
    if begin is not None:
        price.effective_time.CopyFrom(timestamp_to_proto(begin.replace(tzinfo=UTC).timestamp()))
    create = pricing_service_pb2.CreatePriceRequest(request_id=str(uuid4()), price=price)

    async def call(client: ServiceClient) -> price_pb2.Price:
        stub = pricing_service_pb2_grpc.PricingServiceStub(client.channel)
        return (await client.call(stub.CreatePrice, create, timeout=_TIMEOUT_SECONDS)).price

    made = session.run("accounting", call)
    # The id alone on standard output, so that a script can take it.
    typer.echo(made.price_id)
    typer.secho(f"{made.model} has this price from {_moment(made.effective_time)} (UTC) on.", err=True)


@app.command("list")
def list_prices(
    model: Annotated[str, typer.Option(help="Only this model's.")] = "",
    workspace: Annotated[str, typer.Option(help="Only this workspace's own.")] = "",
) -> None:
    """List prices, those that begin last first."""
    request = pricing_service_pb2.ListPricesRequest(page_size=1000, model=model, workspace_id=workspace)

    async def call(client: ServiceClient) -> list[price_pb2.Price]:
        stub = pricing_service_pb2_grpc.PricingServiceStub(client.channel)
        return [price async for page in session.pages(client, stub.ListPrices, request) for price in page.prices]

    table = Table(
        Column("price", no_wrap=True), "model", "workspace", "from", title="Per million tokens, and per request"
    )
    for column in ("input", "cached", "output", "request"):
        table.add_column(column, justify="right", no_wrap=True)
    for price in session.run("accounting", call):
        units = price.unit_prices
        table.add_row(
            price.price_id,
            price.model,
            price.workspace_id or "(all)",
            _moment(price.effective_time),
            *map(format_money, (units.input_million, units.cached_input_million, units.output_million, units.request)),
        )
    tables.show(table)


@app.command()
def delete(price_id: Annotated[str, typer.Argument(help="Its id, as `naru prices list` shows it.")]) -> None:
    """Delete a price that has not begun."""
    request = pricing_service_pb2.DeletePriceRequest(price_id=price_id, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> None:
        stub = pricing_service_pb2_grpc.PricingServiceStub(client.channel)
        await client.call(stub.DeletePrice, request, timeout=_TIMEOUT_SECONDS)

    session.run("accounting", call)
    typer.echo(f"Deleted price {price_id}.")


def _money(text: str, option: str) -> int:
    try:
        return parse_money(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _moment(message: Timestamp) -> str:
    return message.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S")
