"""How much an upstream may send before it is hung up on: whoever sends for ever fills nobody's memory."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx2

from inference.upstream_chunks import broken
from inference.upstream_errors import TOO_MUCH
from naru.errors import NaruError, unavailable

_EVENT_BYTES = 4 << 20
"""Of one event of a stream, which is kept until its end has come."""
_STREAMED = 32
"""How many times as much a stream may bring as an answer that is kept as a whole: every token of it has a frame."""
_EVENT_STREAM = "text/event-stream"
_BLANK_LINES = (b"\n\n", b"\r\n\r\n", b"\r\r")
"""What ends an event."""
_LONGEST_BLANK = max(map(len, _BLANK_LINES))
ACCEPT_ENCODING = "identity"
"""What is asked for: a compressed answer says nothing of its size."""


def too_much() -> NaruError:
    """The upstream sends more than an answer can be."""
    return unavailable("inference", TOO_MUCH)


class AnswerBounds:
    """A hook of the HTTP client, for every answer before it is read.

    Args:
        answer_bytes: Most of an answer that is kept as a whole.
    """

    def __init__(self, answer_bytes: int) -> None:
        self._answer_bytes = answer_bytes

    async def __call__(self, response: httpx2.Response) -> None:
        """Bounds it. Raises NaruError SERVICE_UNAVAILABLE for one that is compressed, which was not asked for."""
        if response.headers.get("content-encoding", ACCEPT_ENCODING).lower() != ACCEPT_ENCODING:
            raise broken()
        streamed = response.headers.get("content-type", "").lower().startswith(_EVENT_STREAM)
        if isinstance(response.stream, httpx2.AsyncByteStream):
            most = self._answer_bytes * _STREAMED if streamed else self._answer_bytes
            response.stream = _BoundedStream(response.stream, most, _EVENT_BYTES if streamed else most)


class _BoundedStream(httpx2.AsyncByteStream):
    """The same bytes. Raises NaruError once they are too many, in all or since the last blank line."""

    def __init__(self, stream: httpx2.AsyncByteStream, most: int, most_of_event: int) -> None:
        self._stream = stream
        self._left = most
        self._most_of_event = most_of_event

    async def __aiter__(self) -> AsyncIterator[bytes]:
        open_bytes, tail = 0, b""
        async for piece in self._stream:
            self._left -= len(piece)
            seen = tail + piece
            ended = max(seen.rfind(blank) + len(blank) if blank in seen else 0 for blank in _BLANK_LINES)
            open_bytes = len(seen) - ended if ended else open_bytes + len(piece)
            if self._left < 0 or open_bytes > self._most_of_event:
                raise too_much()
            tail = seen[-_LONGEST_BLANK + 1 :]
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()
