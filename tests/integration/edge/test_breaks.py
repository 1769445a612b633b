"""Clients that go away or do not read, replicas that die, time that runs out, and a server that stops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from naru.api.accounting.v1 import usage_event_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.api.inference.v1 import generation_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError, Reason, unavailable
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until
from tests.support.fake_inference import MODEL, Event, accepted, delta, finished, refused
from tests.support.service_tokens import EDGE_TOKENS

pytestmark = pytest.mark.faults

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
STREAM = CHAT | {"stream": True}
PATH = "/v1/chat/completions"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path) as harness:
        yield harness


async def endless(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
    yield [accepted()]
    yield [delta("one", 1)]
    yield [delta(" two", 2)]
    await asyncio.Event().wait()


async def never_accepted(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
    await asyncio.Event().wait()
    yield []


async def accepted_and_silent(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
    yield [accepted()]
    await asyncio.Event().wait()


async def test_a_session_port_that_cannot_be_reached_is_done_without(tmp_path: Path) -> None:
    """A replica may name one that a firewall closes: its sessions are where its calls are then."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        async with edge_with_peers(tmp_path) as edge:
            edge.inference.session_port = taken.getsockname()[1]
            await edge.inference.kill()
            await edge.inference.start(EDGE_TOKENS, edge.inference.port)
            await until(lambda: edge.inference.sessions > 1)
            async with edge.post(PATH, CHAT) as response:
                assert response.status == 200


def error_event(text: str) -> dict[str, Any]:
    """The error of a stream that broke; it must be the last event but [DONE]."""
    events = text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    error: dict[str, Any] = json.loads(events[-2].removeprefix("data: "))["error"]
    return error


@pytest.mark.parametrize("body", [STREAM, CHAT], ids=["stream", "whole"])
async def test_disconnect_cancels(edge: Harness, body: dict[str, Any]) -> None:
    """A client that hangs up, streaming or waiting, has its generation cancelled at once; inference meters it."""
    edge.inference.behave = endless
    request = asyncio.create_task(edge.http.request("POST", edge.url + PATH, json=body, headers=bearer()))
    await until(lambda: edge.inference.submitted)
    if body is STREAM:
        answer = await request
        assert await answer.content.readany()
        answer.close()
    else:
        request.cancel()
    await until(lambda: edge.inference.cancelled)
    assert edge.inference.cancelled == [edge.inference.submitted[0].event_id]
    assert edge.accounting.released == []
    assert edge.accounting.usage == []
    await until(lambda: edge.accounting.records)
    assert edge.accounting.records[0].status == (200 if body is STREAM else 499)


async def test_replica_dies_mid_stream(edge: Harness) -> None:
    """The client gets an error event; accounting gets the tokens that were delivered, also if it must be told twice."""
    edge.inference.behave = endless
    edge.accounting.failing_usage_calls = 2
    async with edge.post(PATH, STREAM) as answer:
        await read_until(answer, b" two")
        await edge.inference.kill()
        rest = (await answer.read()).decode()
    assert error_event(rest)["code"] == "service_unavailable"
    await until(lambda: edge.accounting.usage)
    event = edge.accounting.usage[0]
    assert event.evidence == usage_event_pb2.EVIDENCE_DELIVERED
    assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (7, 2)
    assert (event.event_id, event.attempt) == (edge.accounting.reserved[0].event_id, 0)
    assert event.principal.key_id == PRINCIPAL.key_id
    assert edge.accounting.released == []


async def test_replica_dies_mid_answer(edge: Harness) -> None:
    """A client that waits for a whole answer gets a real 503."""
    edge.inference.behave = endless
    request = asyncio.create_task(status_and_code(edge, CHAT))
    await until(lambda: edge.inference.submitted)
    await asyncio.sleep(0.05)
    await edge.inference.kill()
    assert await request == (503, "service_unavailable")


