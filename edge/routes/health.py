"""/health, /healthz, /readyz and /metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from aiohttp import web

from naru.metrics import Metrics


class HealthRoutes:
    """Tells how the edge and the services behind it are.

    Args:
        ready: Whether the edge itself takes requests.
        dependencies: "ok" or something else, by name of the service, with the address after it where there are several.
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
        """The state of each dependency; 503 when a service is away: one replica of several is enough."""
        states = await self._dependencies()
        healthy = [name for name, state in states.items() if state == "ok"]
        serving = self._ready() and _services(healthy) == _services(states)
        body = {"status": "ok" if serving and len(healthy) == len(states) else "degraded", "dependencies": dict(states)}
        return web.json_response(body, status=200 if serving else 503)

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


def _services(names: Iterable[str]) -> set[str]:
    return {name.split()[0] for name in names}
