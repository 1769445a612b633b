"""InferenceService and ModelService over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from inference import convert, tokenization_convert
from inference.engine import ServedModel
from inference.session import Session, Sessions
from inference.tokenization import Tokenization
from naru.api.inference.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenization_pb2,
)
from naru.context import RequestContext, current
from naru.errors import NaruError, Reason, invalid_argument
from naru.interceptors import internal_error

_ONLY_STREAM = 0
_MAX_PAGE = 1000


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Generates text, and tells tokens.

    Args:
        sessions: Where calls get their streams; Generate is a session with one stream.
        load: How busy the replica is.
        tokenization: Who knows tokens.
    """

    def __init__(
        self, sessions: Sessions, load: Callable[[], inference_service_pb2.Load], tokenization: Tokenization
    ) -> None:
        self._sessions = sessions
        self._load = load
        self._tokenization = tokenization

    async def Generate(
        self,
        request: inference_service_pb2.GenerateRequest,
        context: grpc.aio.ServicerContext[
            inference_service_pb2.GenerateRequest, inference_service_pb2.GenerateResponse
        ],
    ) -> AsyncIterator[inference_service_pb2.GenerateResponse]:
        order = convert.order_from_proto(request.generation, current())
        session = self._sessions.open(_cancel_this_task())
        _close_with(context, session)
        try:
            session.submit(_ONLY_STREAM, order)
            session.end_when_idle()
            while (batch := await session.take()) is not None:
                for _, event in batch:
                    yield convert.response_to_proto(event)
        finally:
            session.close()

    async def GenerateSession(
        self,
        request_iterator: AsyncIterator[inference_service_pb2.GenerateSessionRequest],
        context: grpc.aio.ServicerContext[
            inference_service_pb2.GenerateSessionRequest, inference_service_pb2.GenerateSessionResponse
        ],
    ) -> AsyncIterator[inference_service_pb2.GenerateSessionResponse]:
        session = self._sessions.open(_cancel_this_task())
        _close_with(context, session)
        reader = asyncio.create_task(_read(request_iterator, session, current()))
        try:
            while (batch := await session.take()) is not None:
                frames = [convert.frame_to_proto(stream_id, event) for stream_id, event in batch]
                yield inference_service_pb2.GenerateSessionResponse(frames=frames, load=self._load())
        finally:
            session.close()
            reader.cancel()

    async def Tokenize(
        self,
        request: tokenization_pb2.TokenizeRequest,
        context: grpc.aio.ServicerContext[tokenization_pb2.TokenizeRequest, tokenization_pb2.TokenizeResponse],
    ) -> tokenization_pb2.TokenizeResponse:
        asked, strings = tokenization_convert.request_from_proto(request)
        counted = tokenization_convert.counted_order(asked, current())
        tokens, context_tokens = await self._tokenization.tokenize(asked, counted, strings=strings)
        return tokenization_convert.tokens_to_proto(tokens, context_tokens)

    async def Detokenize(
        self,
        request: tokenization_pb2.DetokenizeRequest,
        context: grpc.aio.ServicerContext[tokenization_pb2.DetokenizeRequest, tokenization_pb2.DetokenizeResponse],
    ) -> tokenization_pb2.DetokenizeResponse:
        asked = tokenization_convert.token_ids_from_proto(request)
        counted = tokenization_convert.counted_order(asked, current())
        text = await self._tokenization.detokenize(asked.model, asked.token_ids, counted)
        return tokenization_pb2.DetokenizeResponse(text=text)


class ModelServicer(model_service_pb2_grpc.ModelServiceServicer):
    """Says which models are served.

    Args:
        models: Asks the engine.
    """

    def __init__(self, models: Callable[[], tuple[ServedModel, ...]]) -> None:
        self._models = models

    async def ListModels(
        self,
        request: model_service_pb2.ListModelsRequest,
        context: grpc.aio.ServicerContext[model_service_pb2.ListModelsRequest, model_service_pb2.ListModelsResponse],
    ) -> model_service_pb2.ListModelsResponse:
        if request.page_size < 0:
            raise invalid_argument("page_size", "page_size must be at least 0.")
        size = min(request.page_size or _MAX_PAGE, _MAX_PAGE)
        # A token is the last name of the page before: names are unique, and a page stays right when models come and go.
        models = sorted(self._models(), key=lambda model: model.name)
        rest = [model for model in models if model.name > request.page_token]
        return model_service_pb2.ListModelsResponse(
            models=[convert.model_to_proto(model) for model in rest[:size]],
            next_page_token=rest[size - 1].name if len(rest) > size else "",
        )

    async def GetModel(
        self,
        request: model_service_pb2.GetModelRequest,
        context: grpc.aio.ServicerContext[model_service_pb2.GetModelRequest, model_service_pb2.GetModelResponse],
    ) -> model_service_pb2.GetModelResponse:
        for model in self._models():
            if model.name == request.name:
                return model_service_pb2.GetModelResponse(model=convert.model_to_proto(model))
        raise NaruError(
            Reason.MODEL_NOT_FOUND, f"There is no model {request.name!r}.", metadata={"model": request.name}
        )


async def _read(
    requests: AsyncIterator[inference_service_pb2.GenerateSessionRequest], session: Session, context: RequestContext
) -> None:
    try:
        async for message in requests:
            match message.WhichOneof("message"):
                case "submit":
                    _submit(message.submit, session, context)
                case "cancel":
                    session.cancel(message.cancel.stream_id)
                case _:
                    raise invalid_argument("message", "One of submit and cancel must be set.")
    except NaruError as error:
        session.fail(error)
    except Exception as fault:  # noqa: BLE001 -- a session whose requests are not read any more must not stay open
        session.fail(internal_error(fault, context.method))
    else:
        session.finish()


def _submit(submit: inference_service_pb2.Submit, session: Session, context: RequestContext) -> None:
    try:
        order = convert.order_from_proto(submit.generation, context)
    except NaruError as error:
        session.refuse(submit.stream_id, error)
    else:
        session.submit(submit.stream_id, order)


def _cancel_this_task() -> Callable[[], object]:
    """Ends the call that this task serves; gRPC gives a handler no other way to end a call that it is writing to."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- a handler always runs in a task
    return task.cancel


def _close_with(context: grpc.aio.ServicerContext[Any, Any], session: Session) -> None:
    """Closes the session with its call: gRPC leaves a generator that it was writing for to the garbage collector."""
    context.add_done_callback(lambda _: session.close())  # type: ignore[arg-type] # the stub asks for a class of its own
