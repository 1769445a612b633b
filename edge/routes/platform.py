"""/api/*: the platform's own REST. One table says which RPC answers which path; JSON and messages are mapped generically."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import msgspec
from aiohttp import web
from google.protobuf.message import Message

from edge.exchange import EXCHANGE
from edge.gateway import check_endpoint
from edge.outcomes import HEADER as IDEMPOTENCY_KEY
from edge.routes.access import Access
from edge.rpcs import Rpc
from edge.transcoding import decode_object, field_mask, fill, fill_text, to_json
from naru.clock import Clock
from naru.convert import principal_to_proto, timestamp_to_proto
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.identity import Principal, Role
from naru.ids import is_uuid

WHOLE = "*"
_REQUEST_ID = "request_id"
_DAYS = "days"
_REPLICA = "replica"
_MOST_DAYS = 3_660
_DAY_SECONDS = 86_400
PAGE = {"page_size": "page_size", "page_token": "page_token"}
_WHOSE = {name: name for name in ("start_time", "end_time", "key_id", "user_id", "workspace_id", "model", "endpoint")}
_USAGE = {"by": "group_by"} | _WHOSE | PAGE
_REQUESTS = _WHOSE | {name: name for name in ("status", "status_class", "request_id", "trace_id")} | PAGE


@dataclass(frozen=True, slots=True)
class Row:
    """One route.

    Attributes:
        method: HTTP's.
        path: With the fields of the request, or of what its body is, that stand in it.
        rpc: Who answers, such as "TierService/GetTier".
        summary: What it does.
        body: The field of the request that the JSON body is, WHOLE for all of the request; empty when there is no body. The body
            of a PATCH names what it changes: its members are the request's `update_mask`.
        answer: The field of the response that is the answer; empty when the whole response is.
        query: The field of the request by query parameter.
        days: Whether `?days=N` stands for a start time: so many days in UTC, with today.
        as_edge: Whether the edge itself asks, naming the caller in the request, rather than the caller by the edge.
        role: What the caller must at least be, where that is more than the RPC asks for.
        every_replica: Whether all replicas are asked, and what they answer is a list.
        open: Whether it needs no credential; the edge itself asks then.
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
    every_replica: bool = False
    open: bool = False

    @property
    def endpoint(self) -> str:
        """What the scopes of a key name: the path of the collection."""
        return self.path.partition("/{")[0]

    @property
    def path_names(self) -> tuple[str, ...]:
        """The names in the path."""
        return tuple(re.findall(r"{(\w+)}", self.path))

    @property
    def path_fields(self) -> tuple[str, ...]:
        """The fields in the path: its names, without that of the replica that is asked."""
        return tuple(name for name in self.path_names if name != _REPLICA)

    @property
    def at_replica(self) -> bool:
        """Whether the path names the replica that is asked."""
        return _REPLICA in self.path_names


