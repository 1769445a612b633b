"""InferenceService over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import grpc

from inference import convert, pooling_convert, tokenization_convert
from inference.engine import ChoiceOutput
from inference.events import Accepted, Finished, GenerationOrder, Refused
from inference.session import Session, Sessions
from inference.session_stream import hear
from inference.tokenization import Tokenization
from naru.api.inference.v1 import (
    inference_service_pb2,
    inference_service_pb2_grpc,
    pooling_pb2,
    tokenization_pb2,
)
from naru.context import RequestContext, current
from naru.errors import NaruError, unavailable
from naru.interceptors import internal_error
from naru.revoked_requests import RevokedRequests
from naru.usage import Outcome

_ONLY_STREAM = 0


class InferenceServicer(inference_service_pb2_grpc.InferenceServiceServicer):
    """Generates text, makes vectors of texts, and tells tokens.

    Args:
        sessions: Where calls get their streams; Generate is a session with one stream.
        load: How busy the replica is.
        tokenization: Who knows tokens.
        revocations: Ends calls whose callers' own credentials stop working; None: they go on.
    """

    def __init__(
        self,
        sessions: Sessions,
        load: Callable[[], inference_service_pb2.Load],
        tokenization: Tokenization,
        revocations: RevokedRequests | None = None,
    ) -> None:
        self._revocations = revocations
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
            with self._watched(context, session):
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
        load = self._load()
        if load.draining or load.away:
            session.announce()
        try:
            while (batch := await session.take()) is not None:
                yield convert.session_response_to_proto(batch, self._load())
        finally:
            session.close()
            reader.cancel()

    async def Embed(
        self,
        request: pooling_pb2.EmbedRequest,
        context: grpc.aio.ServicerContext[pooling_pb2.EmbedRequest, pooling_pb2.EmbedResponse],
    ) -> pooling_pb2.EmbedResponse:
        order = pooling_convert.embed_order(request, current())
        return pooling_convert.embeddings_to_proto(order, *await self._pool(order, context))

    async def Score(
        self,
        request: pooling_pb2.ScoreRequest,
        context: grpc.aio.ServicerContext[pooling_pb2.ScoreRequest, pooling_pb2.ScoreResponse],
    ) -> pooling_pb2.ScoreResponse:
        order = pooling_convert.score_order(request, current())
        return pooling_convert.scores_to_proto(order, *await self._pool(order, context))

    async def _pool(
        self, order: GenerationOrder, context: grpc.aio.ServicerContext[Any, Any]
    ) -> tuple[str, list[ChoiceOutput], Finished]:
        """Runs a request to its end: the served model, the outputs by their choice, and the end. Raises NaruError."""
        session = self._sessions.open(_cancel_this_task())
        _close_with(context, session)
        model, outputs = "", {}
        try:
            with self._watched(context, session):
                session.submit(_ONLY_STREAM, order)
                session.end_when_idle()
                while (batch := await session.take()) is not None:
                    for _, event in batch:
                        match event:
                            case Accepted():
                                model = event.model
                            case ChoiceOutput():
                                outputs[event.choice_index] = event
                            case Refused():
                                raise event.error
                            case Finished(outcome=Outcome.COMPLETED):
                                return model, [outputs[choice] for choice in sorted(outputs)], event
                            case Finished():
                                raise event.error or unavailable("inference")
        finally:
            session.close()
        raise unavailable("inference")

    def _watched(self, context: grpc.aio.ServicerContext[Any, Any], session: Session) -> AbstractContextManager[None]:
        """Ends the session's stream when a caller's own credential stops working; the edge watches over its callers itself."""
        principal, credential = current().caller.principal, _credential_of(context)
        if self._revocations is None or principal is None or not credential:
            return nullcontext()
        return self._revocations.watched(credential, principal, lambda error: session.cancel(_ONLY_STREAM, error))

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


async def _read(
    requests: AsyncIterator[inference_service_pb2.GenerateSessionRequest], session: Session, context: RequestContext
) -> None:
    try:
        async for message in requests:
            hear(message, session, context)
    except NaruError as error:
        session.fail(error)
    except Exception as fault:  # noqa: BLE001 -- a session whose requests are not read any more must not stay open
        session.fail(internal_error(fault, context.method))
    else:
        session.finish()


def _cancel_this_task() -> Callable[[], object]:
    """Ends the call that this task serves; gRPC gives a handler no other way to end a call that it is writing to."""
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 -- a handler always runs in a task
    return task.cancel


def _credential_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """What the caller identified itself with; empty for services."""
    scheme, _, credential = str(dict(context.invocation_metadata() or ()).get("authorization", "")).partition(" ")
    return credential.strip() if scheme.lower() == "bearer" else ""


def _close_with(context: grpc.aio.ServicerContext[Any, Any], session: Session) -> None:
    """Closes the session with its call: gRPC leaves a generator that it was writing for to the garbage collector."""
    context.add_done_callback(lambda _: session.close())  # type: ignore[arg-type] # the stub asks for a class of its own
