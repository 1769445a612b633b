"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from edge.anthropic import models as anthropic_models
from edge.gateway import Gateway, check_endpoint
from edge.openai import models as openai_models
from edge.routes.access import Access

ENDPOINT = "/v1/models"
ANTHROPIC_HEADER = "Anthropic-Version"
"""By this header a client of Anthropic's API is known where OpenAI's has the same path."""


class ModelRoutes:
    """Lists the models that the caller may use."""

    def __init__(self, access: Access, gateway: Gateway) -> None:
        self._access = access
        self._gateway = gateway

    async def list_models(self, request: web.Request) -> web.Response:
        """All of them."""
        principal = await self._access.authenticate(request)
        check_endpoint(principal, ENDPOINT)
        models = self._gateway.models(principal)
        anthropic = ANTHROPIC_HEADER in request.headers
        body = anthropic_models.models_answer(models) if anthropic else openai_models.models_answer(models)
        return web.Response(body=body, content_type="application/json")

    async def get_model(self, request: web.Request) -> web.Response:
        """One of them."""
        principal = await self._access.authenticate(request)
        check_endpoint(principal, ENDPOINT)
        model = self._gateway.model(principal, request.match_info["model"])
        anthropic = ANTHROPIC_HEADER in request.headers
        body = anthropic_models.model_answer(model) if anthropic else openai_models.model_answer(model)
        return web.Response(body=body, content_type="application/json")
