"""Sessions over streams of messages that this service speaks itself: the quick way, which edges take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from inference import convert
from inference.session import Session, Sessions
from naru.api.inference.v1 import inference_service_pb2
from naru.context import RequestContext
from naru.errors import NaruError
from naru.identity import ServiceTokens
from naru.interceptors import internal_error
from naru.lifecycle import Background
from naru.message_server import MessageServer, Served, ServedStream

_PATH = "/naru.api.inference.v1.InferenceService/GenerateSession"


def hear(message: inference_service_pb2.GenerateSessionRequest, session: Session, context: RequestContext) -> None:
    """Does what a session's message asks for. Raises NaruError for what ends the session."""
    for cancel in message.cancels:
        session.cancel(cancel.stream_id)
    for submit in message.submits:
        try:
            order = convert.order_from_proto(submit.generation, context)
        except NaruError as error:
            session.refuse(submit.stream_id, error)
        else:
            session.submit(submit.stream_id, order)


class SessionServer:
    """Serves GenerateSession at a port of its own.

    Args:
        sessions: Where streams get their sessions.
        load: How busy the replica is.
        tokens: Of the services that may call.
        background: Owns those who write.
    """

    def __init__(
        self,
        sessions: Sessions,
        load: Callable[[], inference_service_pb2.Load],
        tokens: ServiceTokens,
        background: Background,
    ) -> None:
        self._sessions = sessions
        self._load = load
        self._background = background
        self._server = MessageServer(_PATH, tokens, self._serve)
        self.port = 0

    async def start(self, host: str, port: int) -> None:
        """Listens; `port` says where from then on. Raises OSError when it is taken."""
        self.port = await self._server.start(host, port)

    async def stop(self, grace: float) -> None:
        """Takes no new sessions, and closes those that are still open after `grace` seconds."""
        await self._server.stop(grace)

    def _serve(self, stream: ServedStream, context: RequestContext) -> Served:
        session = self._sessions.open(stream.close)
        served = _ServedSession(stream, session, context)
        load = self._load()
        if load.draining or load.away:
            session.announce()
        _ = self._background.spawn("session", served.write(self._load))
        return served


class _ServedSession:
    """Implements `naru.message_server.Served`."""

    def __init__(self, stream: ServedStream, session: Session, context: RequestContext) -> None:
        self._stream = stream
        self._session = session
        self._context = context
        self._sent = asyncio.Event()

    async def write(self, load: Callable[[], inference_service_pb2.Load]) -> None:
        """Writes what the session has to tell, to its end."""
        try:
            while (batch := await self._session.take()) is not None:
                self._stream.write(convert.session_response_to_proto(batch, load()).SerializeToString())
                # The one that ended is ready for nothing any more, and has told.
                if not self._stream.is_ready and not self._stream.is_over:
                    self._sent.clear()
                    _ = await self._sent.wait()
            self._stream.finish()
        except NaruError as error:
            self._stream.finish(error)
        finally:
            self._session.close()
            self._stream.close()

    def message(self, message: bytes) -> None:
        try:
            hear(inference_service_pb2.GenerateSessionRequest.FromString(message), self._session, self._context)
        except NaruError as error:
            self._session.fail(error)
        except Exception as fault:  # noqa: BLE001 -- a session whose requests are not read any more must not stay open
            self._session.fail(internal_error(fault, self._context.method))

    def ready(self) -> None:
        self._sent.set()

    def finished(self) -> None:
        self._session.finish()

    def ended(self, error: NaruError) -> None:
        self._sent.set()
        self._session.close()
