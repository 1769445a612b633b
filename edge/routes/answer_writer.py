"""Writes a streamed answer to its client while it is generated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import HttpVersion11, web

from edge.exchange import Exchange
from edge.generation import Delta
from edge.openai.answers import AnswerStream
from edge.outcomes import Recording


class StreamedAnswer(web.StreamResponse):
    """Its head leaves with the first bytes of its body, as that of a `web.Response` does."""

    _send_headers_immediately = False


class AnswerWriter:
    """Writes straight to the connection, in the same bytes as `web.StreamResponse.write`, whose way there is two coroutines long.

    Args:
        request: Whose response is prepared.
        response: It.
        answer: What to write.
        recording: Hears of all that is written.
        on_first: Called before the first token is written.
    """

    def __init__(
        self,
        request: web.Request,
        response: web.StreamResponse,
        *,
        exchange: Exchange,
        answer: AnswerStream,
        recording: Recording,
        on_first: Callable[[], None],
    ) -> None:
        self._response = response
        self._writer = request.writer
        self._protocol = request.protocol
        self._transport = request.transport
        self._exchange = exchange
        self._answer = answer
        self._recording = recording
        self._on_first = on_first
        self._began = False
        self._chunked = request.version >= HttpVersion11

    async def begin(self) -> None:
        """Sends the head, and what comes before any token, in one piece. Raises ConnectionResetError when the client is gone."""
        chunk = self._answer.start()
        self.note(chunk)
        await self._response.write(chunk)

    def note(self, chunk: bytes) -> None:
        """Hears of a part of the answer that is written elsewhere."""
        self._recording.add(chunk)
        self._exchange.response_bytes += len(chunk)

    def take(self, deltas: Sequence[Delta]) -> bool:
        """Writes deltas, or what fills silence when there are none; whether there is room for more.

        Raises ConnectionResetError when the client is gone.
        """
        if not deltas:
            chunk = self._exchange.dialect.keep_alive
            self._exchange.response_bytes += len(chunk)
            self._write(chunk)
        else:
            chunk = self._answer.render(deltas)
            if not self._began:
                self._began = True
                self._on_first()
            if chunk:
                self.note(chunk)
                self._write(chunk)
        return not self._protocol.writing_paused

    async def drain(self) -> None:
        """Waits until the client has read enough. Raises ConnectionResetError when it is gone."""
        await self._writer.drain()

    def _write(self, chunk: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client hung up")
        transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)
