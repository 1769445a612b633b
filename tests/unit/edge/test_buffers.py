"""Streams between reader and handler, and reports that travel together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from edge.generation import (
    Accepted,
    BrokenGeneration,
    Delta,
    Endpoint,
    Finished,
    FinishOutcome,
    GenerationRequest,
    Refused,
    SessionLost,
    ToolCallDelta,
)
from edge.shipping import Shipper
from edge.streams import ReplicaStream, StreamLimits
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal
from naru.testing.clock import FakeClock
from naru.usage import Usage

ACCEPTED = Accepted("m", 7, 2, 1.0)
REQUEST = GenerationRequest(
    event_id="e",
    attempt=0,
    principal=Principal(workspace_id="w"),
    reserved_prompt_tokens=1,
    output_token_cap=None,
    timeout=1.0,
    traceparent="",
    request_id="r",
    model="m",
    requested_model="m",
    stream=True,
    endpoint=Endpoint.CHAT_COMPLETIONS,
    body=b"",
)


class Heard:
    """Records what a stream tells the world."""

    def __init__(self) -> None:
        self.brokens: list[BrokenGeneration] = []
        self.refusals: list[GenerationRequest] = []
        self.ended = 0
        self.interruptions: list[NaruError] = []

    def broken(self, broken: BrokenGeneration) -> None:
        self.brokens.append(broken)

    def refused(self, request: GenerationRequest) -> None:
        self.refusals.append(request)

    def end(self, _: ReplicaStream) -> None:
        self.ended += 1


def stream(heard: Heard, **limits: float) -> ReplicaStream:
    opened = ReplicaStream(
        1,
        "a",
        REQUEST,
        limits=StreamLimits(**limits),
        watcher=heard,
        end=heard.end,
        soon=asyncio.get_running_loop().call_soon,
        now=0.0,  # type: ignore[arg-type] # by name
    )
    opened.on_interrupt(heard.interruptions.append)
    return opened


async def test_all_that_came_is_delivered_together() -> None:
    """What came between two reads is read at once, in order."""
    opened = stream(Heard())
    reading = asyncio.create_task(opened.receive())
    await asyncio.sleep(0)
    events = [ACCEPTED, Delta(0, "a", 1), Delta(1, "b", 1)]
    for event in events:
        opened.put(event, 0.0)
    assert list(await reading) == events
    opened.put(Delta(0, "c", 2), 0.0)
    assert [event.text for event in await opened.receive() if isinstance(event, Delta)] == ["c"]


async def test_lost_after_what_came() -> None:
    """What came before the loss is delivered first; the evidence counts every choice's tokens."""
    heard = Heard()
    opened = stream(heard)
    opened.written = True
    for event in (ACCEPTED, Delta(0, "a", 3), Delta(1, "b", 4), Delta(0, "c", 5)):
        opened.put(event, 0.0)
    opened.lose(99.0)
    assert len(await opened.receive()) == 4
    with pytest.raises(SessionLost) as lost:
        await opened.receive()
    assert lost.value.written
    assert heard.brokens == [BrokenGeneration(REQUEST, ACCEPTED, 9, 99.0)]


async def test_evidence_outlives_the_handler() -> None:
    """A request that its client gave up is reported too when its replica dies; one that ended is not."""
    heard = Heard()
    opened = stream(heard)
    opened.put(ACCEPTED, 0.0)
    opened.close()
    opened.put(Delta(0, "a", 3), 0.0)
    opened.lose(1.0)
    assert [broken.completion_tokens for broken in heard.brokens] == [3]
    opened = stream(heard)
    opened.put(ACCEPTED, 0.0)
    opened.put(Finished(FinishOutcome.COMPLETED, Usage()), 0.0)
    opened.lose(1.0)
    assert len(heard.brokens) == 1


async def test_refused_after_the_handler_left() -> None:
    """A refusal that nobody waits for any more still gives the reservation back."""
    heard = Heard()
    opened = stream(heard)
    opened.close()
    opened.close()
    opened.put(Refused(unavailable("inference")), 0.0)
    assert heard.refusals == [REQUEST]
    assert heard.ended == 1


@pytest.mark.parametrize(
    "delta",
    [
        Delta(0, "x" * 500, 1),
        Delta(0, "", 1, reasoning="x" * 500),
        Delta(0, "", 1, tool_calls=(ToolCallDelta(0, arguments="x" * 500),)),
    ],
)
async def test_full_buffer_cuts(delta: Delta) -> None:
    """More than the buffer holds, of whatever, ends the request, drops what waits, and stops the handler."""
    heard = Heard()
    opened = stream(heard, buffer_bytes=1_000)
    opened.put(delta, 0.0)
    assert heard.ended == 0
    opened.put(delta, 0.0)
    assert heard.ended == 1
    assert [error.reason for error in heard.interruptions] == [Reason.CANCELLED]
    with pytest.raises(NaruError):
        await opened.receive()


async def test_reader_that_waits_is_not_slow() -> None:
    """However much one step brings, a reader that waits for it gets it all."""
    heard = Heard()
    opened = stream(heard, buffer_bytes=1_000)
    reading = asyncio.create_task(opened.receive())
    await asyncio.sleep(0)
    for tokens in (1, 2, 3):
        opened.put(Delta(0, "x" * 500, tokens), 0.0)
    assert len(await reading) == 3
    assert heard.ended == 0
    for tokens in (4, 5):
        opened.put(Delta(0, "x" * 500, tokens), 0.0)
    assert heard.ended == 1


async def test_unread_for_too_long_cuts() -> None:
    """Something that waits for longer than the limit ends the request; reading starts the time anew."""
    heard = Heard()
    opened = stream(heard, stall=30.0)
    opened.put(Delta(0, "a", 1), 0.0)
    opened.tick(29.0)
    await opened.receive()
    opened.put(Delta(0, "b", 2), 29.0)
    opened.tick(58.0)
    assert heard.ended == 0
    opened.tick(59.0)
    assert heard.ended == 1


async def test_reader_that_does_not_come_back_cuts() -> None:
    """A reader that took all there was, the end included, and is stuck with it for too long is stopped as well."""
    heard = Heard()
    opened = stream(heard, stall=30.0)
    opened.put(Delta(0, "a", 1), 0.0)
    await opened.receive()
    opened.tick(1.0)
    opened.put(Finished(FinishOutcome.COMPLETED, Usage()), 2.0)
    await opened.receive()
    for now in (3.0, 32.0):
        opened.tick(now)
    assert heard.ended == 0
    opened.tick(33.0)
    assert [error.reason for error in heard.interruptions] == [Reason.CANCELLED]


async def test_silence_wakes_the_reader() -> None:
    """After the keep-alive time the reader gets nothing, and then waits on."""
    opened = stream(Heard(), keep_alive=15.0)
    reading = asyncio.create_task(opened.receive())
    await asyncio.sleep(0)
    opened.tick(14.0)
    await asyncio.sleep(0)
    assert not reading.done()
    opened.tick(15.0)
    assert list(await reading) == []


async def test_shipper_tries_again_and_gives_up() -> None:
    """What cannot be sent is sent again in order, until it is too old; what does not fit is dropped and counted."""
    clock, sent, dropped = FakeClock(), [], []
    failing = True

    async def send(items: Sequence[int]) -> None:
        if failing:
            raise unavailable("accounting")
        sent.append(list(items))

    shipper = Shipper("things", send, clock, interval=0.0, most=2, capacity=3, max_age=10.0, dropped=dropped.append)
    for number in range(5):
        shipper.put(number)
    assert dropped == [1, 1]
    await shipper.flush()
    clock.advance(11)
    shipper.put(9)
    assert dropped == [1, 1, 1]
    failing = False
    await shipper.flush()
    assert sent == []
    assert sum(dropped) == 6
    shipper.put(10)
    shipper.put(11)
    shipper.put(12)
    running = asyncio.create_task(shipper.run())
    async with asyncio.timeout(20):
        while len(sent) < 2:
            await asyncio.sleep(0.001)
    assert sent == [[10, 11], [12]]
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
