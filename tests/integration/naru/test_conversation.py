"""Several questions at a time over one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from naru.api.accounting.v1 import quota_service_pb2, quota_service_pb2_grpc
from naru.client import ServiceClient
from naru.conversation import Conversation
from naru.errors import NaruError, Reason

RESERVE_SESSION = "/naru.api.accounting.v1.QuotaService/ReserveSession"
Talk = Conversation[quota_service_pb2.ReserveSessionRequest, quota_service_pb2.ReserveSessionResponse]
_PATIENCE = 5.0


class _Echo(quota_service_pb2_grpc.QuotaServiceServicer):
    """Answers a question by its trace's name once it is let; ends a stream when asked to break."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.going.set()
        self.heard: list[str] = []
        self.streams = 0

    async def ReserveSession(
        self, request_iterator: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[quota_service_pb2.ReserveSessionResponse]:
        self.streams += 1
        async for message in request_iterator:
            self.heard.append(message.traceparent)
            _ = await self.going.wait()
            if message.traceparent == "break":
                await context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
            result = quota_service_pb2.ReserveResult(event_id=message.traceparent)
            yield quota_service_pb2.ReserveSessionResponse(reserved=quota_service_pb2.ReserveResponse(results=[result]))


@asynccontextmanager
async def _talking() -> AsyncIterator[tuple[_Echo, Talk]]:
    server, echo = grpc.aio.server(), _Echo()
    quota_service_pb2_grpc.add_QuotaServiceServicer_to_server(echo, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    client = ServiceClient(f"127.0.0.1:{port}", name="accounting")
    try:
        yield echo, Conversation(client, RESERVE_SESSION, quota_service_pb2.ReserveSessionResponse)
    finally:
        await client.close()
        await server.stop(0)


async def _ask(talk: Talk, name: str, timeout: float = _PATIENCE) -> str:
    answer = await talk.ask(quota_service_pb2.ReserveSessionRequest(traceparent=name), timeout=timeout)
    return answer.reserved.results[0].event_id


async def test_questions_are_heard_in_order_and_each_gets_its_own_answer() -> None:
    """Nobody waits for the answers before to ask; all go over one stream."""
    async with _talking() as (echo, talk):
        names = [str(number) for number in range(50)]
        assert await asyncio.gather(*(_ask(talk, name) for name in names)) == names
        assert echo.heard == names
        assert echo.streams == 1


async def test_the_next_question_is_heard_before_the_answer_is_there() -> None:
    """It is on its way meanwhile, and is answered after the one before."""
    async with _talking() as (echo, talk):
        echo.going.clear()
        asked = [asyncio.create_task(_ask(talk, name)) for name in ("first", "second")]
        async with asyncio.timeout(_PATIENCE):
            while echo.heard != ["first"]:
                await asyncio.sleep(0.01)
        assert not any(task.done() for task in asked)
        echo.going.set()
        assert await asyncio.gather(*asked) == ["first", "second"]


@pytest.mark.parametrize("leaving", [0, 1])
async def test_who_goes_away_ends_the_stream_for_those_that_wait(leaving: int) -> None:
    """They are told that the service is away, and are not cancelled; whoever asks next gets their own answer."""
    async with _talking() as (echo, talk):
        echo.going.clear()
        asked = [asyncio.create_task(_ask(talk, name)) for name in ("first", "second")]
        while not echo.heard:
            await asyncio.sleep(0.01)
        _ = asked[leaving].cancel()
        gone, told = await asyncio.gather(asked[leaving], asked[1 - leaving], return_exceptions=True)
        assert isinstance(gone, asyncio.CancelledError)
        assert isinstance(told, NaruError)
        assert told.reason is Reason.SERVICE_UNAVAILABLE
        echo.going.set()
        assert await _ask(talk, "third") == "third"
        assert echo.streams == 2


async def test_who_gives_up_ends_the_stream_for_those_that_wait() -> None:
    """A question that is not answered in time takes the others along, as its answer may still come."""
    async with _talking() as (echo, talk):
        assert await _ask(talk, "first") == "first"
        echo.going.clear()
        late, other = await asyncio.gather(_ask(talk, "late", timeout=1.0), _ask(talk, "other"), return_exceptions=True)
        assert isinstance(late, NaruError)
        assert late.reason is Reason.DEADLINE_EXCEEDED
        assert isinstance(other, NaruError)
        assert other.reason is Reason.SERVICE_UNAVAILABLE
        echo.going.set()
        assert await asyncio.gather(_ask(talk, "a"), _ask(talk, "b")) == ["a", "b"]


async def test_who_gives_up_cancels_nobody_that_still_writes() -> None:
    """What is too much for the server to have taken it yet goes to the next stream, and is answered there."""
    large = "x" * 3_500_000
    async with _talking() as (echo, talk):
        assert await _ask(talk, "first") == "first"
        echo.going.clear()
        late = asyncio.create_task(_ask(talk, "late", timeout=1.0))
        while echo.heard != ["first", "late"]:
            await asyncio.sleep(0.01)
        others = [asyncio.create_task(_ask(talk, large, timeout=60.0)) for _ in range(8)]
        with pytest.raises(NaruError) as told:
            await late
        assert told.value.reason is Reason.DEADLINE_EXCEEDED
        echo.going.set()
        # The server may have taken the first of them, of which nobody knows what became.
        outcomes = await asyncio.gather(*others, return_exceptions=True)
        assert not any(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert outcomes[-1] == large


async def test_a_broken_stream_fails_what_waits_and_nothing_that_is_asked_after() -> None:
    """What was being written then is asked again on the next stream, which whoever hears of the end late does not end."""
    async with _talking() as (_, talk):
        for _ in range(50):
            asked = [asyncio.create_task(_ask(talk, name)) for name in ("break", "one", "two")]
            _ = await asyncio.wait(asked[:1])
            after = [asyncio.create_task(_ask(talk, name)) for name in ("x", "y")]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            for name, outcome in zip(("break", "one", "two"), outcomes, strict=True):
                if isinstance(outcome, NaruError):
                    assert outcome.reason is Reason.SERVICE_UNAVAILABLE
                else:
                    assert outcome == name != "break"
            assert await asyncio.gather(*after) == ["x", "y"]
