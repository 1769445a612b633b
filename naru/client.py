"""How services call each other: always with a deadline, always cancelled when left, errors of our own family."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from naru import context, deadline
from naru.balancing import Target
from naru.convert import principal_to_proto
from naru.identity import Principal
from naru.interceptors import (
    CLIENT_ADDRESS_METADATA,
    PRINCIPAL_METADATA,
    REQUEST_ID_METADATA,
    SERVICE_TOKEN_METADATA,
)
from naru.message_call import open_stream
from naru.message_stream import Listener, MessageStream
from naru.server import TRANSPORT_OPTIONS
from naru.status import error_from_rpc
from naru.tracing import Tracing

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str | bytes], ...]


class ServiceClient:
    """One channel to one service. Make it inside the running event loop; gRPC's objects belong to it.

    Args:
        address: host:port, or the target that several replicas are.
        name: What the service is called in errors.
        service_token: Calls as a service.
        credential: Calls as whoever owns this API key, when there is no service token.
    """

    def __init__(
        self,
        address: str | Target,
        *,
        name: str,
        service_token: str | None = None,
        credential: str | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.name = name
        target = address if isinstance(address, Target) else Target(address)
        self.channel = grpc.aio.insecure_channel(
            target.uri,
            # A peer that restarts is tried again soon; gRPC's own ceiling is two minutes. The second of the three is how long
            # a connection may take to be made: a busy peer is late, and no attempt that it answers must be given up before.
            options=[
                *TRANSPORT_OPTIONS,
                *target.options,
                # Services are near; a proxy that is set is for what is outside, and would see their tokens.
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 1_000),
                ("grpc.max_reconnect_backoff_ms", 1_000),
            ],
            interceptors=(tracing or Tracing()).client_interceptors(),
        )
        self._address = target.uri
        self._streams: list[MessageStream] = []
        self._metadata: tuple[tuple[str, str], ...] = ()
        if service_token is not None:
            self._metadata = ((SERVICE_TOKEN_METADATA, service_token),)
        elif credential is not None:
            self._metadata = (("authorization", f"Bearer {credential}"),)

    async def call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        *,
        timeout: float,
        on_behalf_of: Principal | None = None,
    ) -> Response:
        """Makes a unary call within `timeout` seconds, or within the current deadline if that is sooner.

        With `on_behalf_of` the call is that principal's, as if they had made it themselves; only the edge may ask for that.
        Raises NaruError, whatever went wrong.
        """
        call = method(request, timeout=deadline.bounded(timeout), metadata=self._outgoing(on_behalf_of))
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure, self.name) from failure
        finally:
            call.cancel()

    @asynccontextmanager
    async def stream(
        self, method: Any, request: Any, *, timeout: float | None, on_behalf_of: Principal | None = None
    ) -> AsyncIterator[AsyncIterator[Any]]:
        """Makes a streaming call; leaving the block cancels it, which leaving the iterator alone would not.

        `timeout` is for the whole stream; None only for streams that live as long as the process. `on_behalf_of` as in `call`.
        """
        limit = None if timeout is None else deadline.bounded(timeout)
        call = method(request, timeout=limit, metadata=self._outgoing(on_behalf_of))
        try:
            yield self._messages(call)
        finally:
            call.cancel()

    async def open_stream(self, path: str, listener: Listener, *, port: int | None = None) -> MessageStream:
        """Opens a stream in both directions, over a connection of its own, that lives until it is closed. Raises NaruError.

        `port`: where on the service's host, if not where its calls go.
        """
        address = self._address if port is None else f"{self._address.rpartition(':')[0]}:{port}"
        stream = await open_stream(address, path, listener, name=self.name, metadata=self._metadata)
        self._streams = [other for other in self._streams if not other.is_over] + [stream]
        return stream

    async def _messages(self, call: Any) -> AsyncIterator[Any]:
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as failure:
            raise error_from_rpc(failure, self.name) from failure

    def _outgoing(self, on_behalf_of: Principal | None) -> Metadata:
        request = context.current_or_none()
        metadata: Metadata = self._metadata
        if request is not None:
            metadata = (*metadata, (REQUEST_ID_METADATA, request.request_id))
        if on_behalf_of is not None:
            metadata = (*metadata, (PRINCIPAL_METADATA, principal_to_proto(on_behalf_of).SerializeToString()))
            if request is not None and request.client_address:
                metadata = (*metadata, (CLIENT_ADDRESS_METADATA, request.client_address))
        return metadata

    async def close(self) -> None:
        """Closes the channel and its streams; calls in flight fail."""
        for stream in self._streams:
            stream.close()
        await self.channel.close()
