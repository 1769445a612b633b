"""ModelService over gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import grpc

from inference import control_convert
from inference.adapters import Adapters
from inference.engine import ServedModel
from naru.api.inference.v1 import model_service_pb2, model_service_pb2_grpc
from naru.errors import NaruError, Reason, invalid_argument

_MAX_PAGE = 1000
Item = TypeVar("Item")


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Says which models are served, and loads and unloads adapters.

    Args:
        models: Asks the engine.
        adapters: Those that are loaded.
        session_port: Where edges may have their sessions.
    """

    def __init__(
        self, models: Callable[[], tuple[ServedModel, ...]], adapters: Adapters, session_port: Callable[[], int]
    ) -> None:
        self._models = models
        self._adapters = adapters
        self._session_port = session_port

    async def ListModels(
        self,
        request: model_service_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[model_service_pb2.ListModelsRequest, model_service_pb2.ListModelsResponse],
    ) -> model_service_pb2.ListModelsResponse:
        page, token = _page(self._models(), lambda model: model.name, request.page_size, request.page_token)
        return model_service_pb2.ListModelsResponse(
            models=map(control_convert.model_to_proto, page), next_page_token=token, session_port=self._session_port()
        )

    async def GetModel(
        self,
        request: model_service_pb2.GetModelRequest,
        context: grpc.aio.ServicerContext[model_service_pb2.GetModelRequest, model_service_pb2.GetModelResponse],
    ) -> model_service_pb2.GetModelResponse:
        for model in self._models():
            if model.name == request.name:
                return model_service_pb2.GetModelResponse(model=control_convert.model_to_proto(model))
        raise NaruError(
            Reason.MODEL_NOT_FOUND, f"There is no model {request.name!r}.", metadata={"model": request.name}
        )

    async def ListAdapters(
        self,
        request: model_service_pb2.ListAdaptersRequest,
        context: grpc.aio.ServicerContext[
            model_service_pb2.ListAdaptersRequest, model_service_pb2.ListAdaptersResponse
        ],
    ) -> model_service_pb2.ListAdaptersResponse:
        page, token = _page(
            self._adapters.loaded(), lambda loaded: loaded[0].name, request.page_size, request.page_token
        )
        adapters = [control_convert.adapter_to_proto(adapter, requests) for adapter, requests in page]
        return model_service_pb2.ListAdaptersResponse(adapters=adapters, next_page_token=token)

    async def LoadAdapter(
        self,
        request: model_service_pb2.LoadAdapterRequest,
        context: grpc.aio.ServicerContext[model_service_pb2.LoadAdapterRequest, model_service_pb2.LoadAdapterResponse],
    ) -> model_service_pb2.LoadAdapterResponse:
        adapter = await self._adapters.load(request.adapter.name, request.adapter.path)
        return model_service_pb2.LoadAdapterResponse(adapter=control_convert.adapter_to_proto(adapter))

    async def UnloadAdapter(
        self,
        request: model_service_pb2.UnloadAdapterRequest,
        context: grpc.aio.ServicerContext[
            model_service_pb2.UnloadAdapterRequest, model_service_pb2.UnloadAdapterResponse
        ],
    ) -> model_service_pb2.UnloadAdapterResponse:
        await self._adapters.unload(request.name, control_convert.wait_from_proto(request))
        return model_service_pb2.UnloadAdapterResponse()


def _page(
    items: Sequence[Item], name: Callable[[Item], str], page_size: int, page_token: str
) -> tuple[list[Item], str]:
    """A page, by name, and the token of the next one. Raises NaruError INVALID_ARGUMENT."""
    if page_size < 0:
        raise invalid_argument("page_size", "page_size must be at least 0.")
    size = min(page_size or _MAX_PAGE, _MAX_PAGE)
    # A token is the last name of the page before: names are unique, and a page stays right when models come and go.
    rest = [item for item in sorted(items, key=name) if name(item) > page_token]
    return rest[:size], name(rest[size - 1]) if len(rest) > size else ""
