"""Which path is answered by what: the one table of routes, and of the other names they answer to."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from edge.routes.chat import CHAT
from edge.routes.completions import COMPLETIONS
from edge.routes.docs import DocsRoutes
from edge.routes.export import EXPORTS, ExportRoutes
from edge.routes.generating import GeneratingRoute, Shape
from edge.routes.health import HealthRoutes
from edge.routes.models import ENDPOINT as MODELS_ENDPOINT
from edge.routes.models import ModelRoutes
from edge.routes.platform import ROWS, PlatformRoutes

ALIASES = {
    "/chat/completions": CHAT.endpoint.value,
    "/chat/stream": CHAT.endpoint.value,
    "/api/chat": CHAT.endpoint.value,
    "/api/chat/completions": CHAT.endpoint.value,
    "/api/models": MODELS_ENDPOINT,
    "/admin/api/usage": "/api/admin/usage",
}
"""The names that earlier gateways gave to routes, and the route that answers."""
STREAMING_ALIASES = frozenset({"/chat/stream", "/api/chat"})
"""Those that stream unless the body says not to."""
_MODEL = "/v1/models/{model:.+}"
QUIET = frozenset({"/health", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"})
"""Routes that are no API."""


def add_routes(
    app: web.Application,
    *,
    generating: Callable[[Shape], GeneratingRoute],
    models: ModelRoutes,
    platform: PlatformRoutes,
    exports: ExportRoutes,
    health: HealthRoutes,
    metrics_public: bool,
) -> None:
    """Adds all routes. `generating` makes the route of an endpoint that generates."""
    router, docs, chat = app.router, DocsRoutes(ALIASES, ROWS), generating(CHAT)
    router.add_post(CHAT.endpoint, chat.answer)
    router.add_post(COMPLETIONS.endpoint, generating(COMPLETIONS).answer)
    router.add_get(MODELS_ENDPOINT, models.list_models)
    router.add_get(_MODEL, models.get_model)
    for alias, canonical in ALIASES.items():
        if canonical == MODELS_ENDPOINT:
            router.add_get(alias, models.list_models)
        elif canonical == CHAT.endpoint:
            router.add_post(alias, chat.answer_streaming if alias in STREAMING_ALIASES else chat.answer)
    for row in ROWS:
        for path in (row.path, *(alias for alias, canonical in ALIASES.items() if canonical == row.path)):
            router.add_route(row.method, path, platform.handler(row))
    for export in EXPORTS:
        router.add_get(export.path, exports.handler(export))
    router.add_get("/health", health.health)
    router.add_get("/healthz", health.alive)
    router.add_get("/readyz", health.ready)
    if metrics_public:
        router.add_get("/metrics", health.metrics)
    router.add_get("/openapi.json", docs.openapi)
    router.add_get("/docs", docs.docs)
