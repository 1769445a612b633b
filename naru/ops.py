"""The ops listener of a service: `/metrics`, `/healthz` (alive) and `/readyz` (fit to serve)."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from naru.metrics import Metrics


class OpsListener:
    """Serves them on a port of its own, which is not meant for the internet.

    Args:
        ready: Whether the service may be sent requests right now.
    """

    def __init__(self, metrics: Metrics, ready: Callable[[], bool]) -> None:
        self._metrics = metrics
        self._ready = ready
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port, which is a free one when `port` is 0. Raises OSError when it is taken."""
        app = web.Application()
        app.add_routes(
            [
                web.get("/metrics", self._serve_metrics),
                web.get("/healthz", self._serve_alive),
                web.get("/readyz", self._serve_ready),
            ]
        )
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        bound: int = self._runner.addresses[0][1]
        return bound

    async def close(self) -> None:
        """Stops listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve_metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _serve_alive(self, _request: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def _serve_ready(self, _request: web.Request) -> web.Response:
        ready = self._ready()
        return web.json_response({"status": "ready" if ready else "not ready"}, status=200 if ready else 503)
