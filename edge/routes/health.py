"""/health, /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from naru.metrics import Metrics


class HealthRoutes:
    """Tells how the edge and the services behind it are.

    Args:
        ready: Whether the edge itself takes requests.
        dependencies: "ok" or something else, by name of the service or replica.
    """

    def __init__(
        self,
        ready: Callable[[], bool],
        dependencies: Callable[[], Awaitable[Mapping[str, str]]],
        metrics: Metrics,
    ) -> None:
        self._ready = ready
        self._dependencies = dependencies
        self._metrics = metrics

    async def health(self, _request: web.Request) -> web.Response:
        """The state of each dependency; 503 unless all are ok."""
        states = await self._dependencies()
        healthy = self._ready() and all(state == "ok" for state in states.values())
        body = {"status": "ok" if healthy else "degraded", "dependencies": dict(states)}
        return web.json_response(body, status=200 if healthy else 503)

    async def alive(self, _request: web.Request) -> web.Response:
        """Whether the process answers."""
        return web.json_response({"status": "alive"})

    async def ready(self, _request: web.Request) -> web.Response:
        """Whether the edge takes requests; 503 while it stops."""
        ready = self._ready()
        return web.json_response({"status": "ready" if ready else "stopping"}, status=200 if ready else 503)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Prometheus's text format."""
        return web.Response(body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})
