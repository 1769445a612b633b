"""/api/*: the platform's own REST. One table says which RPC answers which path; JSON and messages are mapped generically."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
from aiohttp import web
from google.protobuf.message import Message

from edge.exchange import EXCHANGE
from edge.gateway import check_endpoint
from edge.routes.access import Access
from edge.rpcs import Rpc
from edge.transcoding import decode_object, fill, fill_text, to_json
from naru.clock import Clock
from naru.convert import principal_to_proto, timestamp_to_proto
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Principal, Role

_REQUEST_ID = "request_id"
_DAYS = "days"
_MOST_DAYS = 3_660
_DAY_SECONDS = 86_400
_PAGE = {"page_size": "page_size", "page_token": "page_token"}
_WHOSE = {name: name for name in ("start_time", "end_time", "key_id", "user_id", "workspace_id", "model", "endpoint")}
_USAGE = {"by": "group_by"} | _WHOSE | _PAGE
_REQUESTS = _WHOSE | {name: name for name in ("status", "status_class", "request_id", "trace_id")} | _PAGE


@dataclass(frozen=True, slots=True)
class Row:
    """One route.

    Attributes:
        method: HTTP's.
        path: With the fields of the request, or of what its body is, that stand in it.
        rpc: Who answers, such as "TierService/GetTier".
        summary: What it does.
        body: The field of the request that the JSON body is; empty when there is no body.
        answer: The field of the response that is the answer; empty when the whole response is.
        query: The field of the request by query parameter.
        days: Whether `?days=N` stands for a start time: so many days in UTC, with today.
        as_edge: Whether the edge itself asks, naming the caller in the request, rather than the caller by the edge.
        role: What the caller must at least be, where that is more than the RPC asks for.
    """

    method: str
    path: str
    rpc: str
    summary: str
    body: str = ""
    answer: str = ""
    query: Mapping[str, str] = field(default_factory=dict)
    days: bool = False
    as_edge: bool = False
    role: Role = Role.USER

    @property
    def endpoint(self) -> str:
        """What the scopes of a key name: the path of the collection."""
        return self.path.partition("/{")[0]

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))


ROWS = (
    Row("GET", "/api/tiers", "TierService/ListTiers", "List tiers, by name.", query=_PAGE),
    Row("POST", "/api/tiers", "TierService/CreateTier", "Make a tier.", body="tier", answer="tier"),
    Row("GET", "/api/tiers/{name}", "TierService/GetTier", "Show a tier.", answer="tier"),
    Row("PUT", "/api/tiers/{name}", "TierService/UpdateTier", "Replace a tier.", body="tier", answer="tier"),
    Row("DELETE", "/api/tiers/{name}", "TierService/DeleteTier", "Delete a tier that no key has."),
    Row(
        "GET",
        "/api/budgets",
        "BudgetService/ListBudgets",
        "List budgets, oldest first.",
        query=_PAGE | {"scope": "scope", "scope_id": "scope_id"},
    ),
    Row("POST", "/api/budgets", "BudgetService/CreateBudget", "Make a budget.", body="budget", answer="budget"),
    Row("GET", "/api/budgets/{budget_id}", "BudgetService/GetBudget", "Show a budget.", answer="budget"),
    Row(
        "PUT",
        "/api/budgets/{budget_id}",
        "BudgetService/UpdateBudget",
        "Replace what a budget allows.",
        body="budget",
        answer="budget",
    ),
    Row("DELETE", "/api/budgets/{budget_id}", "BudgetService/DeleteBudget", "Delete a budget."),
    Row(
        "GET",
        "/api/prices",
        "PricingService/ListPrices",
        "List prices, those that begin last first.",
        query=_PAGE | {"model": "model", "workspace_id": "workspace_id"},
    ),
    Row(
        "POST",
        "/api/prices",
        "PricingService/CreatePrice",
        "Set what a model costs, from a time on.",
        body="price",
        answer="price",
    ),
    Row("DELETE", "/api/prices/{price_id}", "PricingService/DeletePrice", "Delete a price that has not begun."),
    Row(
        "GET",
        "/api/ledger/{workspace_id}",
        "LedgerService/GetBalance",
        "Show how a workspace's account stands.",
        answer="balance",
    ),
    Row(
        "GET",
        "/api/ledger/{workspace_id}/entries",
        "LedgerService/ListEntries",
        "List the entries of an account, those booked last first.",
        query=_PAGE | {"kind": "kinds", "start_time": "start_time", "end_time": "end_time", "event_id": "event_id"},
    ),
    Row(
        "POST",
        "/api/ledger/{workspace_id}/credits",
        "LedgerService/Credit",
        "Put money on an account, or take some off by an adjustment.",
        body="credit",
    ),
    Row(
        "PUT",
        "/api/ledger/{workspace_id}/overdraft",
        "LedgerService/SetOverdraft",
        "Say how far below zero a balance may fall; without an amount: without a bound, billed in arrears.",
        body="overdraft",
        answer="balance",
    ),
    Row("GET", "/api/ledger:verify", "LedgerService/VerifyLedger", "Prove the books; no findings: they hold."),
    Row(
        "GET",
        "/api/limits",
        "QuotaService/GetLimits",
        "Show where your limits stand, tightest first.",
        query={"model": "model"},
        as_edge=True,
    ),
    Row("GET", "/api/usage", "UsageService/QueryUsage", "Sum the usage that you may see.", query=_USAGE),
    Row(
        "GET",
        "/api/admin/usage",
        "UsageService/QueryUsage",
        "Sum the usage of the installation, or of the workspace that you manage.",
        query=_USAGE,
        days=True,
        role=Role.WORKSPACE_ADMIN,
    ),
    Row("GET", "/api/requests", "UsageService/ListRequests", "List the requests that you may see.", query=_REQUESTS),
    Row(
        "GET",
        "/api/admin/requests",
        "UsageService/ListRequests",
        "List the requests of the installation, or of the workspace that you manage.",
        query=_REQUESTS,
        days=True,
        role=Role.WORKSPACE_ADMIN,
    ),
)


class Rpcs(Protocol):
    """Makes calls."""

    async def call(self, rpc: Rpc, request: Message, *, on_behalf_of: Principal | None) -> Message:
        """The answer to a unary call, made as the edge when `on_behalf_of` is None. Raises NaruError."""


class PlatformRoutes:
    """Answers the rows of the table.

    Args:
        rpcs: Accounting.
    """

    def __init__(self, access: Access, rpcs: Rpcs, clock: Clock) -> None:
        self._access = access
        self._rpcs = rpcs
        self._clock = clock

    def handler(self, row: Row) -> Callable[[web.Request], Awaitable[web.Response]]:
        """What answers requests of a row."""
        rpc = Rpc(row.rpc)

        async def answer(request: web.Request) -> web.Response:
            return await self._answer(row, rpc, request)

        return answer

    async def _answer(self, row: Row, rpc: Rpc, http: web.Request) -> web.Response:
        principal = await self._access.authenticate(http)
        check_endpoint(principal, row.endpoint)
        if principal.role.rank < row.role.rank:
            raise NaruError(
                Reason.PERMISSION_DENIED, "You are not allowed to make this call.", metadata={"method": row.endpoint}
            )
        request = rpc.request()
        if row.method != "GET":
            _read_body(row, request, await self._access.read_body(http), http.headers.get("Idempotency-Key", ""))
        read_query(request, http, self._clock, query=row.query, days=row.days)
        for name in row.path_fields:
            _read_path(row, request, name, http.match_info[name])
        if row.as_edge:
            _fill_principal(request, principal, http[EXCHANGE].client_address)
        try:
            response = await self._rpcs.call(
                rpc, request, on_behalf_of=None if row.as_edge else without_route(principal)
            )
        except NaruError as error:
            # The caller knows the body, not the field of the request that it is.
            field = error.metadata.get("field", "")
            if row.body and field.startswith(f"{row.body}."):
                error.metadata["field"] = field.removeprefix(f"{row.body}.")
            raise
        shown = to_json(getattr(response, row.answer) if row.answer else response)
        return web.Response(body=msgspec.json.encode(shown), content_type="application/json")


def read_query(
    request: Any, http: web.Request, clock: Clock, *, query: Mapping[str, str], days: bool, ignored: Sequence[str] = ()
) -> None:
    """Puts query parameters where `query` and `days` say, as in `Row`; those that are ignored are somebody else's.

    Raises NaruError INVALID_ARGUMENT naming the parameter.
    """
    for name in dict.fromkeys(http.query):
        texts = http.query.getall(name)
        if name in query:
            fill_text(request, query[name], texts, name)
        elif name in ignored:
            continue
        elif name != _DAYS or not days:
            raise invalid_argument(name, f"Unknown parameter: '{name}'.")
        elif "start_time" in http.query:
            raise invalid_argument(name, "Give either 'days' or 'start_time'.")
        else:
            # Whole days, so that the next page asks the same question.
            first = clock.time() // _DAY_SECONDS - _read_days(texts[-1]) + 1
            request.start_time.CopyFrom(timestamp_to_proto(first * _DAY_SECONDS))


def _read_body(row: Row, request: Any, body: bytes, key: str) -> None:
    """Puts the JSON body where the row says, and the id that makes a repetition harmless."""
    if row.body or body:
        value = decode_object(body)
        request_id = value.pop(_REQUEST_ID, None)
        if request_id is not None:
            fill(request, {_REQUEST_ID: request_id})
        if row.body:
            fill(getattr(request, row.body), value)
        elif value:
            name = next(iter(value))
            raise invalid_argument(name, f"Unknown field: '{name}'.")
    request.request_id = request.request_id or key


def _fill_principal(request: Any, principal: Principal, client_address: str) -> None:
    """Names the caller in a request that is made as the edge."""
    request.principal.CopyFrom(principal_to_proto(principal))
    request.client_address = client_address


def _read_path(row: Row, request: Any, name: str, text: str) -> None:
    """Puts what stands in the path where it belongs; what the body says of it must be the same."""
    target = request if name in request.DESCRIPTOR.fields_by_name else getattr(request, row.body)
    if getattr(target, name) not in ("", text):
        raise invalid_argument(name, f"'{name}' in the body is not the one in the path.")
    fill_text(target, name, [text], name)


def _read_days(text: str) -> int:
    if re.fullmatch(r"[0-9]{1,4}", text) is None or not 1 <= int(text) <= _MOST_DAYS:
        raise invalid_argument(_DAYS, f"Invalid value for 'days': must be between 1 and {_MOST_DAYS}.")
    return int(text)


def without_route(principal: Principal) -> Principal:
    """The principal as accounting gets it: a scope that names routes was checked here, and names no RPCs."""
    return replace(principal, scopes=replace(principal.scopes, endpoints=()))
