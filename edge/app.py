"""Wires the edge together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from aiohttp import web

from edge.backend import Backend, connect
from edge.config import EdgeConfig
from edge.drain import Drain
from edge.listener import Listener
from edge.metrics import EdgeMetrics
from edge.middleware import Middleware, WebPolicy
from edge.routes.access import Access
from edge.routes.export import ExportRoutes
from edge.routes.generating import GeneratingRoute, Shape, Slots
from edge.routes.health import HealthRoutes
from edge.routes.jwks import JwksRoutes
from edge.routes.models import ModelRoutes
from edge.routes.platform import PlatformRoutes
from edge.routes.table import ALIASES, QUIET, add_routes, dialect_of
from edge.routes.tokenizing import TokenizingRoutes
from naru.addresses import TrustedProxies
from naru.clock import SystemClock
from naru.lifecycle import Lifecycle, Running
from naru.metrics import Metrics
from naru.ops import OpsListener
from naru.tracing import Tracing

_LAST_WORDS_SECONDS = 2.0


@asynccontextmanager
async def running(config: EdgeConfig, lifecycle: Lifecycle) -> AsyncIterator[Running]:
    """Serves inside the block, and unwinds in reverse order after it.

    Raises:
        ConfigError: The configuration or the service tokens do not fit.
        OSError: A port is taken.
    """
    metrics = Metrics()
    edge_metrics = EdgeMetrics(metrics)
    tracing = Tracing.from_environment(config.SERVICE)
    async with AsyncExitStack() as stack:
        stack.callback(tracing.close)
        backend = connect(config, lifecycle.background, edge_metrics, tracing, stack)
        drain = Drain(lifecycle.stopping)
        ops = OpsListener(metrics, drain.ready)
        stack.push_async_callback(ops.close)
        ops_port = await ops.start(config.ops_host, config.ops_port)
        middleware = _middleware(config, backend, edge_metrics, tracing)
        app = web.Application(middlewares=[drain.count, middleware.observe], client_max_size=config.max_body_bytes)
        app.on_response_prepare.append(middleware.add_headers)
        app.on_response_prepare.append(drain.close_connection)
        _add_routes(app, config, backend, edge_metrics, HealthRoutes(drain.ready, backend.dependencies, metrics))
        listener = Listener(
            app,
            max_header_bytes=config.max_header_bytes,
            stall_seconds=config.stream_stall_seconds,
            shutdown_timeout=_LAST_WORDS_SECONDS,
        )
        stack.push_async_callback(listener.cleanup)
        await listener.setup()
        site = web.TCPSite(listener, config.host, config.port, reuse_port=config.reuse_port or None, backlog=1024)
        await site.start()
        stack.push_async_callback(drain.finish, backend.gateway.interrupt_all, config.shutdown_grace)
        stack.push_async_callback(site.stop)
        stack.callback(lifecycle.stop)
        yield Running(listener.addresses[0][1], ops_port)


def _middleware(config: EdgeConfig, backend: Backend, metrics: EdgeMetrics, tracing: Tracing) -> Middleware:
    return Middleware(
        policy=WebPolicy(
            trusted_hosts=config.trusted_hosts,
            cors_origins=config.cors_origins,
            cookie_origins=config.cookie_origins,
            proxies=TrustedProxies(config.trusted_proxies),
            endpoints=ALIASES,
            quiet=QUIET,
            dialect=dialect_of,
        ),
        clock=SystemClock(),
        metrics=metrics,
        tracing=tracing,
        request_log=backend.usage.requests,
    )


def _add_routes(
    app: web.Application, config: EdgeConfig, backend: Backend, metrics: EdgeMetrics, health: HealthRoutes
) -> None:
    clock, gateway, slots = SystemClock(), backend.gateway, Slots(config.max_concurrent_requests)
    access = Access(
        gateway,
        clock,
        attribution=backend.attribution,
        cookie_origins=config.cookie_origins,
        max_body_bytes=config.max_body_bytes,
        body_timeout=config.body_timeout,
    )

    def generating(shape: Shape) -> GeneratingRoute:
        return GeneratingRoute(shape, access=access, gateway=gateway, slots=slots, clock=clock, metrics=metrics)

    add_routes(
        app,
        generating=generating,
        models=ModelRoutes(access, gateway),
        tokenizing=TokenizingRoutes(access, backend.tokenization, slots),
        platform=PlatformRoutes(access, backend.rpcs, backend.replica_rpcs, clock),
        exports=ExportRoutes(access, backend.rpcs, clock),
        jwks=JwksRoutes(backend.rpcs, clock),
        health=health,
        metrics_public=config.metrics_public,
    )
