"""A client that streams many answers at little cost: it shares the machine with what it measures.

It speaks as much of HTTP/1.1 as it takes to ask a server of our own again and again on kept-alive connections.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, cast
from urllib.parse import urlsplit

_HEAD_END, _LINE_END = b"\r\n\r\n", b"\r\n"
_CONTENT = b'"content":"'
_PATH = "/v1/chat/completions"


@dataclass(slots=True)
class Answer:
    """What became of one request. Times are those of `time.monotonic`, in seconds.

    Attributes:
        due: When it was to be sent.
        sent: When it was; 0 before that.
        status: Of HTTP; 0 when the connection ended before it was known.
        server_timing: That header, as it came.
        tokens: When each token came.
        end: When all of the answer had come; 0 when it never did.
    """

    due: float
    sent: float = 0.0
    status: int = 0
    server_timing: str = ""
    tokens: array[float] = field(default_factory=lambda: array("d"))
    end: float = 0.0

    def failed(self, tokens: int) -> bool:
        """Whether it is anything but a whole answer of so many tokens."""
        return self.status != 200 or not self.end or len(self.tokens) != tokens


class Client:
    """Connections to one server. One that has answered serves the next request; a new one is made when none is free.

    Used as an asynchronous context manager, it hangs up on all of them at its end.

    Args:
        url: The server's, without a path.
    """

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._host, self._port = where.hostname or "127.0.0.1", where.port or 80
        self._free: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in tuple(self._all):
            connection.hang_up()
        # A turn of the loop for each to hear of it.
        await asyncio.sleep(0)

    async def open(self, connections: int) -> None:
        """Makes so many more. Raises OSError."""
        for _ in range(connections):
            self._free.append(await self._connect())

    async def ask(self, request: bytes, answer: Answer) -> Answer:
        """Sends a request and returns `answer` at its end; it fills meanwhile. Raises OSError when it cannot connect."""
        connection = self._free.pop() if self._free else await self._connect()
        if await connection.ask(request, answer):
            self._free.append(connection)
        return answer

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self._lost), self._host, self._port)
        self._all.add(connection)
        return connection

    def _lost(self, connection: _Connection) -> None:
        self._all.discard(connection)
        if connection in self._free:
            self._free.remove(connection)


class _Connection(asyncio.Protocol):
    """Asks one request at a time. `lost` hears of its end."""

    def __init__(self, lost: Callable[[_Connection], None]) -> None:
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: Answer | None = None
        self._over: asyncio.Future[bool] | None = None
        self._left: int | None = None  # bytes of the body, or None for one in chunks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost(self)
        self._finish(usable=False)

    def hang_up(self) -> None:
        """Ends the connection; a request on it is not answered."""
        if self._transport is not None:
            self._transport.abort()

    async def ask(self, request: bytes, answer: Answer) -> bool:
        """Whether the connection can be used again once that is over."""
        if self._transport is None:
            return False
        self._answer, self._over = answer, asyncio.get_running_loop().create_future()
        answer.sent = time.monotonic()
        self._transport.write(request)
        return await self._over

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        answer = self._answer
        if answer is None:
            return
        if self._received:
            data = self._received + data
        start = 0
        if not answer.status:
            start = self._read_head(data, answer)
            if not start:
                self._received = data
                return
        if self._left is None:
            start = self._read_chunks(data, start, answer, now)
        elif len(data) - start >= self._left:
            _count(data[start:], answer, now)
            self._end(answer, now)
            start = len(data)
        self._received = data[start:]

    def _read_head(self, data: bytes, answer: Answer) -> int:
        """Where the body begins; 0 when that has not come."""
        head, found, _ = data.partition(_HEAD_END)
        if not found:
            return 0
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        answer.status = int(status.split(" ", 2)[1])
        answer.server_timing = headers.get("server-timing", "")
        self._left = int(headers["content-length"]) if "content-length" in headers else None
        return len(head) + len(_HEAD_END)

    def _read_chunks(self, data: bytes, start: int, answer: Answer, now: float) -> int:
        """Where the first chunk begins that has not come as a whole."""
        while (line_end := data.find(_LINE_END, start)) >= 0:
            size = int(data[start:line_end], 16)
            begin, following = line_end + 2, line_end + 4 + size
            if following > len(data):
                break
            start = following
            if not size:
                self._end(answer, now)
                break
            _count(data[begin : begin + size], answer, now)
        return start

    def _end(self, answer: Answer, now: float) -> None:
        answer.end = now
        self._finish(usable=True)

    def _finish(self, *, usable: bool) -> None:
        over, self._over, self._answer = self._over, None, None
        if over is not None and not over.done():
            over.set_result(usable)


def _count(body: bytes, answer: Answer, now: float) -> None:
    """Notes the tokens of a piece of an answer: words, since engines that play say one word a token.

    Events that say nothing, such as one with a role alone, have none; one in which several steps came together has several.
    """
    for piece in body.split(_CONTENT)[1:]:
        text = piece[: piece.find(b'"')]
        for _ in text.split():
            answer.tokens.append(now)


def request_of(url: str, key: str, body: Mapping[str, Any]) -> bytes:
    """A chat completion, as it goes over the wire."""
    data = json.dumps(body).encode()
    head = (
        f"POST {_PATH} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


def server_timing(header: str) -> dict[str, float]:
    """Milliseconds of each part that a `server-timing` header names."""
    parts = (part.strip().partition(";dur=") for part in header.split(","))
    return {name: float(duration) for name, found, duration in parts if found}


def allow_connections() -> None:
    """Lets this process, and those that it starts from then on, have as many open files as it may ask for."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
