"""An OpenAI-compatible engine that is played, in a process of its own, for contestants that have none.

It does what Naru's simulated engine does for Naru: every stream gets one token per step, each by a write of its own. With a pace
of 0 there are no steps: every stream gets its next token in the next turn of the loop.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable
from typing import cast

import uvloop

_MODELS = json.dumps({"object": "list", "data": [{"id": "mock", "object": "model", "owned_by": "bench"}]}).encode()
_COMMON = {"id": "chatcmpl-bench", "created": 1_700_000_000, "model": "mock"}
_ASKING = b"POST /v1/chat/completions "
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-store\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(delta: dict[str, str], finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    body = json.dumps({**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}, separators=(",", ":"))
    return _chunk(b"data: " + body.encode() + b"\n\n")


_TOKEN = _event({"content": " token"}, None)
_END = _event({}, "stop") + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


def _whole(tokens: int) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": " token" * tokens},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": tokens + 8}
    return json.dumps({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": usage}).encode()


class _Steps:
    """Gives every stream its next token, all in each step, or each in its own turns; counts those that were `written`."""

    def __init__(self, pace: float) -> None:
        self.written = 0
        self._pace = pace
        self._streams: set[_Connection] = set()

    def add(self, connection: _Connection) -> None:
        """One more stream."""
        self._streams.add(connection)
        if not self._pace:
            self._hurry(connection)

    def later(self, tokens: int, say: Callable[[], None]) -> None:
        """Says when so many tokens would be there."""
        _ = asyncio.get_running_loop().call_later(self._pace * tokens, say)

    async def run(self) -> None:
        """Steps, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += self._pace or 1.0
            await asyncio.sleep(due - loop.time())
            for connection in tuple(self._streams) if self._pace else ():
                self._step(connection)

    def _hurry(self, connection: _Connection) -> None:
        if self._step(connection):
            asyncio.get_running_loop().call_soon(self._hurry, connection)

    def _step(self, connection: _Connection) -> bool:
        if connection.write_token():
            self.written += 1
            return True
        self._streams.discard(connection)
        return False


class _Connection(asyncio.Protocol):
    def __init__(self, steps: _Steps) -> None:
        self._steps = steps
        self._received = b""
        self._left = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no subclass of it.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, rest = self._received.partition(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        if found and len(rest) >= length:
            self._received = rest[length:]
            self._answer(head, rest[:length])

    def write_token(self) -> bool:
        """Writes the next token; False once the stream has ended, or its reader is gone."""
        if self._transport is None:
            return False
        self._left -= 1
        self._transport.write(_TOKEN if self._left >= 0 else _END)
        return self._left >= 0

    def _answer(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"POST"):
            self._write_json(b"%d" % self._steps.written if head.startswith(b"GET /written ") else _MODELS)
            return
        if not head.startswith(_ASKING):
            # Such as .../render, which vllm-router asks first and waits a second for.
            self._write_json(b"{}", b"404 Not Found")
            return
        asked = json.loads(body)
        tokens = int(asked.get("max_tokens") or asked.get("max_completion_tokens") or 16)
        if not asked.get("stream"):
            self._steps.later(tokens, lambda: self._write_json(_whole(tokens)))
        elif self._transport is not None:
            self._transport.write(_STREAM_HEAD)
            self._left = tokens
            self._steps.add(self)

    def _write_json(self, body: bytes, status: bytes = b"200 OK") -> None:
        if self._transport is not None:
            head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(body))
            self._transport.write(head + body)


async def serve(port: int, pace: float) -> None:
    """Serves on `port`, with so many seconds between tokens, for ever."""
    steps = _Steps(pace)
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(steps), "127.0.0.1", port)
    async with server:
        await steps.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace", type=float, required=True, help="seconds between the tokens of a stream")
    arguments = parser.parse_args()
    uvloop.run(serve(arguments.port, arguments.pace))
