"""Requests with everything in them that is no text, and a server that would notice if anybody fetched it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


class Listener:
    """Counts who connects; answers everybody with a redirect to itself."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(f"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:{self.port}/b.png\r\n\r\n".encode())
        writer.close()

    def urls(self) -> list[str]:
        """Where to look for media: here, and where no network is needed."""
        return [f"http://127.0.0.1:{self.port}/a.png", "file:///etc/hostname", "data:image/png;base64,iVBORw0KGgo="]


@asynccontextmanager
async def listening() -> AsyncIterator[Listener]:
    """Listens on a free port."""
    listener = Listener()
    server = await asyncio.start_server(listener._greet, "127.0.0.1", 0)
    listener.port = server.sockets[0].getsockname()[1]
    async with server:
        yield listener


def _chat_parts(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "image_url", "image_url": url},
        {"type": "input_image", "image_url": url},
        {"type": "image_pil", "image_pil": url},
        {"type": "image_embeds", "image_embeds": url},
        {"type": "audio_url", "audio_url": {"url": url}},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "file", "file": {"file_data": url, "filename": "a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
    ]


def _responses_parts(url: str) -> list[dict[str, Any]]:
    return [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_image", "file_id": "file-1"},
        {"type": "input_file", "file_url": url},
        {"type": "input_file", "file_data": url, "filename": "a.pdf"},
        {"type": "input_audio", "input_audio": {"data": url, "format": "wav"}},
    ]


def _anthropic_blocks(url: str) -> list[dict[str, Any]]:
    kinds = [
        {"type": "image", "source": {"type": "url", "url": url}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}},
        {"type": "image", "source": {"type": "file", "file_id": "file-1"}},
        {"type": "document", "source": {"type": "url", "url": url}},
        {"type": "search_result", "source": url, "title": "x", "content": [{"type": "text", "text": "x"}]},
        {"type": "container_upload", "file_id": "file-1"},
    ]
    results = [{"type": "tool_result", "tool_use_id": "c1", "content": [kind]} for kind in kinds[:4]]
    return kinds + results


def media_bodies(url: str) -> list[tuple[str, dict[str, Any], str]]:
    """Paths, bodies without their model, and the field that is to blame."""
    made: list[tuple[str, dict[str, Any], str]] = []
    text = {"type": "text", "text": "What is this?"}
    for part in _chat_parts(url):
        for role in ("user", "system", "assistant", "tool"):
            body = {"messages": [{"role": role, "content": [text, part], "tool_call_id": "c1"}]}
            made += [(path, body, "messages[0].content[1].type") for path in ("/v1/chat/completions", "/tokenize")]
    for part in _responses_parts(url):
        spoken = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "What?"}, part]}]}
        returned = {"input": [{"type": "function_call_output", "call_id": "c1", "output": [part]}]}
        made += [("/v1/responses", spoken, "input[0].content[1]"), ("/v1/responses", returned, "input[0].output[0]")]
    for block in _anthropic_blocks(url):
        turns = {"messages": [{"role": "user", "content": [text, block]}]}
        made += [("/v1/messages", turns | {"max_tokens": 2}, "messages.0.content.1")]
        made += [("/v1/messages/count_tokens", turns, "messages.0.content.1")]
    image = {"type": "image_url", "image_url": {"url": url}}
    spoken = {"messages": [{"role": "user", "content": [image]}]}
    return [
        *made,
        ("/v1/embeddings", spoken, "messages"),
        ("/v1/rerank", {"query": "q", "documents": [image]}, "documents[0]"),
        ("/v1/rerank", {"query": image, "documents": ["d"]}, "query"),
        ("/v1/score", {"queries": "q", "documents": {"content": [image]}}, "documents"),
        ("/v1/completions", {"prompt": [image]}, "prompt[0]"),
    ]
