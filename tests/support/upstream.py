"""Upstreams without an internet: a small server that says what a test wants, and whole Narus, one behind the other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
from aiohttp import web

import edge.app
from edge.config import EdgeConfig
from inference.app import running
from naru.api.accounting.v1 import usage_event_pb2
from naru.identity import Principal
from naru.lifecycle import Lifecycle
from tests.support.edge_harness import until
from tests.support.inference_service import config_of
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers, write_service_tokens

SECRET = "sk-or-v1-0123456789abcdef0123456789abcdef"
USAGE = {
    "prompt_tokens": 31,
    "completion_tokens": 17,
    "total_tokens": 48,
    "prompt_tokens_details": {"cached_tokens": 9},
    "completion_tokens_details": {"reasoning_tokens": 4},
}


def chunk(*choices: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A chunk of a streamed chat."""
    return {"id": "up-1", "object": "chat.completion.chunk", "model": "theirs", "choices": list(choices), **fields}


def gained(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """What a choice of a streamed chat gained."""
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def whole(*messages: dict[str, Any], usage: dict[str, Any] | None = None, **choice: Any) -> dict[str, Any]:
    """A chat that was not streamed."""
    choices = [
        {"index": index, "message": {"role": "assistant", **message}, "finish_reason": "stop", **choice}
        for index, message in enumerate(messages)
    ]
    return {"id": "up-1", "object": "chat.completion", "choices": choices, "usage": usage or USAGE}


@dataclass(slots=True)
class FakeUpstream:
    """Answers as it was told to, and remembers what it was asked.

    Attributes:
        stream: Events of a stream: chunks, or raw bytes; a float waits so many seconds.
        done: Whether a stream ends with `[DONE]`; None cuts the connection off instead.
        answer: What a request that does not stream is answered; bytes one after the other are written as they are.
        status: Of an answer that does not stream; not 200 refuses streams too.
    """

    stream: Iterable[dict[str, Any] | bytes | float] = ()
    done: bool | None = True
    answer: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    models: Any = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    open: int = 0
    hung_up: int = 0
    sent: int = 0
    url: str = ""
    runner: web.AppRunner | None = None

    async def come(self, port: int = 0) -> None:
        """Listens."""
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self.generate)
        app.router.add_post("/v1/completions", self.generate)
        app.router.add_get("/v1/models", self.list_models)
        # Handlers end with their clients, as those of servers that generate do.
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", port).start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}/v1"

    async def leave(self) -> None:
        """Listens no more, and hangs up on everybody."""
        runner, self.runner = self.runner, None
        if runner is not None:
            await runner.cleanup()

    async def generate(self, request: web.Request) -> web.StreamResponse:
        """A completion of either kind."""
        self.bodies.append(await request.json())
        self.authorizations.append(request.headers.get("Authorization", ""))
        self.open += 1
        try:
            return await self._answer(request)
        except (asyncio.CancelledError, ConnectionError):
            self.hung_up += 1
            raise
        finally:
            self.open -= 1

    async def list_models(self, _request: web.Request) -> web.Response:
        """As `models` says, or a 404."""
        return web.json_response(self.models, status=404 if self.models is None else 200)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self.status != 200 or not self.bodies[-1]["stream"]:
            if isinstance(self.answer, Iterator):
                return await self._pour(request, self.answer)
            if isinstance(self.answer, float):
                await asyncio.sleep(self.answer)
            text = self.answer if isinstance(self.answer, str) else json.dumps(self.answer)
            return web.Response(text=text, status=self.status, headers=self.headers, content_type="application/json")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.stream:
            if isinstance(event, float):
                await asyncio.sleep(event)
            else:
                written = event if isinstance(event, bytes) else b"data: %b\n\n" % json.dumps(event).encode()
                await response.write(written)
                self.sent += len(written)
        if self.done is None:
            assert request.transport is not None
            request.transport.abort()
        elif self.done:
            await response.write(b"data: [DONE]\n\n")
        return response

    async def _pour(self, request: web.Request, pieces: Iterator[bytes]) -> web.StreamResponse:
        """Writes them all, be it for ever."""
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "application/json", **self.headers})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            self.sent += len(piece)
        return response


@asynccontextmanager
async def fake_upstream(port: int = 0) -> AsyncIterator[FakeUpstream]:
    """One on a port, or on a free one."""
    upstream = FakeUpstream()
    await upstream.come(port)
    try:
        yield upstream
    finally:
        await upstream.leave()


@dataclass(slots=True)
class SmallNaru:
    """A real edge and real inference services in this process, with peers that record."""

    url: str
    key: str
    accounting: RecordingAccounting
    client: openai.AsyncOpenAI

    async def events(self, count: int) -> list[usage_event_pb2.UsageEvent]:
        """So many events of usage, the first ones; waits for them."""
        await until(lambda: len(self.accounting.events) >= count, 10)
        return self.accounting.events[:count]


@asynccontextmanager
async def small_naru(directory: Path, *engines: dict[str, Any]) -> AsyncIterator[SmallNaru]:
    """Runs one, with an inference service for each of `engines`, which are fields of InferenceConfig."""
    async with AsyncExitStack() as stack:
        tokens = write_service_tokens(directory / "tokens")
        accounting, keys = RecordingAccounting(), KeyRing()
        address = await stack.enter_async_context(peers(tokens, accounting, keys))
        addresses = []
        for number, fields in enumerate(engines):
            own = {"journal_dir": directory / f"journal-{number}", "replica_id": f"replica-{number}", **fields}
            service = await stack.enter_async_context(running(config_of(directory, address, **own), Lifecycle()))
            addresses.append(f"127.0.0.1:{service.port}")
        config = EdgeConfig(
            port=0,
            service_tokens_dir=directory / "tokens",
            authsvc_address=address,
            accounting_address=address,
            inference_addresses=tuple(addresses),
            shutdown_grace=0.2,
        )
        front = await stack.enter_async_context(edge.app.running(config, Lifecycle()))
        url = f"http://127.0.0.1:{front.port}/v1"
        key = keys.new_key(lambda key_id: Principal(workspace_id="ws", key_id=key_id))
        client = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0)
        stack.push_async_callback(client.close)
        await _connected(client, len(engines))
        yield SmallNaru(url, key, accounting, client)


async def _connected(client: openai.AsyncOpenAI, replicas: int) -> None:
    async with asyncio.timeout(10):
        while True:
            try:
                if len((await client.models.list()).data) >= replicas:
                    return
            except openai.APIStatusError:
                pass
            await asyncio.sleep(0.02)


def behind(url: str, key: str = SECRET, models: Sequence[str] = ("ours=theirs",), **fields: Any) -> dict[str, Any]:
    """Fields of an inference service that asks an upstream."""
    return {
        "engine": "upstream",
        "upstream_base_url": url,
        "upstream_api_key": key,
        "upstream_models": tuple(models),
        **fields,
    }
