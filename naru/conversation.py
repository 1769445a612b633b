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
    """One question at a time, each with one answer. The stream is opened by the first question, and anew after it broke.

    Args:
        client: Of the service.
        method: Of the stub: a stream in both directions, whose responses come in the order of the requests.
    """

    def __init__(self, client: ServiceClient, method: grpc.aio.StreamStreamMultiCallable[Request, Response]) -> None:
        self._client = client
        self._method = method
        self._call: grpc.aio.StreamStreamCall[Request, Response] | None = None

    async def ask(self, request: Request, *, timeout: float) -> Response:
        """The answer, within `timeout` seconds.

        Raises NaruError when there is none; the question may have been heard then.
        """
        try:
            async with asyncio.timeout(timeout):
                return await self._ask(request)
        except TimeoutError:
            self.close()
            raise NaruError(Reason.DEADLINE_EXCEEDED, f"{self._client.name} did not answer in time.") from None
        except grpc.aio.AioRpcError as failure:
            self.close()
            raise error_from_rpc(failure, self._client.name) from failure
        except BaseException:
            # An answer that comes after all would be taken for that of the next question.
            self.close()
            raise

    def close(self) -> None:
        """Ends the stream; the next question opens another one."""
        if self._call is not None:
            _ = self._call.cancel()
            self._call = None

    def _open(self) -> grpc.aio.StreamStreamCall[Request, Response]:
        if self._call is None or self._call.done():
            self._call = self._client.converse(self._method)
        return self._call

    async def _ask(self, request: Request) -> Response:
        call = self._open()
        while not await _written(call, request):
            # It ended meanwhile, and why may be lost. If that is still so, another one is told.
            self.close()
            call = self._open()
        answer: Any = await call.read()
        if answer is grpc.aio.EOF:
            raise unavailable(self._client.name)
        response: Response = answer
        return response


async def _written(call: grpc.aio.StreamStreamCall[Request, Response], request: Request) -> bool:
    """Whether it was, and not to a call that ended."""
    try:
        await call.write(request)
    except asyncio.InvalidStateError:
        return False
    except grpc.aio.AioRpcError as failure:
        if failure.details() == _WRITE_FAILED:
            return False
        raise
    return True
