"""The gRPC server that every service builds: health, reflection, the gate, limits, and one order of stopping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from naru.clock import Clock, SystemClock
from naru.interceptors import CallerAuthenticator, Gate
from naru.metrics import Metrics
from naru.tracing import Tracing

MAX_MESSAGE_BYTES = 8 << 20
"""Bodies are at most 4 MiB at the edge by default, session messages too; the rest is room for what travels beside them."""

TRANSPORT_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # Both sides ping every 20 seconds and give up after 10: a peer that vanished is noticed, and no side calls the other's
    # pings abuse.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
)


class GrpcServer:
    """A server with the standard health service; add servicers, start, then say when it is serving.

    Args:
        callers: Who may call, and who they are.
        reflection_enabled: Whether the shape of the API can be asked for (by callers with a credential).
    """

    def __init__(
        self,
        callers: CallerAuthenticator,
        *,
        metrics: Metrics,
        tracing: Tracing | None = None,
        clock: Clock | None = None,
        reflection_enabled: bool = False,
    ) -> None:
        gate = Gate(callers, clock or SystemClock(), metrics)
        self._server = grpc.aio.server(
            interceptors=[*(tracing or Tracing()).server_interceptors(), gate],
            options=[*TRANSPORT_OPTIONS, ("grpc.so_reuseport", 0)],
        )
        self._health = health.aio.HealthServicer()
        self._reflection = reflection_enabled
        self._names: list[str] = []
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.serving = False

    def add(self, add_to_server: Callable[[Any, Any], None], servicer: object, name: str) -> None:
        """Adds a servicer by its generated `add_..._to_server` function. Raises ValueError for a second one of a name."""
        if name in self._names:
            raise ValueError(f"{name} was added twice")
        add_to_server(servicer, self._server)
        self._names.append(name)

    async def start(self, host: str, port: int) -> int:
        """Listens, NOT_SERVING yet; returns the port, a free one when `port` is 0. Raises OSError when it is taken."""
        await self.set_serving(False)
        if self._reflection:
            names = (*self._names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        try:
            # gRPC would read the colons of a bare IPv6 address as the one before a port.
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError as error:
            raise OSError(f"cannot listen on {host}:{port}: {error}") from error
        await self._server.start()
        return bound

    async def set_serving(self, serving: bool) -> None:
        """Says whether requests are welcome, for the server as a whole and for each service."""
        self.serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *self._names):
            await self._health.set(name, status)

    async def stop(self, grace: float) -> None:
        """Turns health off, refuses new RPCs, lets running ones end within `grace` seconds, then cancels them."""
        self.serving = False
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)
