"""A running inference service and the ways into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc

from inference.app import running
from inference.config import InferenceConfig
from inference.engine import Engine
from naru.api.accounting.v1 import usage_event_pb2
from naru.api.inference.v1 import (
    generation_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from naru.client import ServiceClient
from naru.convert import duration_to_proto, principal_to_proto
from naru.errors import NaruError, Reason
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.lifecycle import Lifecycle
from naru.message_stream import MessageStream
from naru.status import GRPC_CODES
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers, write_service_tokens

SESSION = "/naru.api.inference.v1.InferenceService/GenerateSession"
Frames = list[inference_service_pb2.Frame]


def generation(number: int = 1, *, reserved: int = 100, **fields: Any) -> generation_pb2.Generation:
    """What the edge submits."""
    made = generation_pb2.Generation(
        event_id=f"0198c7c2-8d6f-7c39-a1f5-{number:012d}",
        principal=principal_to_proto(Principal(key_id="abcdefghijkl", workspace_id="ws-1")),
        reserved_prompt_tokens=reserved,
        request_id=f"req_{number}",
        stream=True,
        text=generation_pb2.TextInput(text="hello"),
    )
    made.MergeFrom(generation_pb2.Generation(**fields))
    return made


def submit(stream_id: int, of: generation_pb2.Generation) -> inference_service_pb2.GenerateSessionRequest:
    """Begins a stream."""
    return inference_service_pb2.GenerateSessionRequest(
        submits=[inference_service_pb2.Submit(stream_id=stream_id, generation=of)]
    )


def cancel(stream_id: int) -> inference_service_pb2.GenerateSessionRequest:
    """Ends a stream."""
    return inference_service_pb2.GenerateSessionRequest(cancels=[inference_service_pb2.Cancel(stream_id=stream_id)])


def frames_of(message: inference_service_pb2.GenerateSessionResponse) -> Frames:
    """All that a message says, plain deltas as frames too."""
    plain = message.plain_deltas
    columns = zip(plain.stream_ids, plain.texts, plain.completion_tokens, strict=True)
    return [
        *(
            inference_service_pb2.Frame(
                stream_id=stream_id, delta=generation_pb2.Delta(text=text, completion_tokens=completion_tokens)
            )
            for stream_id, text, completion_tokens in columns
        ),
        *message.frames,
    ]


class EdgeSession:
    """One session, as the edge holds it."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.messages: list[inference_service_pb2.GenerateSessionResponse] = []

    async def send(self, *requests: inference_service_pb2.GenerateSessionRequest) -> None:
        """Writes, one at a time."""
        for request in requests:
            await self.call.write(request)

    async def read(self) -> inference_service_pb2.GenerateSessionResponse | None:
        """The next message; None when the session is over."""
        async with asyncio.timeout(10):
            message = await self.call.read()
        if not isinstance(message, inference_service_pb2.GenerateSessionResponse):
            return None
        self.messages.append(message)
        return message

    async def read_until(self, condition: Callable[[Frames], bool]) -> Frames:
        """Reads until the frames heard so far are enough."""
        while not condition(self.frames()):
            assert await self.read() is not None, "the session ended early"
        return self.frames()

    def frames(self, stream_id: int | None = None) -> Frames:
        """What was heard so far, of one stream or of all."""
        return [
            frame
            for message in self.messages
            for frame in frames_of(message)
            if stream_id is None or frame.stream_id == stream_id
        ]


class StreamCall:
    """A session at the port that is for sessions alone, with the methods of gRPC's own calls. Implements `Listener`."""

    def __init__(self) -> None:
        self.stream: MessageStream
        self._heard: asyncio.Queue[bytes | NaruError] = asyncio.Queue()

    async def write(self, request: inference_service_pb2.GenerateSessionRequest) -> None:
        self.stream.write(request.SerializeToString())

    async def read(self) -> Any:
        """The next message, or gRPC's EOF where the session ended. Raises what it failed with, as gRPC does."""
        heard = await self._heard.get()
        if isinstance(heard, bytes):
            return inference_service_pb2.GenerateSessionResponse.FromString(heard)
        if heard.reason is Reason.SERVICE_UNAVAILABLE:
            return grpc.aio.EOF
        raise grpc.aio.AioRpcError(GRPC_CODES[heard.reason], grpc.aio.Metadata(), grpc.aio.Metadata(), heard.message)

    def message(self, message: bytes) -> None:
        self._heard.put_nowait(message)

    def ready(self) -> None:
        pass

    def ended(self, error: NaruError) -> None:
        self._heard.put_nowait(error)


