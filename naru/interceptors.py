"""What every RPC of every service goes through: who calls, may they, how long, and what an error becomes."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc_status import rpc_status

from naru import context, deadline, permissions
from naru.api.common.v1 import principal_pb2
from naru.clock import Clock
from naru.convert import principal_from_proto
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Caller, Principal, ServiceName, ServiceTokens
from naru.ids import new_request_id
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.status import GRPC_CODES, error_to_status

SERVICE_TOKEN_METADATA = "x-naru-service-token"  # noqa: S105 -- the name of a header, not a token
REQUEST_ID_METADATA = "x-request-id"
PRINCIPAL_METADATA = "naru-principal-bin"
"""A serialised `naru.api.common.v1.Principal`: whose call it is that the edge makes."""
CLIENT_ADDRESS_METADATA = "x-naru-client-address"
"""Where that principal's own request came from."""

Handler = Callable[[Any, Any], Any]
_log = get_logger(__name__)


class Authenticator(Protocol):
    """Resolves credentials of callers that are no service."""

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        """Who it is. Raises NaruError INVALID_API_KEY, or SERVICE_UNAVAILABLE when nobody can tell."""


class CallerAuthenticator:
    """Finds out who makes an RPC: a service by its token, anybody else by a credential."""

    def __init__(self, tokens: ServiceTokens, principals: Authenticator) -> None:
        self._tokens = tokens
        self._principals = principals

    async def identify(
        self, metadata: Mapping[str, str], peer: str, *, principal: str | bytes | None = None, method: str = ""
    ) -> Caller:
        """Who sent this metadata.

        Args:
            metadata: What came with the call, as text.
            peer: The other end, as gRPC names it.
            principal: Serialised, whose call a service says it makes; believed from the edge alone.
            method: The RPC, for the error.

        Raises NaruError CREDENTIALS_MISSING, INVALID_API_KEY, PERMISSION_DENIED when anybody but the edge calls for somebody
        else, or INVALID_ARGUMENT when the edge names nobody.
        """
        caller = await self._sender(metadata, peer)
        if principal is None:
            return caller
        if caller.service is not ServiceName.EDGE:
            raise NaruError(
                Reason.PERMISSION_DENIED,
                "You are not allowed to call on behalf of somebody else.",
                metadata={"method": method},
            )
        return Caller(principal=_principal(principal))

    async def _sender(self, metadata: Mapping[str, str], peer: str) -> Caller:
        token = metadata.get(SERVICE_TOKEN_METADATA)
        if token is not None:
            service = self._tokens.who(token)
            if service is None:
                raise NaruError(Reason.INVALID_API_KEY, "Unknown service token.")
            return Caller(service=service)
        scheme, _, credential = metadata.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not credential.strip():
            raise NaruError(
                Reason.CREDENTIALS_MISSING, "This call needs `authorization: Bearer <API key>` in its metadata."
            )
        return Caller(principal=await self._principals.authenticate(credential.strip(), address_of_peer(peer)))


def address_of_peer(peer: str) -> str:
    """The address in gRPC's `ipv4:127.0.0.1:1234` or `ipv6:%5B::1%5D:1234`; empty for other kinds of peers."""
    kind, _, rest = peer.partition(":")
    if kind == "ipv4":
        return rest.rpartition(":")[0]
    if kind == "ipv6":
        return rest.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")
    return ""


def _principal(serialised: str | bytes) -> Principal:
    message = principal_pb2.Principal()
    try:
        message.ParseFromString(serialised.encode() if isinstance(serialised, str) else serialised)
    except DecodeError:
        raise invalid_argument(PRINCIPAL_METADATA, f"{PRINCIPAL_METADATA} holds no principal.") from None
    if not message.workspace_id:
        raise invalid_argument(PRINCIPAL_METADATA, f"{PRINCIPAL_METADATA} names no workspace.")
    return principal_from_proto(message)


