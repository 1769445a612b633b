"""`naru budgets`: limits for one key, user, workspace, address or tier."""

from __future__ import annotations

from typing import Annotated, TypeVar
from uuid import uuid4

import typer
from rich.table import Column, Table

from naru.api.accounting.v1 import budget_service_pb2, budget_service_pb2_grpc, limit_pb2
from naru.cli import session, tables
from naru.cli.rules import SCOPES, Kind, Scope, Window, make_rule, rule_text, scope_text
from naru.client import ServiceClient

app = typer.Typer(
    no_args_is_help=True, help="See and change limits of single keys, users, workspaces, addresses and tiers."
)
_TIMEOUT_SECONDS = 10.0
Choice = TypeVar("Choice", Scope, Kind)


@app.command()
def create(  # noqa: PLR0917 -- typer makes an option of each
    key: Annotated[str, typer.Option(help="For this key, by its public id.")] = "",
    user: Annotated[str, typer.Option(help="For this user, over all of their keys.")] = "",
    workspace: Annotated[str, typer.Option(help="For this workspace, over all of its keys.")] = "",
    address: Annotated[str, typer.Option(help="For this client address.")] = "",
    tier: Annotated[str, typer.Option(help="For all callers of this tier together.")] = "",
    cost: Annotated[str, typer.Option(help="Most that may be spent, in units of the currency, such as 5.00.")] = "",
    requests: Annotated[str, typer.Option(metavar="N", help="Most requests.")] = "",
    tokens: Annotated[str, typer.Option(metavar="N", help="Most tokens of prompts and answers together.")] = "",
    input_tokens: Annotated[str, typer.Option(metavar="N", help="Most tokens of prompts.")] = "",
    output_tokens: Annotated[str, typer.Option(metavar="N", help="Most generated tokens.")] = "",
    concurrency: Annotated[str, typer.Option(metavar="N", help="Most requests in flight; has no --per.")] = "",
    per: Annotated[Window | None, typer.Option(help="Over which time.")] = None,
    model: Annotated[str, typer.Option(help="Only of this served model.")] = "",
    shadow: Annotated[bool, typer.Option("--shadow", help="Count and report, but never refuse.")] = False,
    warn_at: Annotated[
        list[int] | None, typer.Option(help="Log when so many percent are used; give it again for more.")
    ] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
) -> None:
    """Make a budget for one subject, of one kind."""
    scope, scope_id = _one(
        {Scope.KEY: key, Scope.USER: user, Scope.WORKSPACE: workspace, Scope.ADDRESS: address, Scope.TIER: tier}
    )
    kind, amount = _one(
        {
            Kind.COST: cost,
            Kind.REQUESTS: requests,
            Kind.TOTAL_TOKENS: tokens,
            Kind.INPUT_TOKENS: input_tokens,
            Kind.OUTPUT_TOKENS: output_tokens,
            Kind.CONCURRENCY: concurrency,
        }
    )
    try:
        rule = make_rule(kind, amount, per, model=model, shadow=shadow, warn_at=warn_at or [])
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    budget = budget_service_pb2.Budget(scope=SCOPES[scope], scope_id=scope_id, rule=rule, description=description)
    request = budget_service_pb2.CreateBudgetRequest(request_id=str(uuid4()), budget=budget)

    async def call(client: ServiceClient) -> budget_service_pb2.Budget:
        stub = budget_service_pb2_grpc.BudgetServiceStub(client.channel)
        return (await client.call(stub.CreateBudget, request, timeout=_TIMEOUT_SECONDS)).budget

    # The id alone on standard output, so that a script can take it.
    typer.echo(session.run("accounting", call).budget_id)


@app.command("list")
def list_budgets(
    scope: Annotated[Scope | None, typer.Option(help="Only for this kind of subject.")] = None,
    scope_id: Annotated[str, typer.Option("--id", help="Only for the subject of this id.")] = "",
) -> None:
    """List budgets, oldest first."""
    request = budget_service_pb2.ListBudgetsRequest(
        page_size=1000, scope=SCOPES[scope] if scope else limit_pb2.LIMIT_SCOPE_UNSPECIFIED, scope_id=scope_id
    )

    async def call(client: ServiceClient) -> list[budget_service_pb2.Budget]:
        stub = budget_service_pb2_grpc.BudgetServiceStub(client.channel)
        return [budget async for page in session.pages(client, stub.ListBudgets, request) for budget in page.budgets]

    # Ids are there to be copied, so they are never cut short.
    table = Table(Column("budget", no_wrap=True), "for", Column("id", no_wrap=True), "limit", "description")
    for budget in session.run("accounting", call):
        table.add_row(
            budget.budget_id,
            scope_text(budget.scope),
            budget.scope_id,
            rule_text(budget.rule),
            budget.description,
        )
    tables.show(table)


@app.command()
def delete(budget_id: Annotated[str, typer.Argument(help="Its id, as `naru budgets list` shows it.")]) -> None:
    """Delete a budget."""
    request = budget_service_pb2.DeleteBudgetRequest(budget_id=budget_id, request_id=str(uuid4()))

    async def call(client: ServiceClient) -> None:
        stub = budget_service_pb2_grpc.BudgetServiceStub(client.channel)
        await client.call(stub.DeleteBudget, request, timeout=_TIMEOUT_SECONDS)

    session.run("accounting", call)
    typer.echo(f"Deleted budget {budget_id}.")


def _one(given: dict[Choice, str]) -> tuple[Choice, str]:
    """The one that was given."""
    chosen = [(choice, text) for choice, text in given.items() if text]
    if len(chosen) != 1:
        raise typer.BadParameter(f"give exactly one of {', '.join(f'--{choice}' for choice in given)}")
    return chosen[0]
