"""Requests of all kinds, whose answers two versions are to have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"
MOST_BODY_BYTES = 65_536
"""What the edge is told to take."""
_TOKENS = 9
_TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
_SCHEMA = {"type": "json_schema", "json_schema": {"name": "city", "schema": {"type": "object"}}}


@dataclass(frozen=True, slots=True)
class Request:
    """One request; `headers` go before the usual ones, which are the key and the media type."""

    name: str
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)


def requests(model: str) -> Iterator[Request]:
    """All of them, for a model that generates."""
    # First, as nothing is used yet: where other answers differ, so may what is left.
    yield Request("limits", "/api/limits", method="GET")
    yield from _generating(model)
    yield from _refused(model)
    yield from _others(model)


def _generating(model: str) -> Iterator[Request]:
    """What four APIs generate, each in a whole answer and as events."""
    messages = [{"role": "user", "content": "Tell me about ferries, 나루 🙂."}]
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "chat": (CHAT, {}),
        "chat, n=2": (CHAT, {"n": 2}),
        "chat, logprobs": (CHAT, {"logprobs": True, "top_logprobs": 3}),
        "chat, stop": (CHAT, {"max_tokens": 60, "stop": ["a", "e"]}),
        "chat, one token": (CHAT, {"max_tokens": 1}),
        "chat, to its own end": (CHAT, {"max_tokens": 200}),
        "chat, token ids": (CHAT, {"return_token_ids": True}),
        "chat, a seed and a user": (CHAT, {"seed": 7, "user": "somebody", "temperature": 0.3}),
        "chat, tools": (CHAT, {"tools": [_TOOL]}),
        "chat, JSON schema": (CHAT, {"response_format": _SCHEMA}),
        "completions": (COMPLETIONS, {"prompt": "Ferries are"}),
        "completions, two prompts, n=2": (COMPLETIONS, {"prompt": ["Ferries are", "Rivers"], "n": 2}),
        "completions, logprobs": (COMPLETIONS, {"prompt": "Ferries are", "logprobs": 2}),
        "messages": (MESSAGES, {}),
        "messages, stop": (MESSAGES, {"max_tokens": 60, "stop_sequences": ["a"], "system": "Be short."}),
        "responses": (RESPONSES, {"input": "Tell me about ferries."}),
        "responses, instructed": (RESPONSES, {"input": messages, "instructions": "Be short.", "store": False}),
    }
    for name, (path, own) in kinds.items():
        most = "max_output_tokens" if path == RESPONSES else "max_tokens"
        talk = {"messages": messages} if path in (CHAT, MESSAGES) else {}
        body = {"model": model, most: _TOKENS} | talk | own
        yield _post(name, path, body)
        yield _post(f"{name}, streamed", path, body | {"stream": True})
    chat = {"model": model, "messages": messages, "max_tokens": _TOKENS, "stream": True}
    yield _post("chat, usage at the end", CHAT, chat | {"stream_options": {"include_usage": True}})
    everywhere = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    yield _post("chat, usage everywhere", CHAT, chat | everywhere)
    yield _post(
        "completions, usage everywhere", COMPLETIONS, {"model": model, "prompt": "x", "stream": True} | everywhere
    )
    yield _post("chat, cost", CHAT, chat | {"usage": {"include": True}, "stream": False})
    yield _post("chat, by another name", "/chat/stream", {key: value for key, value in chat.items() if key != "stream"})


def _refused(model: str) -> Iterator[Request]:
    chat = {"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": _TOKENS}
    yield Request("a wrong key", CHAT, _json(chat), headers={"Authorization": "Bearer sk-wrong"})
    yield Request("no key", CHAT, _json(chat), headers={"Authorization": ""})
    yield Request("no JSON", CHAT, b'{"model": ')
    yield Request("no object", CHAT, b"[]")
    yield Request("no UTF-8", CHAT, b'{"model": "\xff"}')
    yield Request("not JSON by its media type", CHAT, _json(chat), headers={"Content-Type": "text/plain"})
    # Nothing of it follows: the edge is to say no by its length.
    yield Request("too large", CHAT, headers={"Content-Length": str(MOST_BODY_BYTES + 1)})
    for path in (CHAT, MESSAGES, RESPONSES):
        yield _post(f"an unknown model, {path}", path, chat | {"model": "none", "input": "x"})
    yield _post("an unknown model, streamed", CHAT, chat | {"model": "none", "stream": True})
    yield _post("no model", CHAT, {"messages": chat["messages"]})
    yield _post("no messages", CHAT, {"model": model})
    yield _post("n of 0", CHAT, chat | {"n": 0})
    yield _post("max_tokens of -1", CHAT, chat | {"max_tokens": -1})
    yield _post("max_tokens as text, streamed", CHAT, chat | {"max_tokens": "many", "stream": True})
    yield _post("too long for the context", CHAT, chat | {"max_tokens": 1_000_000})
    yield _post("embeddings of a model that makes none", "/v1/embeddings", {"model": model, "input": "x"})
    yield Request("an unknown path", "/v1/nothing", method="GET")
    yield Request("a wrong method", CHAT, method="GET")


def _others(model: str) -> Iterator[Request]:
    talk = {"model": model, "messages": [{"role": "user", "content": "Two words"}]}
    yield _post("tokenize", "/tokenize", {"model": model, "prompt": "Two words", "return_token_strs": True})
    yield _post("tokenize a chat", "/tokenize", talk)
    yield _post("detokenize", "/detokenize", {"model": model, "tokens": [1, 2, 3]})
    yield _post("count tokens", "/v1/messages/count_tokens", talk)
    yield Request("models", "/v1/models", method="GET")
    yield Request("a model", f"/v1/models/{model}", method="GET")
    yield Request(
        "models, as Anthropic lists them", "/v1/models", method="GET", headers={"anthropic-version": "2023-06-01"}
    )
    yield Request("healthz", "/healthz", method="GET")


def _post(name: str, path: str, body: Mapping[str, Any]) -> Request:
    return Request(name, path, _json(body))


def _json(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body).encode()