async def test_fault_mid_stream_is_an_error_event(edge: Harness) -> None:
    """A fault of ours after the answer began ends the stream with an incident id, not with a second HTTP response."""

    async def wrong_choice(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        yield [delta("one", 1)]
        yield [delta("two", 1, choice=5)]
        await asyncio.Event().wait()

    edge.inference.behave = wrong_choice
    status, text = await whole(edge, STREAM)
    assert status == 200
    error = error_event(text)
    assert error["code"] == "internal_error"
    assert "incident" in error["message"]
    assert "HTTP/1.1" not in text
    await until(lambda: edge.inference.cancelled)
    await until(lambda: edge.accounting.records)
    record = edge.accounting.records[0]
    assert (record.status, record.reason) == (200, error_reason_pb2.ERROR_REASON_INTERNAL)


async def test_reconnects(edge: Harness) -> None:
    """A replica that comes back is used again without anybody doing anything."""
    port = edge.inference.port
    await edge.inference.kill()
    await edge.inference.start(EDGE_TOKENS, port)
    await until(lambda: edge.inference.sessions == 2, 10.0)
    assert await status_and_code(edge, CHAT) == (200, None)


@pytest.mark.parametrize("behaviour", [never_accepted, accepted_and_silent])
async def test_other_replica_takes_over_before_the_first_token(tmp_path: Path, behaviour: Any) -> None:
    """A replica lost before the first token: one new attempt elsewhere, with a reservation of its own."""
    async with edge_with_peers(tmp_path, replicas=2) as edge:
        for replica in edge.replicas:
            replica.behave = behaviour
        request = asyncio.create_task(whole(edge, STREAM))
        await until(lambda: any(replica.submitted for replica in edge.replicas))
        first, second = sorted(edge.replicas, key=lambda replica: -len(replica.submitted))
        second.behave = type(second)().behave
        await first.kill()
        status, text = await request
        assert status == 200
        assert "Paris" in text
        assert "error" not in text
        assert [(r.attempt, r.revision) for r in edge.accounting.reserved] == [(0, 0), (1, 0)]
        assert [g.attempt for g in second.submitted] == [1]
        assert edge.accounting.released == []


async def test_busy_replica_is_passed_over(tmp_path: Path) -> None:
    """A replica that refuses because it stops is not the last word: another one gets the same attempt."""

    async def stopping(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [refused(unavailable("inference"))]

    async with edge_with_peers(tmp_path, replicas=2) as edge:
        edge.replicas[0].behave = stopping
        for _ in range(2):
            assert (await status_and_code(edge, CHAT)) == (200, None)
        assert len(edge.replicas[0].submitted) >= 1
        assert len(edge.accounting.reserved) == 2
        assert edge.accounting.released == []


async def test_one_of_two_replicas_is_enough(tmp_path: Path) -> None:
    """With one away the edge is degraded, says which one it is, and serves; with both it is down."""
    async with edge_with_peers(tmp_path, replicas=2) as edge:

        async def health() -> tuple[int, str]:
            async with edge.http.get(edge.url + "/health") as answer:
                return answer.status, (await answer.json())["status"]

        for replica, state in zip(edge.replicas, [(200, "degraded"), (503, "degraded")], strict=True):
            await replica.kill()
            async with asyncio.timeout(20):
                while await health() != state:
                    await asyncio.sleep(0.02)
            for _ in range(3):
                assert (await status_and_code(edge, CHAT))[0] == state[0]


async def test_slow_reader_is_cut_alone(tmp_path: Path) -> None:
    """A client that does not read loses its request; another on the same session is not held up."""

    async def flood(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        if generation.request_id != "slow":
            yield [delta("quick", 1, finish="stop"), finished()]
            return
        for tokens in range(1, 2_000):
            yield [delta("x" * 10_000, tokens)]
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    async with edge_with_peers(tmp_path, stream_buffer_bytes=200_000) as edge:
        edge.inference.behave = flood
        reader, writer = await open_unread(edge, "slow")
        await until(lambda: edge.inference.cancelled, 10.0)
        assert (await whole(edge, STREAM))[1].count("quick") == 1
        await until(lambda: {record.request_id for record in edge.accounting.records} > {"slow"})
        writer.close()
        del reader


async def test_stalled_reader_is_cut(tmp_path: Path) -> None:
    """A client that leaves something unread for too long loses its request, however little it is."""

    async def fill(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        for tokens in range(1, 400):
            yield [delta("x" * 20_000, tokens)]
            await asyncio.sleep(0)
        await asyncio.Event().wait()

    async with edge_with_peers(tmp_path, stream_buffer_bytes=100 << 20, stream_stall_seconds=0.3) as edge:
        edge.inference.behave = fill
        _reader, writer = await open_unread(edge, "stalled")
        await until(lambda: edge.inference.cancelled)
        writer.close()


async def test_client_that_does_not_read_the_end_is_cut(tmp_path: Path) -> None:
    """A client that leaves the last of an answer unread is hung up on too, though the engine is long done."""

    async def burst(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(), delta("x" * 6_000_000, 5, finish="stop"), finished()]

    async with edge_with_peers(tmp_path, stream_buffer_bytes=100 << 20, stream_stall_seconds=0.3) as edge:
        edge.inference.behave = burst
        _reader, writer = await open_unread(edge, "stalled")
        await until(lambda: edge.accounting.records)
        assert edge.accounting.records[0].reason == error_reason_pb2.ERROR_REASON_CANCELLED
        writer.close()


async def test_nothing_that_is_left_unread_holds_a_place(tmp_path: Path) -> None:
    """Wherever an answer ends: written but for its last bytes, or handed to the kernel but for what it cannot take."""
    step = 8_192

    async def long(generation: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted()]
        steps = int(generation.request_id)
        for tokens in range(1, steps):
            yield [delta("x" * step, tokens)]
            await asyncio.sleep(0)
        yield [delta("x", steps, finish="stop"), finished()]

    async with edge_with_peers(tmp_path, stream_buffer_bytes=100 << 20, stream_stall_seconds=0.3) as edge:
        edge.inference.behave = long
        clients = [await open_unread(edge, "2000")]
        await until(lambda: edge.accounting.records, 60.0)
        taken = edge.accounting.records[0].response_bytes // step
        clients += [await open_unread(edge, str(taken + more)) for more in range(-24, 4)]
        await until(lambda: len(edge.accounting.records) == len(clients), 60.0)
        for _reader, writer in clients:
            writer.close()


async def test_an_answer_ends_once(tmp_path: Path) -> None:
    """One that is cut off while its last bytes leave gets no second ending, which would look like the next answer."""

    async def burst(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
        yield [accepted(), delta("x" * 7_000_000, 5, finish="stop"), finished()]

    async def read_after_the_stop() -> bytes:
        seen = b""
        await until(edge.lifecycle.stopping.is_set)
        with contextlib.suppress(ConnectionResetError):
            while chunk := await reader.read(1 << 20):
                seen += chunk
        return seen

    async with (
        asyncio.TaskGroup() as tasks,
        edge_with_peers(tmp_path, stream_buffer_bytes=100 << 20, shutdown_grace=0.0) as edge,
    ):
        edge.inference.behave = burst
        reader, writer = await open_unread(edge, "late", "Idempotency-Key: once\r\n")
        # Told just before the last bytes are written.
        await until(lambda: edge.accounting.kept)
        reading = tasks.create_task(read_after_the_stop())
    assert b"Content-Type: text/event-stream" in reading.result()
    assert b"The server is stopping." not in reading.result()
    writer.close()


async def test_time_runs_out(tmp_path: Path) -> None:
    """A request over its time is cancelled: 504 before the answer began, an error event after."""
    async with edge_with_peers(tmp_path, request_timeout=0.1) as edge:
        edge.inference.behave = impatient
        assert await status_and_code(edge, CHAT) == (504, "timeout")
        status, text = await whole(edge, STREAM)
        assert status == 200
        assert error_event(text)["code"] == "timeout"


async def impatient(_: generation_pb2.Generation) -> AsyncIterator[Sequence[Event]]:
    error = error_to_proto(NaruError(Reason.DEADLINE_EXCEEDED, "The time allowed for the request ran out."))
    yield [accepted()]
    yield [delta("so", 1), delta("", 1, finish="abort")]
    yield [finished(outcome=generation_pb2.FINISH_OUTCOME_ABORTED, error=error)]


async def test_stop_ends_long_requests_with_an_error(tmp_path: Path) -> None:
    """When the server stops, short requests end as ever; one that outlasts the grace gets an error event."""
    async with aiohttp.ClientSession() as http:
        async with edge_with_peers(tmp_path, shutdown_grace=0.3) as edge:
            edge.inference.behave = endless
            answer = await http.post(edge.url + PATH, json=STREAM, headers=bearer())
            await read_until(answer, b" two")
            edge.lifecycle.stop()
            async with http.get(edge.url + "/readyz") as ready:
                assert ready.status == 503
        rest = (await answer.read()).decode()
    assert error_event(rest)["code"] == "service_unavailable"
    # What was still waiting to be reported was sent before the process ended.
    assert [record.status for record in edge.accounting.records if record.endpoint == PATH] == [200]
    assert edge.inference.cancelled


async def test_stop_closes_connections_that_are_kept_open(tmp_path: Path) -> None:
    """While the server stops, each answer is the last one of its connection: no client keeps it from ending."""
    async with edge_with_peers(tmp_path, shutdown_grace=5.0) as edge:
        async with edge.post(PATH, CHAT) as answer:
            assert answer.headers.get("Connection") is None
        edge.lifecycle.stop()
        for body in (CHAT, STREAM):
            async with edge.post(PATH, body) as answer:
                assert answer.status == 200
                assert answer.headers["Connection"] == "close"
                await answer.read()


def bearer() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}"}


async def read_until(answer: aiohttp.ClientResponse, mark: bytes) -> None:
    seen = b""
    async with asyncio.timeout(20):
        while mark not in seen:
            seen += await answer.content.readany()


async def whole(edge: Harness, body: dict[str, Any]) -> tuple[int, str]:
    async with edge.post(PATH, body) as answer:
        return answer.status, await answer.text()


async def status_and_code(edge: Harness, body: dict[str, Any]) -> tuple[int, str | None]:
    status, text = await whole(edge, body)
    return status, json.loads(text).get("error", {}).get("code")


async def open_unread(
    edge: Harness, request_id: str, headers: str = ""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Sends a streaming request over a socket with small buffers, and reads nothing."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", edge.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    body = json.dumps(STREAM).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nX-Request-Id: {request_id}\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer
