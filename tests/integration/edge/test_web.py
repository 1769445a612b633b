"""What holds for every HTTP request: headers, limits, hosts, origins, documents, and errors of HTTP itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.edge_harness import KEY, Harness, edge_with_peers, until
from tests.support.fake_inference import MODEL

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
PATH = "/v1/chat/completions"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(
        tmp_path,
        max_body_bytes=100_000,
        cors_origins=("https://chat.example.com",),
        trusted_proxies=("127.0.0.0/8",),
    ) as harness:
        yield harness


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/models", 401),
        ("GET", "/nothing/here", 404),
        ("GET", PATH, 405),
        ("GET", "/healthz", 200),
        ("GET", "/docs", 200),
    ],
)
async def test_every_response_has_the_headers(edge: Harness, method: str, path: str, status: int) -> None:
    """Security headers and a request id are on every response, errors included; errors are in OpenAI's shape."""
    async with edge.http.request(method, edge.url + path) as answer:
        assert answer.status == status
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Server"] == "naru"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Cache-Control"] == "no-store"
        assert re.fullmatch(r"req_[0-9a-f]{32}", answer.headers["X-Request-Id"])
        if status >= 400:
            assert set((await answer.json())["error"]) == {"message", "type", "param", "code"}


async def test_stream_has_the_headers_too(edge: Harness) -> None:
    """A stream tells its request id, how long things took, and is not cached or buffered."""
    async with edge.post(PATH, CHAT | {"stream": True}, headers={"Origin": "https://chat.example.com"}) as answer:
        await answer.read()
        headers = answer.headers
    assert headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert headers["X-Request-Id"].startswith("req_")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert int(headers["OpenAI-Processing-Ms"]) >= 0
    assert re.fullmatch(r"auth;dur=[\d.]+, reserve;dur=[\d.]+, first;dur=[\d.]+", headers["Server-Timing"])
    assert headers["Access-Control-Allow-Origin"] == "https://chat.example.com"


async def test_malformed_request_id_is_replaced(edge: Harness) -> None:
    """A client's request id is kept only when it is well formed."""
    async with edge.get("/v1/models", headers={"X-Request-Id": "bad id;"}) as answer:
        assert answer.headers["X-Request-Id"].startswith("req_")


async def test_body_limit(edge: Harness) -> None:
    """A body over the limit is 413, whether its length is announced or not."""
    body = {**CHAT, "pad": "x" * 100_000}
    async with edge.post(PATH, body) as answer:
        assert answer.status == 413
        assert (await answer.json())["error"]["code"] == "payload_too_large"

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    async with edge.http.post(edge.url + PATH, data=chunks(), headers={"Authorization": f"Bearer {KEY}"}) as answer:
        assert answer.status == 413