class Gate(grpc.aio.ServerInterceptor):
    """Wraps each handler: identify, permit, set context and deadline, run, turn errors into a status, count."""

    def __init__(self, callers: CallerAuthenticator, clock: Clock, metrics: Metrics) -> None:
        self._callers = callers
        self._clock = clock
        self._handled = metrics.counter("naru_rpc_total", "RPCs answered.", ("method", "code"))
        self._seconds = metrics.histogram("naru_rpc_seconds", "Time from an RPC's start to its end.", ("method",))

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Called by gRPC for each RPC."""
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(permissions.PUBLIC_PREFIX):
            return handler
        serializers = (handler.request_deserializer, handler.response_serializer)
        # The wrapper must be of the handler's own kind: gRPC runs anything but a coroutine function or an async generator in
        # a thread pool.
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler.unary_unary, method), *serializers)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, method), *serializers)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(self._stream(handler.stream_stream, method), *serializers)
        assert handler.stream_unary is not None  # noqa: S101 -- there are four kinds of handlers
        return grpc.stream_unary_rpc_method_handler(self._unary(handler.stream_unary, method), *serializers)

    def _unary(self, behaviour: Handler, method: str) -> Handler:
        async def run(request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> Any:
            async with self._around(method, call):
                return await behaviour(request, call)

        return run

    def _stream(self, behaviour: Handler, method: str) -> Handler:
        async def run(request: Any, call: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            async with self._around(method, call):
                responses = behaviour(request, call)
                try:
                    async for response in responses:
                        yield response
                finally:
                    # Leaving an async generator to the garbage collector would run its `finally` too late.
                    await responses.aclose()

        return run

    @asynccontextmanager
    async def _around(self, method: str, call: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[None]:
        started = self._clock.monotonic()
        code = grpc.StatusCode.OK
        try:
            received = dict(call.invocation_metadata() or ())
            metadata = {key: value for key, value in received.items() if isinstance(value, str)}
            principal = received.get(PRINCIPAL_METADATA)
            caller = await self._callers.identify(metadata, call.peer(), principal=principal, method=method)
            permissions.check(caller, method)
            given = metadata.get(REQUEST_ID_METADATA, "")
            request = context.RequestContext(
                request_id=given if context.is_request_id(given) else new_request_id(),
                caller=caller,
                method=method,
                traceparent=metadata.get("traceparent", ""),
                # Who may name a principal was checked, and is believed about its address too.
                client_address=metadata.get(CLIENT_ADDRESS_METADATA, "") if principal else address_of_peer(call.peer()),
            )
            # Never undone: gRPC gives each RPC a task, and so a context, of its own.
            context.enter(request)
            deadline.enter(call.time_remaining())
            yield
        except NaruError as error:
            code = GRPC_CODES[error.reason]
            await _refuse(call, error)
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            # Cancelled by ourselves, perhaps while gRPC was writing: it would leave the caller waiting for ever.
            if not call.done():
                with contextlib.suppress(grpc.aio.AbortError):
                    await call.abort(grpc.StatusCode.UNAVAILABLE, "The server ended this call.")
            raise
        except Exception as cause:  # noqa: BLE001 -- whatever it is, the caller gets a fixed text and the log gets the cause
            code = grpc.StatusCode.INTERNAL
            await _refuse(call, internal_error(cause, method))
        finally:
            self._handled.labels(method, code.name).inc()
            self._seconds.labels(method).observe(self._clock.monotonic() - started)


async def _refuse(call: grpc.aio.ServicerContext[Any, Any], error: NaruError) -> NoReturn:
    # The call's span hears of these two alone: OpenTelemetry's wrapper has no `abort_with_status`, which takes their place.
    call.set_code(GRPC_CODES[error.reason])
    call.set_details(error.message)
    await call.abort_with_status(rpc_status.to_status(error_to_status(error)))


def internal_error(cause: BaseException, where: str) -> NaruError:
    """Logs `cause` under a fresh incident id and returns the error that names only that id."""
    incident = os.urandom(6).hex()
    _log.error("unexpected exception", incident=incident, where=where, exc_info=cause)
    return NaruError(
        Reason.INTERNAL,
        f"Something went wrong on our side. Please quote incident {incident}.",
        metadata={"incident": incident},
    )
