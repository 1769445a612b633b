"""Which path is answered by what: the one table of routes, and of the other names they answer to."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from edge.anthropic.dialect import ANTHROPIC
from edge.dialect import OPENAI, Dialect
from edge.responses.dialect import RESPONSES_DIALECT
from edge.routes.chat import CHAT
from edge.routes.completions import COMPLETIONS
from edge.routes.docs import DocsRoutes
from edge.routes.export import EXPORTS, ExportRoutes
from edge.routes.generating import GeneratingRoute, Shape
from edge.routes.health import HealthRoutes
from edge.routes.identity import IDENTITY_ROWS, LOGIN
from edge.routes.jwks import PATH as JWKS
from edge.routes.jwks import JwksRoutes
from edge.routes.keys import KEY_ROWS
from edge.routes.messages import MESSAGES
from edge.routes.models import ANTHROPIC_HEADER, ModelRoutes
from edge.routes.models import ENDPOINT as MODELS_ENDPOINT
from edge.routes.platform import ROWS, PlatformRoutes
from edge.routes.pooling import EMBEDDINGS, RERANK, SCORE
from edge.routes.replicas import REPLICA_ROWS
from edge.routes.responses import RESPONSES
from edge.routes.tokenizing import COUNT_TOKENS, DETOKENIZE, TOKENIZE, TokenizingRoutes

ALIASES = {
    "/chat/completions": CHAT.endpoint.value,
    "/chat/stream": CHAT.endpoint.value,
    "/api/chat": CHAT.endpoint.value,
    "/api/chat/completions": CHAT.endpoint.value,
    "/api/models": MODELS_ENDPOINT,
    "/admin/api/login": LOGIN,
    "/admin/api/keys": "/api/keys",
    "/admin/api/usage": "/api/admin/usage",
    "/rerank": RERANK.endpoint.value,
    "/v2/rerank": RERANK.endpoint.value,
    "/score": SCORE.endpoint.value,
}
"""The names that earlier gateways and vLLM's server gave to routes, and the route that answers."""
STREAMING_ALIASES = frozenset({"/chat/stream", "/api/chat"})
"""Those that stream unless the body says not to."""
ALL_ROWS = (*ROWS, *KEY_ROWS, *IDENTITY_ROWS, *REPLICA_ROWS)
"""The platform's own routes."""
_MODEL = "/v1/models/{model:.+}"
QUIET = frozenset({"/health", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", JWKS})
"""Routes that are no API."""


def dialect_of(request: web.Request) -> Dialect:
    """Which API's client makes a request, also one for a path that there is not."""
    path = request.path
    if path.startswith(RESPONSES.endpoint):
        return RESPONSES_DIALECT
    models = path.startswith(MODELS_ENDPOINT) and ANTHROPIC_HEADER in request.headers
    return ANTHROPIC if models or path.startswith(MESSAGES.endpoint) else OPENAI


def add_routes(
    app: web.Application,
    *,
    generating: Callable[[Shape], GeneratingRoute],
    models: ModelRoutes,
    tokenizing: TokenizingRoutes,
    platform: PlatformRoutes,
    exports: ExportRoutes,
    jwks: JwksRoutes,
    health: HealthRoutes,
    metrics_public: bool,
) -> None:
    """Adds all routes. `generating` makes the route of an endpoint that generates."""
    router, docs, chat = app.router, DocsRoutes(ALIASES, ALL_ROWS), generating(CHAT)
    router.add_post(CHAT.endpoint, chat.answer)
    for shape in (COMPLETIONS, MESSAGES, RESPONSES, EMBEDDINGS, RERANK, SCORE):
        answer = generating(shape).answer
        for path in (shape.endpoint.value, *_aliases(shape.endpoint.value)):
            router.add_post(path, answer)
    router.add_post(TOKENIZE, tokenizing.tokenize)
    router.add_post(DETOKENIZE, tokenizing.detokenize)
    router.add_post(COUNT_TOKENS, tokenizing.count_tokens)
    router.add_get(MODELS_ENDPOINT, models.list_models)
    router.add_get(_MODEL, models.get_model)
    for alias, canonical in ALIASES.items():
        if canonical == MODELS_ENDPOINT:
            router.add_get(alias, models.list_models)
        elif canonical == CHAT.endpoint:
            router.add_post(alias, chat.answer_streaming if alias in STREAMING_ALIASES else chat.answer)
    for row in ALL_ROWS:
        for path in (row.path, *_aliases(row.path)):
            router.add_route(row.method, path, platform.handler(row))
    for export in EXPORTS:
        router.add_get(export.path, exports.handler(export))
    router.add_get(JWKS, jwks.keys)
    router.add_get("/health", health.health)
    router.add_get("/healthz", health.alive)
    router.add_get("/readyz", health.ready)
    if metrics_public:
        router.add_get("/metrics", health.metrics)
    router.add_get("/openapi.json", docs.openapi)
    router.add_get("/docs", docs.docs)


def _aliases(path: str) -> list[str]:
    return [alias for alias, canonical in ALIASES.items() if canonical == path]
