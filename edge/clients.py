"""The services the edge calls, in its own terms. With `session.py` and `convert.py` all that knows gRPC's messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge.accounts import EventRef, HeldReservation, KeptOutcome, RequestRecord, Reservation, ReserveResult
from edge.convert import (
    KINDS_WITH_HEADERS,
    broken_to_usage_event,
    event_ref_to_proto,
    held_to_proto,
    model_from_proto,
    outcome_to_proto,
    record_to_proto,
    reservation_to_proto,
    reserve_result_from_proto,
)
from edge.generation import BrokenGeneration, ServedModel, Tokens
from edge.rpcs import Rpc
from edge.shipping import Shipper
from edge.spares import Spare, Spares
from naru.api.accounting.v1 import (
    quota_service_pb2,
    quota_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
)
from naru.api.inference.v1 import (
    generation_pb2,
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
    tokenization_pb2,
)
from naru.client import ServiceClient
from naru.clock import Clock
from naru.coalescing import Coalescer
from naru.conversation import Conversation
from naru.convert import error_from_proto
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal
from naru.ids import uuid7
from naru.lifecycle import Background
from naru.logs import get_logger
from naru.message_stream import Listener, MessageStream
from naru.tracing import current_traceparent

_RESERVE_PATIENCE = 2.0
_MOST_FINISHED = 4_096
# A message costs both sides about as much as ten reservations in it.
_LEAST_BESIDE = 12
_TIMEOUT = 5.0
_HEALTH_TIMEOUT = 1.0
_QUESTION_TIMEOUT = 30.0
_TOKENIZE_TIMEOUT = 30.0
_EXPORT_TIMEOUT = 3_600.0
_GENERATE_SESSION = "/naru.api.inference.v1.InferenceService/GenerateSession"
_RESERVE_SESSION = "/naru.api.accounting.v1.QuotaService/ReserveSession"
_ReserveSession = Conversation[quota_service_pb2.ReserveSessionRequest, quota_service_pb2.ReserveSessionResponse]
_log = get_logger(__name__)


class InferenceClient:
    """One inference replica."""

    def __init__(self, address: str, client: ServiceClient) -> None:
        self.address = address
        self._client = client
        self._models = model_service_pb2_grpc.ModelServiceStub(client.channel)
        self._inference = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
        self._session_port = 0

    async def list_models(self) -> dict[str, ServedModel]:
        """The models it serves, by name. Raises NaruError."""
        models: dict[str, ServedModel] = {}
        token = ""
        while True:
            request = model_service_pb2.ListModelsRequest(page_token=token)
            response = await self._client.call(self._models.ListModels, request, timeout=_TIMEOUT)
            models |= {model.name: model_from_proto(model) for model in response.models}
            self._session_port = response.session_port
            token = response.next_page_token
            if not token:
                return models

    async def session(self, listener: Listener) -> MessageStream:
        """Opens a session, of `GenerateSessionRequest`s and `GenerateSessionResponse`s. Raises NaruError.

        At the port that the replica named for it where that can be reached; gRPC's own has sessions too.
        """
        if self._session_port:
            try:
                return await self._client.open_stream(_GENERATE_SESSION, listener, port=self._session_port)
            except NaruError:
                _log.warning("the session port of a replica cannot be reached", replica=self.address)
        return await self._client.open_stream(_GENERATE_SESSION, listener)

    def generate(
        self, generation: generation_pb2.Generation, *, timeout: float
    ) -> AbstractAsyncContextManager[AsyncIterator[inference_service_pb2.GenerateResponse]]:
        """Runs one request by a call of its own."""
        request = inference_service_pb2.GenerateRequest(generation=generation)
        return self._client.stream(self._inference.Generate, request, timeout=timeout)

    async def tokenize(self, model: str, body: bytes) -> Tokens:
        """The tokens of a body of /tokenize. Raises NaruError."""
        request = tokenization_pb2.TokenizeRequest(model=model, json=body)
        response = await self._client.call(self._inference.Tokenize, request, timeout=_TOKENIZE_TIMEOUT)
        return Tokens(list(response.token_ids), list(response.token_strings), response.context_tokens)

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """The text of tokens. Raises NaruError."""
        request = tokenization_pb2.DetokenizeRequest(model=model, token_ids=token_ids)
        response = await self._client.call(self._inference.Detokenize, request, timeout=_TOKENIZE_TIMEOUT)
        return response.text


class QuotaClient:
    """Implements `edge.ports.Quota` with accounting's QuotaService."""

    def __init__(
        self, client: ServiceClient, clock: Clock, background: Background, *, dropped: Callable[[str, int], None]
    ) -> None:
        self._client = client
        self._clock = clock
        self._stub = quota_service_pb2_grpc.QuotaServiceStub(client.channel)
        self._reservations: Coalescer[Reservation, ReserveResult] = Coalescer(
            self._reserving(), background, most=256, calls=2, least=_LEAST_BESIDE
        )
        self._finished: list[EventRef] = []
        # Each may be answered with a whole outcome, and a message has an end.
        self._keyed: Coalescer[Reservation, ReserveResult] = Coalescer(self._reserving(), background, most=8)
        self.releases = self._releasing(dropped, unused_spares=False)
        self.unused_spares = self._releasing(dropped, unused_spares=True)
        self.spares = Spares(
            ask=self._reservations.ask,
            unused=self.unused_spares.put,
            clock=clock,
            background=background,
            new_event_id=uuid7,
        )
        # Up to 256 KiB each: what waits for accounting is 64 MiB at most.
        self.outcomes: Shipper[KeptOutcome] = Shipper(
            "outcomes",
            self._keep,
            clock,
            interval=0.0,
            most=16,
            capacity=256,
            max_age=600.0,
            dropped=lambda number: dropped("outcome", number),
        )

    async def reserve(self, reservation: Reservation) -> ReserveResult:
        """Asks for capacity; tries for 2 seconds once the call before has ended.

        Raises NaruError SERVICE_UNAVAILABLE when accounting is away.
        """
        coalescer = self._reservations if reservation.idempotency is None else self._keyed
        return await coalescer.ask(reservation)

    def spare(self, reservation: Reservation) -> Spare | None:
        """Capacity that was taken in advance, if there is any."""
        return self.spares.take(reservation)

    def release(self, event: EventRef) -> None:
        """Gives a reservation back, in the background."""
        self.releases.put(event)

    def finish(self, event: EventRef) -> None:
        """Says that an attempt has ended, with the next reservations. Lost where accounting is away: the usage says so too."""
        self._finished.append(event)
        self._reservations.poke()

    def keep(self, kept: KeptOutcome) -> None:
        """Tells what became of a request with an idempotency key, in the background."""
        self.outcomes.put(kept)

    async def renew(self, events: Sequence[EventRef]) -> list[EventRef]:
        """Extends the leases of `events`; returns those that nothing is known of. Raises NaruError."""
        unknown: list[EventRef] = []
        for start in range(0, len(events), 4096):
            part = events[start : start + 4096]
            request = quota_service_pb2.RenewRequest(items=[event_ref_to_proto(event) for event in part])
            response = await self._client.call(self._stub.Renew, request, timeout=_TIMEOUT)
            unknown += [event for event, result in zip(part, response.results, strict=False) if result.unknown]
        return unknown

    async def restore(self, held: Sequence[HeldReservation]) -> None:
        """Says what requests hold that nothing is known of. Raises NaruError."""
        for start in range(0, len(held), 256):
            request = quota_service_pb2.RestoreRequest(items=map(held_to_proto, held[start : start + 256]))
            await self._client.call(self._stub.Restore, request, timeout=_TIMEOUT)

    def _reserving(self) -> Callable[[Sequence[Reservation]], Awaitable[Sequence[ReserveResult]]]:
        # Each coalescer asks by a session of its own, which keeps its messages in order; there is none between the two.
        response = quota_service_pb2.ReserveSessionResponse
        return partial(self._reserve, Conversation(self._client, _RESERVE_SESSION, response))

    async def _reserve(self, session: _ReserveSession, reservations: Sequence[Reservation]) -> Sequence[ReserveResult]:
        finished, self._finished = self._finished[:_MOST_FINISHED], self._finished[_MOST_FINISHED:]
        if not reservations and not finished:
            return ()
        request = quota_service_pb2.ReserveSessionRequest(
            reserve=quota_service_pb2.ReserveRequest(
                items=[reservation_to_proto(item) for item in reservations], limit_kinds=KINDS_WITH_HEADERS
            ),
            traceparent=current_traceparent(),
            finished=[event_ref_to_proto(event) for event in finished],
        )
        deadline = self._clock.monotonic() + _RESERVE_PATIENCE
        pause = 0.05
        while True:
            left = deadline - self._clock.monotonic()
            try:
                response = await session.ask(request, timeout=max(left, 0.1))
                if response.HasField("error"):
                    raise error_from_proto(response.error)
                return [reserve_result_from_proto(result) for result in response.reserved.results]
            except NaruError as error:
                if error.reason not in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED):
                    raise
                if deadline - self._clock.monotonic() < pause:
                    raise unavailable("accounting") from error
            await asyncio.sleep(pause)
            pause *= 2

    def _releasing(self, dropped: Callable[[str, int], None], *, unused_spares: bool) -> Shipper[EventRef]:
        # A release older than its lease is of no use.
        return Shipper(
            "releases",
            partial(self._release, unused_spares),
            self._clock,
            interval=0.0,
            most=256,
            capacity=10_000,
            max_age=60.0,
            dropped=lambda number: dropped("release", number),
        )

    async def _release(self, unused_spares: bool, events: Sequence[EventRef]) -> None:
        request = quota_service_pb2.ReleaseRequest(
            items=[event_ref_to_proto(event) for event in events], unused_spares=unused_spares
        )
        await self._client.call(self._stub.Release, request, timeout=_TIMEOUT)

    async def _keep(self, kept: Sequence[KeptOutcome]) -> None:
        await asyncio.gather(*map(self._keep_one, kept))

    async def _keep_one(self, kept: KeptOutcome) -> None:
        try:
            await self._client.call(self._stub.KeepOutcome, outcome_to_proto(kept), timeout=_TIMEOUT)
        except NaruError as error:
            if error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED):
                raise
            _log.error("an outcome was refused", event_id=kept.event_id, error=error.message)


