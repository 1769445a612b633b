"""GET /api/usage/export and /api/audit/export: lines of CSV or JSON, handed on as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from aiohttp import web
from google.protobuf.message import Message

from edge.exchange import EXCHANGE
from edge.gateway import check_endpoint
from edge.routes.access import Access
from edge.routes.platform import read_query, with_rpc
from edge.rpcs import Rpc
from naru.audit_export import AUDIT
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument
from naru.export import Exported, ExportFormat
from naru.identity import Principal, Role
from naru.usage_export import USAGE

FORMAT = "format"
# Rows are written out in between of what other requests need the process for.
_ROWS_AT_ONCE = 100
_STALL_SECONDS = 60.0
CONTENT_TYPES = {ExportFormat.CSV: "text/csv; charset=utf-8; header=present", ExportFormat.JSONL: "application/jsonl"}


@dataclass(frozen=True, slots=True)
class ExportKind:
    """What is exported.

    Attributes:
        rpc: Who answers.
        messages: The field of each answer that has the messages.
        query: The field of the request by query parameter.
        exported: What a line has.
    """

    rpc: str
    messages: str
    query: Mapping[str, str]
    exported: Exported


USAGE_EXPORT = ExportKind(
    "UsageService/ExportUsage",
    "records",
    {name: name for name in ("start_time", "end_time", "key_id", "user_id", "workspace_id", "model", "endpoint")},
    USAGE,
)
AUDIT_EXPORT = ExportKind(
    "AuditService/ExportAuditEntries",
    "entries",
    {name: name for name in ("start_time", "end_time", "actor", "action", "object_id", "workspace_id")},
    AUDIT,
)


@dataclass(frozen=True, slots=True)
class ExportRow:
    """One route that exports; `days` and `role` as in `edge.routes.platform.Row`."""

    path: str
    kind: ExportKind
    summary: str
    days: bool = False
    role: Role = Role.USER


EXPORTS = (
    ExportRow("/api/usage/export", USAGE_EXPORT, "Export the usage events that you may see, as CSV or JSON lines."),
    ExportRow(
        "/api/admin/usage/export",
        USAGE_EXPORT,
        "Export the usage events of the installation, or of the workspace that you manage.",
        days=True,
        role=Role.WORKSPACE_ADMIN,
    ),
    ExportRow(
        "/api/audit/export",
        AUDIT_EXPORT,
        "Export who changed what, the oldest first, as CSV or JSON lines.",
        days=True,
        role=Role.WORKSPACE_ADMIN,
    ),
)


class Streams(Protocol):
    """Makes calls that answer with a stream."""

    def stream(
        self, rpc: Rpc, request: Message, *, on_behalf_of: Principal
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """The answers; iterating raises NaruError when the call fails."""


class ExportRoutes:
    """Answers the exports. Keeps a few hundred rows at a time, whatever the export has.

    Args:
        streams: The services.
        stall_seconds: Seconds a client may leave a part of an export unread.
    """

    def __init__(
        self, access: Access, streams: Streams, clock: Clock, *, stall_seconds: float = _STALL_SECONDS
    ) -> None:
        self._access = access
        self._streams = streams
        self._clock = clock
        self._stall_seconds = stall_seconds

    def handler(self, row: ExportRow) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """What answers requests of a row."""
        rpc = Rpc(row.kind.rpc)

        async def answer(request: web.Request) -> web.StreamResponse:
            return await self._answer(row, rpc, request)

        return answer

    async def _answer(self, row: ExportRow, rpc: Rpc, http: web.Request) -> web.StreamResponse:
        principal = await self._access.authenticate(http)
        check_endpoint(principal, row.path)
        if principal.role.rank < row.role.rank:
            raise NaruError(
                Reason.PERMISSION_DENIED, "You are not allowed to make this call.", metadata={"method": row.path}
            )
        written = _format(http.query.getall(FORMAT, [ExportFormat.CSV]))
        request = rpc.request()
        read_query(request, http, self._clock, query=row.kind.query, days=row.days, ignored=(FORMAT,))
        async with self._streams.stream(rpc, request, on_behalf_of=with_rpc(principal, rpc)) as answers:
            # Nothing is sent before the first answer: until then what goes wrong has a status of its own.
            first = await anext(answers, None)
            response = await self._begin(http, written, row.kind.exported)
            try:
                if first is not None:
                    await self._write(http, response, written, row.kind, first)
                async for answer in answers:
                    await self._write(http, response, written, row.kind, answer)
                async with asyncio.timeout(self._stall_seconds):
                    await response.write_eof()
            except (NaruError, TimeoutError) as error:
                _cut(http, error)
                raise ConnectionResetError("the export broke off") from error
        return response

    async def _begin(self, http: web.Request, written: ExportFormat, exported: Exported) -> web.StreamResponse:
        exchange = http[EXCHANGE]
        exchange.stream = True
        name = f"naru-{exported.name}-{int(self._clock.time())}.{written}"
        response = web.StreamResponse(
            headers={
                "Content-Type": CONTENT_TYPES[written],
                "Content-Disposition": f'attachment; filename="{name}"',
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(http)
        exchange.status = response.status
        exchange.first_byte = self._clock.monotonic() - exchange.started
        beginning = exported.header(written)
        if beginning:
            exchange.response_bytes += len(beginning)
            await response.write(beginning)
        return response

    async def _write(
        self,
        http: web.Request,
        response: web.StreamResponse,
        written: ExportFormat,
        kind: ExportKind,
        answer: Any,
    ) -> None:
        messages = getattr(answer, kind.messages)
        for start in range(0, len(messages), _ROWS_AT_ONCE):
            chunk = kind.exported.lines(written, messages[start : start + _ROWS_AT_ONCE])
            http[EXCHANGE].response_bytes += len(chunk)
            # A reader that does not read keeps nobody waiting for ever.
            async with asyncio.timeout(self._stall_seconds):
                await response.write(chunk)


def _format(texts: Sequence[str]) -> ExportFormat:
    try:
        (text,) = texts
        return ExportFormat(text)
    except ValueError:
        known = ", ".join(ExportFormat)
        raise invalid_argument(FORMAT, f"Invalid value for '{FORMAT}': must be one of {known}.") from None


def _cut(http: web.Request, error: NaruError | TimeoutError) -> None:
    """Hangs up: an export that just ended would look complete."""
    http[EXCHANGE].reason = error.reason if isinstance(error, NaruError) else Reason.CANCELLED
    if http.transport is not None:
        http.transport.abort()
