"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from aiohttp import web

from edge.gateway import Gateway, check_endpoint
from edge.openai.models import model_answer, models_answer
from edge.routes.access import Access

ENDPOINT = "/v1/models"


class ModelRoutes:
    """Lists the models that the caller may use."""

    def __init__(self, access: Access, gateway: Gateway) -> None:
        self._access = access
        self._gateway = gateway

    async def list_models(self, request: web.Request) -> web.Response:
        """All of them."""
        principal = await self._access.authenticate(request)
        check_endpoint(principal, ENDPOINT)
        return web.Response(body=models_answer(self._gateway.models(principal)), content_type="application/json")

    async def get_model(self, request: web.Request) -> web.Response:
        """One of them."""
        principal = await self._access.authenticate(request)
        check_endpoint(principal, ENDPOINT)
        model = self._gateway.model(principal, request.match_info["model"])
        return web.Response(body=model_answer(model), content_type="application/json")