class UsageClient:
    """Reports to accounting's UsageService what the edge saw, in the background."""

    def __init__(self, client: ServiceClient, clock: Clock, *, dropped: Callable[[str, int], None]) -> None:
        self._client = client
        self._stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
        self.evidence: Shipper[BrokenGeneration] = Shipper(
            "evidence",
            self._record_usage,
            clock,
            interval=0.05,
            most=1_024,
            capacity=100_000,
            max_age=600.0,
            dropped=lambda number: dropped("evidence", number),
        )
        self.requests: Shipper[RequestRecord] = Shipper(
            "request records",
            self._record_requests,
            clock,
            interval=0.5,
            most=4_096,
            capacity=10_000,
            max_age=60.0,
            dropped=lambda number: dropped("request_record", number),
        )

    async def _record_usage(self, broken: Sequence[BrokenGeneration]) -> None:
        events = [broken_to_usage_event(one) for one in broken]
        request = usage_service_pb2.RecordUsageRequest(events=events)
        response = await self._client.call(self._stub.RecordUsage, request, timeout=_TIMEOUT)
        for event, result in zip(events, response.results, strict=False):
            if result.status == usage_service_pb2.RECORD_USAGE_STATUS_REFUSED:
                _log.error("evidence was refused", event_id=event.event_id, error=result.error.message)

    async def _record_requests(self, records: Sequence[RequestRecord]) -> None:
        request = usage_service_pb2.RecordRequestsRequest(records=[record_to_proto(record) for record in records])
        await self._client.call(self._stub.RecordRequests, request, timeout=_TIMEOUT)


