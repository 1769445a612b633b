"""Sessions of callers that reserve all the time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence

from naru.api.accounting.v1 import quota_service_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError
from naru.interceptors import internal_error
from naru.tracing import Tracing

_SPAN = "/naru.api.accounting.v1.QuotaService/Reserve"


class ReserveSessions:
    """Answers the requests of each session one by one, as `reserve` does.

    Args:
        reserve: Answers one, given what has finished.
        tracing: Each request is a span of the trace that its message names.
    """

    def __init__(
        self,
        reserve: Callable[
            [quota_service_pb2.ReserveRequest, Sequence[quota_service_pb2.EventRef]],
            Awaitable[quota_service_pb2.ReserveResponse],
        ],
        tracing: Tracing,
    ) -> None:
        self._reserve = reserve
        self._tracing = tracing
        self._waiting: set[asyncio.Task[object]] = set()
        self._closed = False

    async def serve(
        self, requests: AsyncIterable[quota_service_pb2.ReserveSessionRequest]
    ) -> AsyncIterator[quota_service_pb2.ReserveSessionResponse]:
        """The answers to one session's requests, until its caller or the service ends it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- gRPC runs each call in a task
        messages = aiter(requests)
        while not self._closed:
            self._waiting.add(task)
            try:
                message = await anext(messages)
            except StopAsyncIteration:
                return
            finally:
                self._waiting.discard(task)
            yield await self._answer(message)

    def close(self) -> None:
        """Ends every session, those that are being answered after their answer."""
        self._closed = True
        for task in self._waiting:
            _ = task.cancel()

    async def _answer(
        self, message: quota_service_pb2.ReserveSessionRequest
    ) -> quota_service_pb2.ReserveSessionResponse:
        span = self._tracing.start_span(_SPAN, message.traceparent) if message.traceparent else None
        try:
            return quota_service_pb2.ReserveSessionResponse(
                reserved=await self._reserve(message.reserve, message.finished)
            )
        except NaruError as error:
            return quota_service_pb2.ReserveSessionResponse(error=error_to_proto(error))
        except Exception as cause:  # noqa: BLE001 -- one request's; the log gets the cause, the caller a fixed text
            return quota_service_pb2.ReserveSessionResponse(error=error_to_proto(internal_error(cause, _SPAN)))
        finally:
            if span is not None:
                span.end()