ROWS = (
    Row("GET", "/api/tiers", "TierService/ListTiers", "List tiers, by name.", query=PAGE),
    Row("POST", "/api/tiers", "TierService/CreateTier", "Make a tier.", body="tier", answer="tier"),
    Row("GET", "/api/tiers/{name}", "TierService/GetTier", "Show a tier.", answer="tier"),
    Row("PUT", "/api/tiers/{name}", "TierService/UpdateTier", "Replace a tier.", body="tier", answer="tier"),
    Row("DELETE", "/api/tiers/{name}", "TierService/DeleteTier", "Delete a tier that no key or budget has."),
    Row(
        "GET",
        "/api/budgets",
        "BudgetService/ListBudgets",
        "List budgets, oldest first.",
        query=PAGE | {"scope": "scope", "scope_id": "scope_id"},
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
        query=PAGE | {"model": "model", "workspace_id": "workspace_id"},
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
        query=PAGE | {"kind": "kinds", "start_time": "start_time", "end_time": "end_time", "event_id": "event_id"},
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
        rpcs: Accounting and authsvc.
        replicas: Inference, by address.
    """

    def __init__(self, access: Access, rpcs: Rpcs, replicas: Mapping[str, Rpcs], clock: Clock) -> None:
        self._access = access
        self._rpcs = rpcs
        self._replicas = replicas
        self._clock = clock

    def handler(self, row: Row) -> Callable[[web.Request], Awaitable[web.Response]]:
        """What answers requests of a row."""
        rpc = Rpc(row.rpc)

        async def answer(request: web.Request) -> web.Response:
            return await self._answer(row, rpc, request)

        return answer

    async def _answer(self, row: Row, rpc: Rpc, http: web.Request) -> web.Response:
        principal = None if row.open else await self._permitted(row, http)
        request = rpc.request()
        if row.method != "GET":
            _read_body(row, request, await self._access.read_body(http), http.headers.get(IDEMPOTENCY_KEY, ""))
        read_query(request, http, self._clock, query=row.query, days=row.days)
        for name in row.path_fields:
            _read_path(row, request, name, http.match_info[name])
        if principal is None or row.as_edge:
            _fill_caller(request, principal, http[EXCHANGE].client_address)
        caller = None if principal is None or row.as_edge else with_rpc(principal, rpc)
        try:
            shown = await self._ask(row, rpc, request, http, caller)
        except NaruError as error:
            # The caller knows the body, not the field of the request that it is.
            field = error.metadata.get("field", "")
            if row.body and field.startswith(f"{row.body}."):
                error.metadata["field"] = field.removeprefix(f"{row.body}.")
            raise
        return web.Response(body=msgspec.json.encode(shown), content_type="application/json")

    async def _ask(
        self, row: Row, rpc: Rpc, request: Message, http: web.Request, principal: Principal | None
    ) -> dict[str, Any]:
        async def ask(rpcs: Rpcs) -> dict[str, Any]:
            response = await rpcs.call(rpc, request, on_behalf_of=principal)
            return to_json(getattr(response, row.answer) if row.answer else response)

        if row.every_replica:
            return {f"{row.answer}s": await asyncio.gather(*map(ask, self._replicas.values()))}
        if not row.at_replica:
            return await ask(self._rpcs)
        address = http.match_info[_REPLICA]
        if address not in self._replicas:
            raise not_found(_REPLICA, address)
        return await ask(self._replicas[address])

    async def _permitted(self, row: Row, http: web.Request) -> Principal:
        principal = await self._access.authenticate(http)
        check_endpoint(principal, row.endpoint)
        if principal.role.rank < row.role.rank:
            raise NaruError(
                Reason.PERMISSION_DENIED, "You are not allowed to make this call.", metadata={"method": row.endpoint}
            )
        return principal


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
    """Puts the JSON body where the row says, and the id that makes a repetition harmless.

    Raises NaruError INVALID_ARGUMENT naming the field or the header.
    """
    if body or row.body not in ("", WHOLE):
        value = decode_object(body)
        request_id = value.pop(_REQUEST_ID, None)
        if request_id is not None:
            fill(request, {_REQUEST_ID: request_id})
        if row.body == WHOLE:
            fill(request, value)
        elif row.body:
            target = getattr(request, row.body)
            fill(target, value)
            if row.method == "PATCH":
                request.update_mask.SetInParent()
                paths = field_mask(target, value)
                request.update_mask.paths.extend(path for path in paths if path not in row.path_fields)
        elif value:
            name = next(iter(value))
            raise invalid_argument(name, f"Unknown field: '{name}'.")
    if _REQUEST_ID in request.DESCRIPTOR.fields_by_name:
        request.request_id = request.request_id or _read_key(key)


def _read_key(text: str) -> str:
    """The idempotency key as a request id; empty when there is none. Raises NaruError INVALID_ARGUMENT."""
    # Some tools write UUIDs in capitals, such as macOS's uuidgen.
    key = text.lower()
    if key and not is_uuid(key):
        raise invalid_argument(IDEMPOTENCY_KEY, f"{IDEMPOTENCY_KEY} must be a UUID.")
    return key


def _fill_caller(request: Any, principal: Principal | None, client_address: str) -> None:
    """Names the caller, as far as known, in a request that is made as the edge."""
    if principal is not None:
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


def with_rpc(principal: Principal, rpc: Rpc) -> Principal:
    """The principal as the service gets it: a scope that names routes was checked here, and stands for the RPC behind it.

    The routes stay in it, so that what the service hands out to the caller is as narrow as the caller.
    """
    endpoints = principal.scopes.endpoints
    if not endpoints:
        return principal
    return replace(principal, scopes=replace(principal.scopes, endpoints=(*endpoints, rpc.path)))