class RpcClient:
    """Implements `edge.routes.platform.Rpcs` and `edge.routes.export.Streams`.

    Args:
        clients: The services that answer, by the domain of their RPCs.
    """

    def __init__(self, clients: Mapping[str, ServiceClient]) -> None:
        self._clients = clients

    async def call(self, rpc: Rpc, request: Message, *, on_behalf_of: Principal | None) -> Message:
        """The answer to a unary call, made as the edge when `on_behalf_of` is None. Raises NaruError."""
        client = self._clients[rpc.domain]
        method = client.channel.unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        return await client.call(method, request, timeout=_QUESTION_TIMEOUT, on_behalf_of=on_behalf_of)

    def stream(
        self, rpc: Rpc, request: Message, *, on_behalf_of: Principal
    ) -> AbstractAsyncContextManager[AsyncIterator[Any]]:
        """The answers to a call for a stream, which has an hour; iterating raises NaruError when it fails."""
        client = self._clients[rpc.domain]
        method = client.channel.unary_stream(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        return client.stream(method, request, timeout=_EXPORT_TIMEOUT, on_behalf_of=on_behalf_of)


class HealthProbe:
    """Asks every service the edge depends on how it is.

    Args:
        clients: By the name to show.
    """

    def __init__(self, clients: Mapping[str, ServiceClient], clock: Clock) -> None:
        self._clients = clients
        self._clock = clock
        self._states: dict[str, str] = {}
        self._asked = float("-inf")
        self._asking = asyncio.Lock()

    async def states(self) -> dict[str, str]:
        """Whether each is "ok" or "unavailable"; asked again after a second at the earliest, as anybody may ask."""
        async with self._asking:
            if self._clock.monotonic() - self._asked >= 1.0:
                answers = await asyncio.gather(*map(self._ask, self._clients.values()))
                self._states = dict(zip(self._clients, answers, strict=True))
                self._asked = self._clock.monotonic()
            return self._states

    async def _ask(self, client: ServiceClient) -> str:
        stub = health_pb2_grpc.HealthStub(client.channel)
        try:
            response = await client.call(stub.Check, health_pb2.HealthCheckRequest(), timeout=_HEALTH_TIMEOUT)
        except NaruError:
            return "unavailable"
        return "ok" if response.status == health_pb2.HealthCheckResponse.SERVING else "unavailable"
