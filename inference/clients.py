"""Accounting, as inference sees it, over gRPC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from inference import accounting_convert
from inference.admission import Grant, Need, Renewal, RunningRequest
from inference.events import EngineReport, EventKey, GenerationOrder, UsageEvent
from naru.api.accounting.v1 import (
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.convert import error_from_proto
from naru.errors import NaruError, Reason

_DECIDE_SECONDS = 2.0
_RECORD_SECONDS = 10.0
Result = TypeVar("Result")


class AccountingClient:
    """Calls QuotaService and UsageService.

    Args:
        client: A client of accounting with inference's service token.
    """

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._quota = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
        self._usage = usage_service_pb2_grpc.UsageServiceStub(client.channel)

    async def reserve(self, order: GenerationOrder, need: Need, revision: int, served_model: str) -> Grant | NaruError:
        """Takes capacity, or says why not."""
        request = quota_service_pb2.ReserveRequest(
            items=[accounting_convert.reservation_to_proto(order, need, revision, served_model)]
        )
        response = await self._client.call(self._quota.Reserve, request, timeout=_DECIDE_SECONDS)
        (result,) = _one_each(response.results, 1)
        if result.HasField("refusal"):
            return error_from_proto(result.refusal)
        cap = result.grant.output_token_cap if result.grant.HasField("output_token_cap") else None
        return Grant(cap)

    async def release(self, key: EventKey) -> None:
        """Gives back what a reservation holds, except its request count."""
        request = quota_service_pb2.ReleaseRequest(items=[accounting_convert.key_to_proto(key)])
        await self._client.call(self._quota.Release, request, timeout=_DECIDE_SECONDS)

    async def finish(self, keys: Sequence[EventKey]) -> None:
        """Says that requests have ended."""
        request = quota_service_pb2.FinishRequest(items=[accounting_convert.key_to_proto(key) for key in keys])
        await self._client.call(self._quota.Finish, request, timeout=_DECIDE_SECONDS)

    async def renew(self, keys: Sequence[EventKey]) -> list[Renewal]:
        """Extends leases; says for each what became of it."""
        request = quota_service_pb2.RenewRequest(items=[accounting_convert.key_to_proto(key) for key in keys])
        response = await self._client.call(self._quota.Renew, request, timeout=_RECORD_SECONDS)
        return [accounting_convert.renewal_from_proto(result) for result in _one_each(response.results, len(keys))]

    async def restore(self, running: Sequence[RunningRequest]) -> list[Renewal]:
        """Says what running requests hold that accounting knows nothing of."""
        request = quota_service_pb2.RestoreRequest(items=[accounting_convert.running_to_proto(one) for one in running])
        response = await self._client.call(self._quota.Restore, request, timeout=_RECORD_SECONDS)
        return [accounting_convert.renewal_from_proto(result) for result in _one_each(response.results, len(running))]

    async def record_usage(self, events: Sequence[UsageEvent], report: EngineReport | None) -> list[NaruError | None]:
        """Reports events; says for each why it was refused for good, or None when accounting has it."""
        request = usage_service_pb2.RecordUsageRequest(
            events=[accounting_convert.usage_event_to_proto(event) for event in events],
            counters=None if report is None else accounting_convert.engine_report_to_proto(report),
        )
        response = await self._client.call(self._usage.RecordUsage, request, timeout=_RECORD_SECONDS)
        return [accounting_convert.refusal_from_proto(result) for result in _one_each(response.results, len(events))]


def _one_each(results: Sequence[Result], count: int) -> Sequence[Result]:
    """The results, of which there must be one for each item asked."""
    if len(results) != count:
        raise NaruError(Reason.INTERNAL, f"The accounting service answered {len(results)} of {count} items.")
    return results
