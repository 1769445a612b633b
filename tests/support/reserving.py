"""A session of reservations before a servicer of tests that answers calls for them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from naru.api.accounting.v1 import quota_service_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError


async def answered(
    reserve: Callable[[Any, Any], Awaitable[quota_service_pb2.ReserveResponse]], requests: AsyncIterator[Any], call: Any
) -> AsyncIterator[quota_service_pb2.ReserveSessionResponse]:
    """What `reserve` says to each of them."""
    async for request in requests:
        try:
            yield quota_service_pb2.ReserveSessionResponse(reserved=await reserve(request.reserve, call))
        except NaruError as error:
            yield quota_service_pb2.ReserveSessionResponse(error=error_to_proto(error))
