"""An inference service without an engine: follows the proto, does what a test tells it, records what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from naru.api.common.v1 import error_pb2, usage_pb2
from naru.api.inference.v1 import (
    generation_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenization_pb2,
)
from naru.convert import error_to_proto, timestamp_to_proto
from naru.errors import NaruError
from naru.identity import ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from tests.support.service_tokens import NobodyKnown

Event = generation_pb2.Accepted | generation_pb2.Refused | generation_pb2.Delta | generation_pb2.Finished
Behaviour = Callable[[generation_pb2.Generation], AsyncIterator[Sequence[Event]]]
MODEL = "test-model"


def accepted(prompt_tokens: int = 7, choices: int = 1) -> generation_pb2.Accepted:
    """The first answer."""
    return generation_pb2.Accepted(
        model=MODEL, prompt_tokens=prompt_tokens, choices=choices, accept_time=timestamp_to_proto(1_800_000_000.5)
    )


def delta(text: str, tokens: int, *, choice: int = 0, finish: str = "", **more: Any) -> generation_pb2.Delta:
    """More text of a choice."""
    return generation_pb2.Delta(
        choice_index=choice,
        text=text,
        completion_tokens=tokens,
        finish_reason=finish,
        detailed=bool(finish or more),
        **more,
    )


def finished(
    prompt_tokens: int = 7,
    completion_tokens: int = 3,
    outcome: generation_pb2.FinishOutcome.ValueType = generation_pb2.FINISH_OUTCOME_COMPLETED,
    error: error_pb2.Error | None = None,
) -> generation_pb2.Finished:
    """The last answer."""
    usage = usage_pb2.Usage(
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, cached_prompt_tokens=4, reasoning_tokens=1
    )
    return generation_pb2.Finished(outcome=outcome, usage=usage, error=error)


def refused(error: NaruError, prompt_tokens: int | None = None) -> generation_pb2.Refused:
    """The only answer."""
    return generation_pb2.Refused(error=error_to_proto(error), prompt_tokens=prompt_tokens)


async def capital_of_france(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
    """Answers in three tokens, whatever the question."""
    yield [accepted()]
    yield [delta("Paris", 1)]
    yield [delta(" it", 2), delta(" is.", 3, finish="stop")]
    yield [finished()]


class FakeInference:
    """The service. Set `behave` to what the next requests do.

    Attributes:
        submitted: The generations that came, in order.
        cancelled: Event ids of those that were cancelled.
        large: Event ids of those that came by `Generate`.
        models: Names of what it serves.
        tokenized: Questions about tokens that came, in order.
        session_port: Where it says that sessions are served too.
        tokenizing: What to answer them with instead of two tokens.
    """

    def __init__(self) -> None:
        self.behave: Behaviour = capital_of_france
        self.submitted: list[generation_pb2.Generation] = []
        self.cancelled: list[str] = []
        self.large: list[str] = []
        self.models = [MODEL]
        self.tokenized: list[tokenization_pb2.TokenizeRequest | tokenization_pb2.DetokenizeRequest] = []
        self.tokenizing: NaruError | None = None
        self.sessions = 0
        self.draining = False
        self.port = self.session_port = 0
        self._server: GrpcServer | None = None

    async def start(self, tokens: dict[ServiceName, str], port: int = 0) -> None:
        """Listens."""
        callers = CallerAuthenticator(ServiceTokens(tokens), NobodyKnown())
        self._server = GrpcServer(callers, metrics=Metrics())
        self._server.add(
            inference_service_pb2_grpc.add_InferenceServiceServicer_to_server, _Inference(self), "inference"
        )
        self._server.add(model_service_pb2_grpc.add_ModelServiceServicer_to_server, _Models(self), "models")
        self.port = await self._server.start("127.0.0.1", port)
        await self._server.set_serving(True)

    async def kill(self) -> None:
        """Goes away without a word."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)


class _Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self, fake: FakeInference) -> None:
        self._fake = fake

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[inference_service_pb2.GenerateResponse]:
        self._fake.submitted.append(request.generation)
        self._fake.large.append(request.generation.event_id)
        try:
            async for events in self._fake.behave(request.generation):
                for event in events:
                    yield inference_service_pb2.GenerateResponse(**{_field(event): event})
        except asyncio.CancelledError:
            self._fake.cancelled.append(request.generation.event_id)
            raise

    async def GenerateSession(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
        self._fake.sessions += 1
        out: asyncio.Queue[inference_service_pb2.GenerateSessionResponse] = asyncio.Queue()
        reading = asyncio.create_task(self._read(request_iterator, out))
        try:
            out.put_nowait(self._load())
            while True:
                yield await out.get()
        finally:
            reading.cancel()

    async def Tokenize(self, request: Any, context: Any) -> tokenization_pb2.TokenizeResponse:
        self._question(request)
        asked = b"return_token_strs" in request.json
        strings = ["Hello", "there"] if asked else []
        return tokenization_pb2.TokenizeResponse(token_ids=[0, 1], token_strings=strings, context_tokens=2048)

    async def Detokenize(self, request: Any, context: Any) -> tokenization_pb2.DetokenizeResponse:
        self._question(request)
        return tokenization_pb2.DetokenizeResponse(text=" ".join(map(str, request.token_ids)))

    def _question(self, request: Any) -> None:
        self._fake.tokenized.append(request)
        if self._fake.tokenizing is not None:
            raise self._fake.tokenizing

    async def _read(self, requests: Any, out: asyncio.Queue[Any]) -> None:
        tasks: dict[int, asyncio.Task[None]] = {}
        try:
            async for request in requests:
                for cancel in request.cancels:
                    if cancel.stream_id in tasks:
                        tasks.pop(cancel.stream_id).cancel()
                for submit in request.submits:
                    self._fake.submitted.append(submit.generation)
                    tasks[submit.stream_id] = asyncio.create_task(self._run(submit, out))
        finally:
            for task in tasks.values():
                task.cancel()

    async def _run(self, submit: Any, out: asyncio.Queue[Any]) -> None:
        try:
            async for events in self._fake.behave(submit.generation):
                out.put_nowait(self._response(submit.stream_id, events))
        except asyncio.CancelledError:
            self._fake.cancelled.append(submit.generation.event_id)
            aborted = finished(outcome=generation_pb2.FINISH_OUTCOME_ABORTED)
            out.put_nowait(self._response(submit.stream_id, [aborted]))
            raise

    def _response(self, stream_id: int, events: Sequence[Event]) -> inference_service_pb2.GenerateSessionResponse:
        response = self._load()
        response.frames.extend(
            inference_service_pb2.Frame(stream_id=stream_id, **{_field(event): event}) for event in events
        )
        return response

    def _load(self) -> inference_service_pb2.GenerateSessionResponse:
        load = inference_service_pb2.Load(requests=0, draining=self._fake.draining)
        return inference_service_pb2.GenerateSessionResponse(load=load)


class _Models(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, fake: FakeInference) -> None:
        self._fake = fake

    async def ListModels(self, request: Any, context: Any) -> model_service_pb2.ListModelsResponse:
        return model_service_pb2.ListModelsResponse(
            models=[
                model_service_pb2.Model(
                    name=name, owned_by="naru", create_time=timestamp_to_proto(1_800_000_000), context_tokens=2048
                )
                for name in self._fake.models
            ],
            session_port=self._fake.session_port,
        )


def _field(event: Event) -> str:
    return event.DESCRIPTOR.name.lower()
