"""The ways into an accounting that is up: as a service, and as the owner of a key."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, Self

from naru.api.accounting.v1 import (
    ledger_service_pb2,
    ledger_service_pb2_grpc,
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_event_pb2,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.conversation import Conversation
from naru.convert import principal_to_proto, timestamp_to_proto
from naru.identity import Principal, Role, ServiceName, ServiceTokens
from naru.ids import uuid7
from naru.lifecycle import Running
from tests.support.recording_accounting import KeyRing

RESERVE_SESSION = "/naru.api.accounting.v1.QuotaService/ReserveSession"
ReserveSession = Conversation[quota_service_pb2.ReserveSessionRequest, quota_service_pb2.ReserveSessionResponse]
_TIMEOUT = 5.0
NOW = 1_800_000_000.0


class Caller:
    """Whoever calls with one client."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._quota = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
        self._usage = usage_service_pb2_grpc.UsageServiceStub(client.channel)

    async def reserve(self, *items: quota_service_pb2.Reservation) -> list[quota_service_pb2.ReserveResult]:
        request = quota_service_pb2.ReserveRequest(items=items)
        return list((await self._client.call(self._quota.Reserve, request, timeout=_TIMEOUT)).results)

    def session(self) -> ReserveSession:
        return Conversation(self._client, RESERVE_SESSION, quota_service_pb2.ReserveSessionResponse)

    async def release(self, *items: quota_service_pb2.EventRef, unused_spares: bool = False) -> list[bool]:
        request = quota_service_pb2.ReleaseRequest(items=items, unused_spares=unused_spares)
        response = await self._client.call(self._quota.Release, request, timeout=_TIMEOUT)
        return [result.released for result in response.results]

    async def limits(self, **fields: Any) -> quota_service_pb2.GetLimitsResponse:
        request = quota_service_pb2.GetLimitsRequest(**fields)
        return await self._client.call(self._quota.GetLimits, request, timeout=_TIMEOUT)

    async def keep(
        self, item: quota_service_pb2.Reservation, fate: quota_service_pb2.OutcomeFate.ValueType, outcome: bytes = b""
    ) -> bool:
        request = quota_service_pb2.KeepOutcomeRequest(
            event_id=item.event_id, principal=item.principal, key=item.idempotency.key, fate=fate, outcome=outcome
        )
        return (await self._client.call(self._quota.KeepOutcome, request, timeout=_TIMEOUT)).kept

    async def renew(self, *items: quota_service_pb2.EventRef) -> list[quota_service_pb2.RenewResult]:
        request = quota_service_pb2.RenewRequest(items=items)
        return list((await self._client.call(self._quota.Renew, request, timeout=_TIMEOUT)).results)

    async def restore(self, *items: quota_service_pb2.Reservation) -> list[quota_service_pb2.RenewResult]:
        running = [quota_service_pb2.RunningRequest(reservation=item) for item in items]
        request = quota_service_pb2.RestoreRequest(items=running)
        return list((await self._client.call(self._quota.Restore, request, timeout=_TIMEOUT)).results)

    async def record(
        self, *events: usage_event_pb2.UsageEvent, counters: usage_service_pb2.EngineCounters | None = None
    ) -> list[usage_service_pb2.RecordUsageResult]:
        request = usage_service_pb2.RecordUsageRequest(events=events, counters=counters)
        return list((await self._client.call(self._usage.RecordUsage, request, timeout=_TIMEOUT)).results)

    async def log(self, *records: usage_event_pb2.RequestRecord) -> None:
        request = usage_service_pb2.RecordRequestsRequest(records=records)
        await self._client.call(self._usage.RecordRequests, request, timeout=_TIMEOUT)

    async def requests(self, **fields: Any) -> usage_service_pb2.ListRequestsResponse:
        request = usage_service_pb2.ListRequestsRequest(**fields)
        return await self._client.call(self._usage.ListRequests, request, timeout=_TIMEOUT)

    async def export(self, **fields: Any) -> list[usage_event_pb2.UsageRecord]:
        request = usage_service_pb2.ExportUsageRequest(**fields)
        async with self._client.stream(self._usage.ExportUsage, request, timeout=_TIMEOUT) as responses:
            return [record async for response in responses for record in response.records]

    async def ledger(self, method: str, **fields: Any) -> Any:
        """An RPC of the ledger."""
        stub = ledger_service_pb2_grpc.LedgerServiceStub(self._client.channel)
        request = getattr(ledger_service_pb2, f"{method}Request")(**fields)
        return await self._client.call(getattr(stub, method), request, timeout=_TIMEOUT)

    async def query(self, **fields: Any) -> usage_service_pb2.QueryUsageResponse:
        request = usage_service_pb2.QueryUsageRequest(**fields)
        return await self._client.call(self._usage.QueryUsage, request, timeout=_TIMEOUT)


class Service:
    """A running accounting."""

    def __init__(self, up: Running, tokens: ServiceTokens, keys: KeyRing) -> None:
        self.up = up
        self._tokens = tokens
        self._keys = keys
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def as_service(self, name: ServiceName) -> Caller:
        return self._caller(service_token=self._tokens.of(name))

    def as_owner(self, workspace_id: str, role: Role) -> tuple[Caller, Principal]:
        """A caller with a new key, and whose it is."""
        made: list[Principal] = []

        def make(key_id: str) -> Principal:
            made.append(Principal(workspace_id, role=role, key_id=key_id))
            return made[0]

        return self._caller(credential=self._keys.new_key(make)), made[0]

    def nobody(self) -> Caller:
        return self._caller()

    def _caller(self, **fields: str) -> Caller:
        client = ServiceClient(f"127.0.0.1:{self.up.port}", name="accounting", **fields)
        self._stack.push_async_callback(client.close)
        return Caller(client)


def wanted(principal: Principal, **fields: Any) -> quota_service_pb2.Reservation:
    """A reservation on the wire."""
    return quota_service_pb2.Reservation(
        **{
            "event_id": uuid7(),
            "principal": principal_to_proto(principal),
            "requested_model": "gpt-4o-mini",
            "served_model": "smollm2",
            "endpoint": "/v1/chat/completions",
            "input_tokens": 10,
            "request_id": "req_1",
            **fields,
        }
    )


def ref(item: quota_service_pb2.Reservation) -> quota_service_pb2.EventRef:
    """What it is called."""
    return quota_service_pb2.EventRef(event_id=item.event_id, attempt=item.attempt)


def final(principal: Principal, event_id: str = "", **fields: Any) -> usage_event_pb2.UsageEvent:
    """A final report of 7 and 3 tokens on the wire."""
    return usage_event_pb2.UsageEvent(
        **{
            "event_id": event_id or uuid7(),
            "evidence": usage_event_pb2.EVIDENCE_FINAL,
            "accuracy": usage_event_pb2.ACCURACY_EXACT,
            "outcome": usage_event_pb2.OUTCOME_COMPLETED,
            "principal": principal_to_proto(principal),
            "served_model": "smollm2",
            "usage": {"prompt_tokens": 7, "completion_tokens": 3},
            "accept_time": timestamp_to_proto(NOW),
            **fields,
        }
    )