async def test_slow_body(tmp_path: Path) -> None:
    """A body that does not come in time is 408."""
    async with edge_with_peers(tmp_path, body_timeout=0.2) as edge:
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{".encode()
        )
        head = await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"x-request-id: req_" in head.lower()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 9_000 + b"\r\n\r\n", b"431"),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"431"),
        (b"nonsense\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request(edge: Harness, request_bytes: bytes, status: bytes) -> None:
    """Too long headers and what is not HTTP are answered in OpenAI's shape too, and tell nothing of the inside."""
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(request_bytes)
    answer = await reader.read()
    writer.close()
    assert answer.split()[1] == status
    assert b'{"error":{"message":' in answer
    assert b"nosniff" in answer
    assert b"xxxx" not in answer


@pytest.mark.parametrize(("path", "status"), [("/healthz", 200), ("/v1/models", 401), ("/nothing/here", 404)])
async def test_what_is_expected_changes_nothing(edge: Harness, path: str, status: int) -> None:
    """A client is told to go on if it wants to hear that; whatever else it expects, it gets the ordinary answer."""
    for expected in ("x", "100-Continue, x", "100-Continue"):
        reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nExpect: {expected}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        if expected == "100-Continue":
            told, _, answer = answer.partition(b"\r\n\r\n")
            assert told == b"HTTP/1.1 100 Continue"
        assert answer.split()[1] == str(status).encode()
        assert b"X-Request-Id: req_" in answer


async def test_cors(edge: Harness) -> None:
    """A page of a listed origin may call, others may not."""
    asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": asked}
    async with edge.http.options(edge.url + PATH, headers=ask | {"Origin": "https://chat.example.com"}) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Origin"] == "https://chat.example.com"
        assert answer.headers["Access-Control-Allow-Headers"] == asked
        assert answer.headers["Vary"] == "Origin"
    async with edge.get("/v1/models", headers={"Origin": "https://chat.example.com"}) as answer:
        exposed = answer.headers["Access-Control-Expose-Headers"].lower()
    told = {"retry-after", "x-should-retry", "x-ratelimit-remaining-minute", "anthropic-ratelimit-input-tokens-reset"}
    assert told <= set(exposed.split(", "))
    async with edge.http.options(edge.url + PATH, headers=ask | {"Origin": "https://evil.example"}) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with edge.get("/v1/models", headers={"Origin": "https://evil.example"}) as answer:
        assert answer.status == 200
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_cors_is_off_by_default(tmp_path: Path) -> None:
    """Without configuration no origin is allowed."""
    async with (
        edge_with_peers(tmp_path) as edge,
        edge.get("/v1/models", headers={"Origin": "https://chat.example.com"}) as answer,
    ):
        assert answer.status == 200
        assert "Access-Control-Allow-Origin" not in answer.headers


async def test_trusted_hosts(tmp_path: Path) -> None:
    """Only requests for the configured hosts are answered."""
    async with edge_with_peers(tmp_path, trusted_hosts=("api.example.com", "*.corp.example", "127.0.0.1")) as edge:
        for host, status in (
            ("api.example.com", 200),
            ("API.example.com:8000", 200),
            ("llm.corp.example", 200),
            ("corp.example", 400),
            ("evilcorp.example", 400),
            ("other.example", 400),
        ):
            async with edge.http.get(edge.url + "/healthz", headers={"Host": host}) as answer:
                assert (host, answer.status) == (host, status)


async def test_client_address_comes_through_trusted_proxies(edge: Harness) -> None:
    """The address that limits see is the one that the trusted proxy heard from."""
    async with edge.post(PATH, CHAT, headers={"X-Forwarded-For": "6.6.6.6, 198.51.100.7"}) as answer:
        assert answer.status == 200
    assert edge.accounting.reserved[0].client_address == "198.51.100.7"


async def test_documents(edge: Harness) -> None:
    """/openapi.json covers every route; /docs needs nothing from elsewhere and says so in its policy."""
    async with edge.http.get(edge.url + "/openapi.json") as answer:
        document = await answer.json()
    assert document["openapi"] == "3.1.0"
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/api/chat", "/health", "/metrics"} <= set(
        document["paths"]
    )
    async with edge.http.get(edge.url + "/docs") as answer:
        page = await answer.text()
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http://" not in page
    assert "https://" not in page


async def test_metrics(edge: Harness) -> None:
    """Requests are counted by endpoint and status, on both listeners."""
    async with edge.post(PATH, CHAT | {"stream": True}) as answer:
        await answer.read()
    counted = f'http_requests_total{{endpoint="{PATH}",status="200"}} 1.0'
    for url in (edge.url, f"http://127.0.0.1:{edge.ops_port}"):
        async with edge.http.get(url + "/metrics") as answer:
            text = await answer.text()
        assert counted in text
        assert "naru_edge_time_to_first_token_seconds_count" in text


async def test_metrics_can_be_kept_from_the_main_port(tmp_path: Path) -> None:
    """An operator may keep metrics to the ops listener."""
    async with edge_with_peers(tmp_path, metrics_public=False) as edge:
        async with edge.http.get(edge.url + "/metrics") as answer:
            assert answer.status == 404
        async with edge.http.get(f"http://127.0.0.1:{edge.ops_port}/metrics") as answer:
            assert answer.status == 200


async def test_fault_of_ours_tells_nothing(edge: Harness) -> None:
    """An unexpected exception is a 500 with an incident id and without its text."""

    def broken(_: Any) -> Any:
        raise RuntimeError("secret detail")

    edge.accounting.decide = broken
    async with edge.post(PATH, CHAT) as answer:
        text = await answer.text()
        assert answer.status == 500
    assert "secret" not in text
    assert "incident" in text
    await until(lambda: edge.accounting.records)
