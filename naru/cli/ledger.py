"""`naru ledger`: what workspaces owe and paid."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated
from uuid import uuid4

import typer
from rich.table import Column, Table

from naru.api.accounting.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from naru.cli import session, tables
from naru.client import ServiceClient
from naru.convert import timestamp_to_proto
from naru.money import format_money, parse_money

app = typer.Typer(no_args_is_help=True, help="See what workspaces owe and paid, and put money on their accounts.")
_TIMEOUT_SECONDS = 10.0
_VERIFY_SECONDS = 3_600.0
_IN_ARREARS = "none"


class Kind(StrEnum):
    """Why money is put on an account."""

    CREDIT = "credit"
    ADJUSTMENT = "adjustment"
    REFUND = "refund"


class EntryKind(StrEnum):
    """Why an entry was made."""

    USAGE = "usage"
    CORRECTION = "correction"
    CREDIT = "credit"
    ADJUSTMENT = "adjustment"
    REFUND = "refund"


@app.command()
def balance(
    workspace: Annotated[str, typer.Argument(help="The workspace; your own by default.")] = "",
) -> None:
    """Show how an account stands, in units of the currency."""
    request = ledger_service_pb2.GetBalanceRequest(workspace_id=workspace)

    async def call(client: ServiceClient) -> ledger_service_pb2.Balance:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
        return (await client.call(stub.GetBalance, request, timeout=_TIMEOUT_SECONDS)).balance

    _show_balance(session.run("accounting", call))


@app.command()
def entries(  # noqa: PLR0917 -- typer makes an option of each
    workspace: Annotated[str, typer.Argument(help="The workspace; your own by default.")] = "",
    kind: Annotated[list[EntryKind] | None, typer.Option(help="Only this kind; give it again for more.")] = None,
    event: Annotated[str, typer.Option(help="Only of this event.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Only from this day on (UTC).", formats=["%Y-%m-%d"])] = None,
    until: Annotated[datetime | None, typer.Option(help="Only before this day (UTC).", formats=["%Y-%m-%d"])] = None,
    most: Annotated[int, typer.Option("--limit", min=1, help="Show at most so many.")] = 100,
) -> None:
    """List the entries of an account, those booked last first."""
    request = ledger_service_pb2.ListEntriesRequest(
        workspace_id=workspace,
        page_size=min(most, 1_000),
        kinds=[_kind(one.value) for one in kind or []],
        event_id=event,
    )
    if since is not None:
        request.start_time.CopyFrom(timestamp_to_proto(since.replace(tzinfo=UTC).timestamp()))
    if until is not None:
        request.end_time.CopyFrom(timestamp_to_proto(until.replace(tzinfo=UTC).timestamp()))

    async def call(client: ServiceClient) -> list[ledger_service_pb2.LedgerEntry]:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
        found: list[ledger_service_pb2.LedgerEntry] = []
        async for page in session.pages(client, stub.ListEntries, request):
            found += page.entries
            if len(found) >= most:
                break
        return found[:most]

    table = Table("booked", "kind", Column("amount", justify="right", no_wrap=True), "what for", "by")
    table.add_column("entry", no_wrap=True)
    for entry in session.run("accounting", call):
        table.add_row(
            entry.booked_time.ToDatetime(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            ledger_service_pb2.LedgerEntryKind.Name(entry.kind).removeprefix("LEDGER_ENTRY_KIND_").lower(),
            format_money(entry.amount),
            entry.description,
            entry.caller,
            entry.entry_id,
        )
    tables.show(table)


@app.command()
def credit(  # noqa: PLR0917 -- typer makes an option of each
    workspace: Annotated[str, typer.Argument(help="The workspace.")],
    amount: Annotated[str, typer.Argument(help="How much, in units of the currency, such as 20.00.")],
    kind: Annotated[
        Kind, typer.Option(help="A top-up, an adjustment, or usage that is not to be paid for.")
    ] = Kind.CREDIT,
    debit: Annotated[bool, typer.Option("--debit", help="Take it off; of an adjustment only.")] = False,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    request_id: Annotated[str, typer.Option(help="A UUID; the same one again changes nothing more.")] = "",
) -> None:
    """Put money on an account. A top-up makes the workspace one that pays in advance."""
    if debit and kind is not Kind.ADJUSTMENT:
        raise typer.BadParameter("only an adjustment takes money off", param_hint="--debit")
    nano = _money(amount, "AMOUNT")
    request = ledger_service_pb2.CreditRequest(
        request_id=request_id or str(uuid4()),
        workspace_id=workspace,
        credit=ledger_service_pb2.LedgerCredit(
            kind=_kind(kind.value), amount=-nano if debit else nano, description=description
        ),
    )

    async def call(client: ServiceClient) -> ledger_service_pb2.CreditResponse:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
        return await client.call(stub.Credit, request, timeout=_TIMEOUT_SECONDS)

    response = session.run("accounting", call)
    # The id alone on standard output, so that a script can take it.
    typer.echo(response.entry.entry_id)
    typer.secho(f"The balance of {workspace} is {format_money(response.balance.balance)}.", err=True)


@app.command()
def overdraft(
    workspace: Annotated[str, typer.Argument(help="The workspace.")],
    amount: Annotated[
        str, typer.Argument(help=f"How far below zero; {_IN_ARREARS}: without a bound, billed in arrears.")
    ],
) -> None:
    """Say how far below zero a balance may fall."""
    request = ledger_service_pb2.SetOverdraftRequest(
        request_id=str(uuid4()), workspace_id=workspace, overdraft=ledger_service_pb2.Overdraft()
    )
    if amount != _IN_ARREARS:
        request.overdraft.amount = _money(amount, "AMOUNT")

    async def call(client: ServiceClient) -> ledger_service_pb2.Balance:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
        return (await client.call(stub.SetOverdraft, request, timeout=_TIMEOUT_SECONDS)).balance

    _show_balance(session.run("accounting", call))


@app.command()
def verify() -> None:
    """Prove the books; exits with 1 when something should not be."""

    async def call(client: ServiceClient) -> ledger_service_pb2.VerifyLedgerResponse:
        stub = ledger_service_pb2_grpc.LedgerServiceStub(client.channel)
        request = ledger_service_pb2.VerifyLedgerRequest()
        return await client.call(stub.VerifyLedger, request, timeout=_VERIFY_SECONDS)

    response = session.run("accounting", call)
    seen = f"{response.events:,} events and {response.entries:,} entries"
    if not response.findings:
        typer.echo(f"The books hold: {seen}.\n{_engines(response)}")
        return
    table = Table("check", "workspace", title=f"What should not be, in {seen}")
    for column in ("count", "amount", "tokens"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("one of them", no_wrap=True)
    for finding in response.findings:
        table.add_row(
            ledger_service_pb2.LedgerCheck.Name(finding.check).removeprefix("LEDGER_CHECK_").lower(),
            finding.workspace_id,
            f"{finding.count:,}",
            format_money(finding.amount),
            f"{finding.tokens:,}",
            finding.example,
        )
    tables.show(table)
    typer.echo(_engines(response))
    raise typer.Exit(1)


def _engines(response: ledger_service_pb2.VerifyLedgerResponse) -> str:
    told = f"Engines counted exactly what was recorded in {response.exact_runs:,} of their runs."
    if response.bounded_runs:
        told += (
            f" In {response.bounded_runs:,} they told less before they ended, or have not told all yet: of"
            f" {response.uncounted_requests:,} requests there is the record alone."
        )
    return told


def _show_balance(found: ledger_service_pb2.Balance) -> None:
    bound = format_money(found.overdraft) if found.HasField("overdraft") else "(billed in arrears)"
    table = Table("workspace")
    for column in ("balance", "credited", "used", "overdraft"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_row(found.workspace_id, *map(format_money, (found.balance, found.credited, found.used)), bound)
    tables.show(table)


def _kind(name: str) -> ledger_service_pb2.LedgerEntryKind.ValueType:
    return ledger_service_pb2.LedgerEntryKind.Value(f"LEDGER_ENTRY_KIND_{name.upper()}")


def _money(text: str, option: str) -> int:
    try:
        return parse_money(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
