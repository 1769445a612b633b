"""AuditService over gRPC."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.audit import AuditEntry, Facts
from authsvc.audit_log import AuditLog
from authsvc.audit_store import AuditQuery
from authsvc.convert import time_from_proto
from authsvc.tables import micros
from naru.api.auth.v1 import audit_service_pb2, audit_service_pb2_grpc
from naru.context import current
from naru.convert import timestamp_to_proto


class AuditServicer(audit_service_pb2_grpc.AuditServiceServicer):
    """Tells who changed what.

    Args:
        log: Decides who sees what of it, and reads it.
    """

    def __init__(self, log: AuditLog) -> None:
        self._log = log

    async def ListAuditEntries(
        self,
        request: audit_service_pb2.ListAuditEntriesRequest,
        context: grpc.aio.ServicerContext[
            audit_service_pb2.ListAuditEntriesRequest, audit_service_pb2.ListAuditEntriesResponse
        ],
    ) -> audit_service_pb2.ListAuditEntriesResponse:
        asked = current()
        entries, next_page_token = await self._log.page(
            asked.caller.principal,
            _query(request),
            size=request.page_size,
            token=request.page_token,
            method=asked.method,
        )
        return audit_service_pb2.ListAuditEntriesResponse(
            entries=[_to_proto(entry) for entry in entries], next_page_token=next_page_token
        )

    async def ExportAuditEntries(
        self,
        request: audit_service_pb2.ExportAuditEntriesRequest,
        context: grpc.aio.ServicerContext[
            audit_service_pb2.ExportAuditEntriesRequest, audit_service_pb2.ExportAuditEntriesResponse
        ],
    ) -> AsyncIterator[audit_service_pb2.ExportAuditEntriesResponse]:
        asked = current()
        export = self._log.export(asked.caller.principal, _query(request), method=asked.method)
        async with aclosing(export) as pages:
            async for entries in pages:
                yield audit_service_pb2.ExportAuditEntriesResponse(entries=[_to_proto(entry) for entry in entries])


def _query(
    request: audit_service_pb2.ListAuditEntriesRequest | audit_service_pb2.ExportAuditEntriesRequest,
) -> AuditQuery:
    return AuditQuery(
        actor=request.actor,
        action=request.action,
        object_id=request.object_id,
        workspace_id=request.workspace_id,
        start_time=_time("start_time", request.start_time) if request.HasField("start_time") else None,
        end_time=_time("end_time", request.end_time) if request.HasField("end_time") else None,
    )


def _time(field: str, message: Timestamp) -> int:
    return micros(time_from_proto(field, message))


def _to_proto(entry: AuditEntry) -> audit_service_pb2.AuditEntry:
    return audit_service_pb2.AuditEntry(
        entry_id=entry.entry_id,
        time=timestamp_to_proto(entry.time),
        actor=entry.origin.actor,
        client_address=entry.origin.client_address,
        request_id=entry.origin.request_id,
        action=entry.action,
        object_id=entry.object_id,
        workspace_id=entry.workspace_id,
        before_json=_json(entry.before),
        after_json=_json(entry.after),
    )


def _json(facts: Facts | None) -> str:
    return "" if facts is None else json.dumps(facts, ensure_ascii=False, sort_keys=True)