class InferenceService:
    """A service that is up, with recording peers."""

    def __init__(
        self,
        port: int,
        lifecycle: Lifecycle,
        tokens: ServiceTokens,
        accounting: RecordingAccounting,
        keys: KeyRing,
        peers_address: str,
    ) -> None:
        self.port = port
        self.peers_address = peers_address
        self.lifecycle = lifecycle
        self.accounting = accounting
        self.keys = keys
        self._tokens = tokens

    @property
    def events(self) -> list[usage_event_pb2.UsageEvent]:
        """What accounting was told."""
        return self.accounting.events

    def token(self, service: ServiceName) -> str:
        """What a service names itself by."""
        return self._tokens.of(service)

    def new_key(self, **fields: Any) -> tuple[str, Principal]:
        """A key and its owner."""
        made: list[Principal] = []

        def make(key_id: str) -> Principal:
            made.append(Principal(**{"workspace_id": "ws-of-key", "key_id": key_id, **fields}))
            return made[0]

        return self.keys.new_key(make), made[0]

    @asynccontextmanager
    async def client(
        self, *, key: str | None = None, service: ServiceName | None = None
    ) -> AsyncIterator[ServiceClient]:
        """A client with a key, as a service, or as nobody."""
        client = ServiceClient(
            f"127.0.0.1:{self.port}",
            name="inference",
            service_token=self._tokens.of(service) if service else None,
            credential=key,
        )
        try:
            yield client
        finally:
            await client.close()

    async def session_port(self) -> int:
        """The port that is for sessions alone, as edges learn it."""
        async with self.client(service=ServiceName.EDGE) as client:
            stub = model_service_pb2_grpc.ModelServiceStub(client.channel)
            listed = await client.call(stub.ListModels, model_service_pb2.ListModelsRequest(), timeout=5)
            return int(listed.session_port)

    @asynccontextmanager
    async def session(self, *, own_port: bool = False) -> AsyncIterator[EdgeSession]:
        """A session of the edge; cancelled at the end. `own_port`: at the port that is for sessions alone."""
        async with self.client(service=ServiceName.EDGE) as client:
            if own_port:
                own = StreamCall()
                own.stream = await client.open_stream(SESSION, own, port=await self.session_port())
                try:
                    yield EdgeSession(own)
                finally:
                    own.stream.close()
                return
            stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
            metadata = (("x-naru-service-token", self._tokens.of(ServiceName.EDGE)),)
            call = stub.GenerateSession(metadata=metadata)
            try:
                yield EdgeSession(call)
            finally:
                call.cancel()

    @asynccontextmanager
    async def generate(
        self, of: generation_pb2.Generation, *, key: str | None = None, service: ServiceName | None = None
    ) -> AsyncIterator[AsyncIterator[inference_service_pb2.GenerateResponse]]:
        """A Generate call; cancelled at the end."""
        async with self.client(key=key, service=service) as client:
            stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
            request = inference_service_pb2.GenerateRequest(generation=of)
            async with client.stream(stub.Generate, request, timeout=20) as messages:
                yield messages


def config_of(directory: Path, peers_address: str, **fields: Any) -> InferenceConfig:
    """A replica that keeps everything in `directory`."""
    return InferenceConfig(
        **{
            "port": 0,
            "engine": "simulated",
            "model": "small",
            "service_tokens_dir": directory / "tokens",
            "journal_dir": directory / "journal",
            "authsvc_address": peers_address,
            "accounting_address": peers_address,
            "shutdown_grace": 0.3,
            "replica_id": "replica-1",
            **fields,
        }
    )


@asynccontextmanager
async def inference_service(
    directory: Path,
    engine: Engine | None = None,
    accounting: RecordingAccounting | None = None,
    **fields: Any,
) -> AsyncIterator[InferenceService]:
    """A replica with the given engine, or the simulated one, and recording peers that outlive it."""
    async with AsyncExitStack() as stack:
        tokens = write_service_tokens(directory / "tokens")
        accounting, keys = accounting or RecordingAccounting(), KeyRing()
        address = await stack.enter_async_context(peers(tokens, accounting, keys))
        lifecycle = Lifecycle()
        make_engine = None if engine is None else (lambda _: engine)
        config = config_of(directory, address, **fields)
        up = await stack.enter_async_context(running(config, lifecycle, make_engine))
        yield InferenceService(up.port, lifecycle, tokens, accounting, keys, address)


def lasting(seconds: float) -> dict[str, Any]:
    """The field of a generation that may take so long."""
    return {"timeout": duration_to_proto(seconds)}
