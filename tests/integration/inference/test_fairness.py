"""The inference service when its engine is the bottleneck: the simulated engine with its slots full, over gRPC."""

from __future__ import annotations

from pathlib import Path

from naru.api.common.v1 import error_reason_pb2
from naru.api.inference.v1 import generation_pb2
from naru.convert import principal_to_proto
from naru.identity import Principal
from tests.support.generation_bench import eventually
from tests.support.inference_service import EdgeSession, Frames, cancel, generation, inference_service, submit

SLOTS, FLOOD = 4, 100


def of(workspace: str, number: int, max_tokens: int = 20) -> generation_pb2.Generation:
    """A chat of a workspace; `number` is its event's and its stream's."""
    made = generation(number, chat=chat(max_tokens))
    made.principal.CopyFrom(principal_to_proto(Principal(workspace, key_id="abcdefghijkl")))
    return made


def chat(max_tokens: int) -> generation_pb2.ChatInput:
    """A question, and how long its answer is."""
    sampling = generation_pb2.SamplingParameters(max_tokens=max_tokens)
    message = generation_pb2.ChatMessage(role="user", content="Hello there.")
    return generation_pb2.ChatInput(messages=[message], sampling=sampling)


def accepted(frames: Frames) -> list[int]:
    """The streams that the engine was given, in that order."""
    return [frame.stream_id for frame in frames if frame.WhichOneof("event") == "accepted"]


async def flood(session: EdgeSession, requests: int = FLOOD) -> None:
    """One workspace fills the slots and has so many requests more; returns when the first answers have begun."""
    for number in range(1, SLOTS + requests + 1):
        # Of different lengths, so that the slots do not all become free at the same time.
        await session.send(submit(number, of("flood", number, 15 + number % 10)))
    await session.read_until(lambda frames: {f.stream_id for f in frames if f.HasField("delta")} >= {1, 2, 3, 4})


async def test_a_hundred_waiting_delay_another_workspace_by_one_request_at_most(tmp_path: Path) -> None:
    """Whoever comes while one workspace floods is given the next slot, again and again."""
    async with (
        inference_service(tmp_path, simulated_slots=SLOTS, simulated_tokens_per_second=100.0) as service,
        service.session() as session,
    ):
        await flood(session)
        assert accepted(session.frames()) == [1, 2, 3, 4]
        for number in range(1001, 1006):
            # One that is refused at once shows where in the order of events the other one came.
            marker = number + 1000
            both = submit(marker, generation(marker, event_id="none"))
            both.MergeFrom(submit(number, of("other", number)))
            await session.send(both)
            frames = await session.read_until(lambda frames: number in accepted(frames))  # noqa: B023 -- called at once
            came = next(i for i, frame in enumerate(frames) if frame.stream_id == marker and frame.HasField("refused"))
            assert accepted(frames[came:]).index(number) <= 1
            await session.read_until(lambda _: session.frames(number)[-1].HasField("finished"))  # noqa: B023 -- called at once
        assert len(accepted(session.frames())) < FLOOD


async def test_waiting_requests_are_load_and_leave_without_a_trace(tmp_path: Path) -> None:
    """The edge hears of them as load; cancelled, they were never in the engine and are billed nothing."""
    async with (
        inference_service(tmp_path, simulated_slots=SLOTS, simulated_tokens_per_second=4.0) as service,
        service.session() as session,
    ):
        await flood(session, requests=20)
        while session.messages[-1].load.requests != SLOTS + 20:
            assert await session.read() is not None
        # Those first that wait: a slot that is free would be taken at once.
        for number in range(SLOTS + 20, 0, -1):
            await session.send(cancel(number))
        frames = await session.read_until(lambda frames: sum(f.HasField("finished") for f in frames) == SLOTS)
        refused = {frame.stream_id: frame.refused.error.reason for frame in frames if frame.HasField("refused")}
        assert set(refused.values()) == {error_reason_pb2.ERROR_REASON_CANCELLED}
        assert set(refused) == set(range(SLOTS + 1, SLOTS + 21))
        await eventually(lambda: len(service.events) == SLOTS)
        assert (len(refused), session.messages[-1].load.requests) == (20, 0)


async def test_a_stop_sends_those_away_that_wait(tmp_path: Path) -> None:
    """What runs ends as it would have, what waits hears at once that it should go elsewhere."""
    async with inference_service(tmp_path, simulated_slots=SLOTS, shutdown_grace=10.0) as service:
        session_of = service.session()
        session = await session_of.__aenter__()
        await flood(session, requests=3)
    try:
        while await session.read() is not None:
            pass
        refused = [frame for frame in session.frames() if frame.HasField("refused")]
        assert {frame.stream_id for frame in refused} == {5, 6, 7}
        assert {frame.refused.error.reason for frame in refused} == {error_reason_pb2.ERROR_REASON_SERVICE_UNAVAILABLE}
        finished = [frame.finished for frame in session.frames() if frame.HasField("finished")]
        assert [one.outcome for one in finished] == [generation_pb2.FINISH_OUTCOME_COMPLETED] * SLOTS
        assert len(service.events) == SLOTS
    finally:
        await session_of.__aexit__(None, None, None)
