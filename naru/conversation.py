"""Asking a service over one stream of messages, where a call for each question would cost more than its answer."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar

import grpc

from naru.client import ServiceClient
from naru.errors import NaruError, Reason, unavailable
from naru.status import error_from_rpc

Request = TypeVar("Request")
Response = TypeVar("Response")

# What grpc says of a call whose write failed, also in place of the status that the peer ended it with
# (grpc/_cython/_cygrpc/aio/call.pyx.pxi: set_internal_error).
_WRITE_FAILED = "Internal error from Core"


class Conversation(Generic[Request, Response]):
    """Questions, each with one answer. The stream is opened by the first, and anew after it broke.

    Several may be asked at a time: they are heard in the order in which they were asked. What ends the stream before an answer
    came ends it for all that wait for theirs.

    Args:
        client: Of the service.
        method: Of the stub: a stream in both directions, whose responses come in the order of the requests.
    """

    def __init__(self, client: ServiceClient, method: grpc.aio.StreamStreamMultiCallable[Request, Response]) -> None:
        self._client = client
        self._method = method
        self._call: grpc.aio.StreamStreamCall[Request, Response] | None = None
        # Both let in whoever came first, so that answers are read in the order of the questions.
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()

    async def ask(self, request: Request, *, timeout: float) -> Response:
        """The answer, within `timeout` seconds.

        Raises NaruError when there is none; the question may have been heard then.
        """
        try:
            async with asyncio.timeout(timeout):
                async with self._writing:
                    call = await self._write(request)
                return await self._read(call)
        except TimeoutError:
            raise NaruError(Reason.DEADLINE_EXCEEDED, f"{self._client.name} did not answer in time.") from None
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure, self._client.name) from failure

    def close(self) -> None:
        """Ends the stream; the next question opens another one."""
        if self._call is not None:
            self._end(self._call)

    def _end(self, call: grpc.aio.StreamStreamCall[Request, Response]) -> None:
        _ = call.cancel()
        if self._call is call:
            self._call = None

    def _open(self) -> grpc.aio.StreamStreamCall[Request, Response]:
        if self._call is None or self._call.done():
            self._call = self._client.converse(self._method)
        return self._call

    async def _write(self, request: Request) -> grpc.aio.StreamStreamCall[Request, Response]:
        call = self._open()
        try:
            while not await _written(call, request):
                # It ended meanwhile, and why may be lost. If that is still so, another one is told.
                self._end(call)
                call = self._open()
        except BaseException:
            self._end(call)
            raise
        return call

    async def _read(self, call: grpc.aio.StreamStreamCall[Request, Response]) -> Response:
        try:
            async with self._reading:
                answer: Any = await call.read()
        except asyncio.CancelledError:
            broken = _cancelled_by_another()
            self._end(call)
            if broken:
                raise unavailable(self._client.name) from None
            raise
        except BaseException as failure:
            # An answer that comes after all would be taken for that of the next question.
            self._end(call)
            if _lost_to_a_write(failure):
                raise unavailable(self._client.name) from failure
            raise
        if answer is grpc.aio.EOF:
            self._end(call)
            raise unavailable(self._client.name)
        response: Response = answer
        return response


async def _written(call: grpc.aio.StreamStreamCall[Request, Response], request: Request) -> bool:
    """Whether it was, and not to a call that ended."""
    try:
        await call.write(request)
    except asyncio.InvalidStateError:
        return False
    except asyncio.CancelledError:
        if _cancelled_by_another():
            return False
        raise
    except grpc.aio.AioRpcError as failure:
        if _lost_to_a_write(failure):
            return False
        raise
    return True


def _cancelled_by_another() -> bool:
    """Whether whoever asked before cancelled the stream, and nobody this task: gRPC tells both alike."""
    task = asyncio.current_task()
    return task is not None and not task.cancelling()


def _lost_to_a_write(failure: BaseException) -> bool:
    """Whether a write failed because the stream had ended, which leaves nobody able to tell why it had."""
    return isinstance(failure, grpc.aio.AioRpcError) and failure.details() == _WRITE_FAILED
