"""The inference service over real gRPC, with an engine that a test commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from naru.api.accounting.v1 import usage_event_pb2
from naru.api.common.v1 import error_pb2, error_reason_pb2, principal_pb2
from naru.api.inference.v1 import generation_pb2, inference_service_pb2_grpc, model_service_pb2, model_service_pb2_grpc
from naru.convert import duration_to_proto
from naru.errors import NaruError, Reason
from naru.identity import Scopes, ServiceName
from tests.support.generation_bench import eventually
from tests.support.inference_service import Frames, cancel, frames_of, generation, inference_service, lasting, submit
from tests.support.scripted_engine import ScriptedEngine

at_either_port = pytest.mark.parametrize("own_port", [False, True], ids=["grpc", "own port"])


def kinds(frames: Frames) -> list[str | None]:
    return [frame.WhichOneof("event") for frame in frames]


def over(count: int = 1) -> Callable[[Frames], bool]:
    return lambda frames: sum(kind in ("finished", "refused") for kind in kinds(frames)) >= count


async def _health(port: int) -> int:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        response = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return int(response.status)


@at_either_port
async def test_a_session_sends_one_message_per_step_for_all_streams(tmp_path: Path, *, own_port: bool) -> None:
    """Two streams: each step's frames come in one message, with the load; both are metered as they were told."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service, service.session(own_port=own_port) as session:
        await session.send(submit(1, generation(1)), submit(2, generation(2)))
        await session.read_until(lambda frames: kinds(frames) == ["accepted", "accepted"])
        for number in range(5):
            for submitted in engine.submitted:
                submitted.emit(str(number))
            message = await session.read()
            assert message is not None
            frames = frames_of(message)
            assert [frame.stream_id for frame in frames] == [1, 2]
            assert [frame.delta.text for frame in frames] == [str(number)] * 2
            assert [frame.delta.completion_tokens for frame in frames] == [number + 1] * 2
            assert message.load.requests == 2
            assert not message.load.draining
        engine.submitted[0].emit("!", finish_reason="stop")
        engine.submitted[1].emit("!", finish_reason="length")
        await session.read_until(over(2))
        for stream in (1, 2):
            frames = session.frames(stream)
            assert kinds(frames) == ["accepted", *["delta"] * 6, "finished"]
            assert "".join(frame.delta.text for frame in frames) == "01234!"
            assert frames[-1].finished.usage.completion_tokens == 6
            assert frames[-1].finished.outcome == generation_pb2.FINISH_OUTCOME_COMPLETED
        await eventually(lambda: len(service.events) == 2)
    for event in service.events:
        assert event.evidence == usage_event_pb2.EVIDENCE_FINAL
        assert event.accuracy == usage_event_pb2.ACCURACY_EXACT
        assert (event.usage.prompt_tokens, event.usage.completion_tokens) == (7, 6)
        assert event.principal == generation().principal
        assert event.replica == "replica-1"
        assert event.epoch
    assert service.accounting.reservations == []


@at_either_port
async def test_a_cancelled_stream_is_metered_to_the_token(tmp_path: Path, *, own_port: bool) -> None:
    """Finished{ABORTED} counts what the engine generated, the event says the same, and a late Cancel is ignored."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service, service.session(own_port=own_port) as session:
        await session.send(submit(1, generation(1)))
        await session.read_until(lambda frames: "accepted" in kinds(frames))
        for _ in range(3):
            engine.submitted[0].emit("x")
        await session.send(cancel(1), cancel(1), cancel(77))
        frames = await session.read_until(over())
        finished = frames[-1].finished
        assert finished.outcome == generation_pb2.FINISH_OUTCOME_ABORTED
        assert finished.usage.completion_tokens == 4
        assert max(frame.delta.completion_tokens for frame in frames) == 4
        await session.send(cancel(1), submit(2, generation(2)))
        await session.read_until(lambda frames: kinds(frames).count("accepted") == 2)
        await eventually(lambda: service.events)
        assert service.events[0].usage == finished.usage
        assert service.events[0].outcome == usage_event_pb2.OUTCOME_ABORTED


@at_either_port
async def test_a_lost_session_is_metered(tmp_path: Path, *, own_port: bool) -> None:
    """The edge goes away: its streams are aborted in the engine, and accounting hears of them."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        async with service.session(own_port=own_port) as session:
            await session.send(submit(1, generation(1)))
            await session.read_until(lambda frames: "accepted" in kinds(frames))
            engine.submitted[0].emit("x")
        await eventually(lambda: engine.submitted[0].cancelled)
        await eventually(lambda: service.events)
        assert service.events[0].usage.completion_tokens == 2


@at_either_port
async def test_a_lost_session_gives_back_what_was_reserved(tmp_path: Path, *, own_port: bool) -> None:
    """The edge goes away while a request of its is being prepared: accounting hears of it before the lease ends."""
    engine = ScriptedEngine()
    engine.prepare_gate.clear()
    async with inference_service(tmp_path, engine) as service:
        async with service.session(own_port=own_port) as session:
            await session.send(submit(1, generation(1)))
            await eventually(lambda: engine.prepared)
        await eventually(lambda: service.accounting.released)
        assert [ref.event_id for ref in service.accounting.released] == [generation(1).event_id]


@at_either_port
async def test_a_duplicate_stream_number_ends_the_session(tmp_path: Path, *, own_port: bool) -> None:
    """The session fails with INVALID_ARGUMENT, its streams are aborted."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service, service.session(own_port=own_port) as session:
        await session.send(submit(1, generation(1)), submit(1, generation(2)))
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            while await session.read() is not None:
                pass
        assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: engine.unfinished_requests() == 0)


async def test_only_the_edge_may_hold_a_session(tmp_path: Path) -> None:
    """A key cannot; nobody without a credential can do anything."""
    async with inference_service(tmp_path, ScriptedEngine()) as service:
        key, _ = service.new_key()
        async with service.client(key=key) as client:
            stub = inference_service_pb2_grpc.InferenceServiceStub(client.channel)
            with pytest.raises(NaruError) as denied:
                # Nothing is written: a write that fails because the call was refused would hide why (grpc/grpc#36066).
                async with client.stream(stub.GenerateSession, None, timeout=5) as messages:
                    await anext(messages)
            assert denied.value.reason is Reason.PERMISSION_DENIED
        with pytest.raises(NaruError) as missing:
            async with service.generate(generation()) as messages:
                await anext(messages)
        assert missing.value.reason is Reason.CREDENTIALS_MISSING


@at_either_port
async def test_bad_requests_are_refused_on_their_stream(tmp_path: Path, *, own_port: bool) -> None:
    """Each names its field; the session and its other streams go on."""
    engine = ScriptedEngine()
    wrong = {
        1: (generation(1, event_id="not a uuid"), "event_id"),
        2: (
            generation(2, text=generation_pb2.TextInput(sampling=generation_pb2.SamplingParameters(temperature=9))),
            "temperature",
        ),
        3: (generation(3, text=generation_pb2.TextInput(sampling=generation_pb2.SamplingParameters(n=0))), "n"),
        4: (generation(4, **lasting(-1.0)), "timeout"),
        5: (generation_pb2.Generation(event_id=generation().event_id, principal=generation().principal), "input"),
        6: (generation_pb2.Generation(event_id=generation().event_id), "principal"),
    }
    async with inference_service(tmp_path, engine) as service, service.session(own_port=own_port) as session:
        await session.send(*(submit(number, bad) for number, (bad, _) in wrong.items()), submit(9, generation(9)))
        await session.read_until(lambda frames: len(frames) == 7)
        for number, (_, field) in wrong.items():
            (frame,) = session.frames(number)
            assert frame.refused.error.reason == error_reason_pb2.ERROR_REASON_INVALID_ARGUMENT
            assert frame.refused.error.metadata["field"] == field
        assert kinds(session.frames(9)) == ["accepted"]


async def test_too_small_a_reservation_is_refused_with_the_figure(tmp_path: Path) -> None:
    """The edge can reserve again and submit the same event on a new stream."""
    async with inference_service(tmp_path, ScriptedEngine()) as service, service.session() as session:
        await session.send(submit(1, generation(1, reserved=3)))
        (frame,) = await session.read_until(over())
        assert frame.refused.prompt_tokens == 7
        await session.send(submit(2, generation(1, reserved=7)))
        await session.read_until(lambda frames: "accepted" in kinds(frames))


async def test_a_direct_call_is_reserved_metered_and_cannot_bill_somebody_else(tmp_path: Path) -> None:
    """Principal, event and reservation of the message are not believed from a caller with a key."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        service.accounting.output_token_cap = 11
        key, owner = service.new_key()
        forged = generation(1, principal=principal_pb2.Principal(key_id="victim", workspace_id="victim"))
        async with service.generate(forged, key=key) as messages:
            accepted = (await anext(messages)).accepted
            assert accepted.event_id
            assert accepted.event_id != forged.event_id
            assert accepted.request_id == "req_1"
            engine.submitted[0].emit("hi", finish_reason="stop")
            assert (await anext(messages)).delta.text == "hi"
            assert (await anext(messages)).finished.outcome == generation_pb2.FINISH_OUTCOME_COMPLETED
            with pytest.raises(StopAsyncIteration):
                await anext(messages)
        assert engine.submitted[0].request.output_token_cap == 11
        (reservation,) = service.accounting.reservations
        assert (reservation.client_address, reservation.choices) == ("127.0.0.1", 1)
        await eventually(lambda: service.events)
        (event,) = service.events
        for paid in (reservation, event):
            assert paid.principal.key_id == owner.key_id
            assert paid.principal.workspace_id == "ws-of-key"
            assert paid.event_id == accepted.event_id
            assert paid.request_id == "req_1"
        assert event.usage.completion_tokens == 1
        await eventually(lambda: [one.event_id for one in service.accounting.finished] == [accepted.event_id])


async def test_what_a_caller_calls_the_model_cannot_keep_usage_from_being_shipped(tmp_path: Path) -> None:
    """Names of megabytes are cut: two events of that size would be more than accounting takes in a message."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        key, _ = service.new_key()
        named = generation(1, requested_model="x" * 5_000_000)
        async with service.generate(named, key=key) as first, service.generate(named, key=key) as second:
            assert (await anext(first)).accepted.event_id != (await anext(second)).accepted.event_id
            for submitted in engine.submitted:
                submitted.emit("hi", finish_reason="stop")
            await eventually(lambda: len(service.events) == 2)
        assert {event.requested_model for event in service.events} == {"x" * 512}


async def test_a_direct_call_over_its_limit_is_refused(tmp_path: Path) -> None:
    """Accounting's refusal is the only message, with its retry delay; the engine hears nothing."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        service.accounting.refusal = error_pb2.Error(
            reason=error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED,
            message="Slow down.",
            retry_delay=duration_to_proto(7.0),
        )
        key, _ = service.new_key()
        async with service.generate(generation(), key=key) as messages:
            (answer,) = [message async for message in messages]
        assert answer.refused.error == service.accounting.refusal
        assert engine.prepared == []


async def test_a_direct_call_that_ends_early_is_cancelled_in_the_engine(tmp_path: Path) -> None:
    """Hanging up frees the engine, and what it had generated is paid."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        key, owner = service.new_key()
        async with service.generate(generation(), key=key) as messages:
            await anext(messages)
            engine.submitted[0].emit("x")
            await anext(messages)
        await eventually(lambda: engine.submitted[0].cancelled)
        await eventually(lambda: service.events)
        assert service.events[0].usage.completion_tokens == 2
        assert service.events[0].principal.key_id == owner.key_id


async def test_scopes_of_a_key_bind_the_model(tmp_path: Path) -> None:
    """A key for other models is refused here too, where no edge stands before it."""
    async with inference_service(tmp_path, ScriptedEngine()) as service:
        key, _ = service.new_key(scopes=Scopes(models=("large-*",)))
        async with service.generate(generation(), key=key) as messages:
            refused = (await anext(messages)).refused
        assert refused.error.reason == error_reason_pb2.ERROR_REASON_PERMISSION_DENIED
        assert service.accounting.reservations == []


async def test_the_edge_may_generate_without_a_session(tmp_path: Path) -> None:
    """Large inputs travel by Generate; the edge's principal, event and reservation are believed there too."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service:
        async with service.generate(generation(5), service=ServiceName.EDGE) as messages:
            assert (await anext(messages)).accepted.event_id == generation(5).event_id
            engine.submitted[0].emit("x", finish_reason="stop")
            await eventually(lambda: service.events)
        assert service.events[0].principal == generation(5).principal
        assert service.accounting.reservations == []


@at_either_port
async def test_a_large_answer_arrives_whole_in_messages_that_fit(tmp_path: Path, *, own_port: bool) -> None:
    """An output larger than a message is spread over several."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service, service.session(own_port=own_port) as session:
        await session.send(submit(1, generation(1, stream=False)))
        await session.read_until(lambda frames: "accepted" in kinds(frames))
        text = "나루" * 1_500_000
        engine.submitted[0].emit(text, finish_reason="stop")
        frames = await session.read_until(over())
        assert "".join(frame.delta.text for frame in frames) == text
        assert max(message.ByteSize() for message in session.messages) <= 4 * 1024 * 1024


async def test_a_session_that_does_not_read_is_closed_and_metered(tmp_path: Path) -> None:
    """Past the bound of its buffer the call ends, its streams are aborted, and other sessions go on."""
    engine = ScriptedEngine()
    async with (
        inference_service(tmp_path, engine, session_buffer_bytes=2_000_000) as service,
        service.session() as stalled,
        service.session() as other,
    ):
        await stalled.send(submit(1, generation(1)))
        await eventually(lambda: engine.submitted)
        await other.send(submit(1, generation(2)))
        await other.read_until(lambda frames: "accepted" in kinds(frames))
        for _ in range(2000):
            engine.submitted[0].emit("x" * 10_000)
            await asyncio.sleep(0)
            if engine.submitted[0].cancelled:
                break
        await eventually(lambda: service.events)
        assert service.events[0].usage.completion_tokens == engine.submitted[0].counts[0]
        with pytest.raises(grpc.aio.AioRpcError):
            while await stalled.read() is not None:
                pass
        engine.submitted[1].emit("x", finish_reason="stop")
        await other.read_until(over())


async def test_models_are_listed_by_page_and_got_by_name(tmp_path: Path) -> None:
    """Pages follow each other; an unknown name is MODEL_NOT_FOUND."""
    engine = ScriptedEngine(models=("small", "large", "medium"))
    async with inference_service(tmp_path, engine) as service, service.client(service=ServiceName.EDGE) as client:
        stub = model_service_pb2_grpc.ModelServiceStub(client.channel)
        names, token = [], ""
        while True:
            request = model_service_pb2.ListModelsRequest(page_size=2, page_token=token)
            page = await client.call(stub.ListModels, request, timeout=5)
            names.append([model.name for model in page.models])
            token = page.next_page_token
            if not token:
                break
        assert names == [["large", "medium"], ["small"]]
        got = await client.call(stub.GetModel, model_service_pb2.GetModelRequest(name="small"), timeout=5)
        assert (got.model.name, got.model.owned_by, got.model.context_tokens) == ("small", "test", 2048)
        with pytest.raises(NaruError) as unknown:
            await client.call(stub.GetModel, model_service_pb2.GetModelRequest(name="gpt-5"), timeout=5)
        assert unknown.value.reason is Reason.MODEL_NOT_FOUND
        with pytest.raises(NaruError) as negative:
            await client.call(stub.ListModels, model_service_pb2.ListModelsRequest(page_size=-1), timeout=5)
        assert negative.value.metadata["field"] == "page_size"


@at_either_port
async def test_a_drain_finishes_refuses_aborts_tells_and_ships(tmp_path: Path, *, own_port: bool) -> None:
    """While stopping: load says so, new streams are refused, one ends by itself, one is aborted, both are shipped."""
    engine = ScriptedEngine()
    stack = AsyncExitStack()
    service = await stack.enter_async_context(inference_service(tmp_path, engine, shutdown_grace=5.0))
    async with service.session(own_port=own_port) as session:
        await session.send(submit(1, generation(1)), submit(2, generation(2)))
        await session.read_until(lambda frames: kinds(frames).count("accepted") == 2)
        stopping = asyncio.create_task(stack.aclose())
        while not session.messages[-1].load.draining:
            assert await session.read() is not None
        await session.send(submit(3, generation(3)))
        await session.read_until(over())
        (late,) = session.frames(3)
        assert late.refused.error.reason == error_reason_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
        engine.submitted[0].emit("bye", finish_reason="stop")
        while await session.read() is not None:
            pass
        assert session.frames(1)[-1].finished.outcome == generation_pb2.FINISH_OUTCOME_COMPLETED
        aborted = session.frames(2)[-1].finished
        assert aborted.outcome == generation_pb2.FINISH_OUTCOME_ABORTED
        assert aborted.error.reason == error_reason_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
        await stopping
        assert len(service.events) == 2
        assert not service.lifecycle.failed


async def test_a_dead_engine_fails_its_requests_and_stops_the_service(tmp_path: Path) -> None:
    """Finished{FAILED} and the event for what runs, health off, and a stop that ends with exit code 1."""
    engine = ScriptedEngine()
    async with inference_service(tmp_path, engine) as service, service.session() as session:
        await session.send(submit(1, generation(1)), submit(2, generation(2)))
        await session.read_until(lambda frames: kinds(frames).count("accepted") == 2)
        engine.submitted[0].emit("x", tokens=3)
        assert await _health(service.port) == health_pb2.HealthCheckResponse.SERVING
        # The engine's last words reach one of the two only.
        engine.alive = False
        engine.submitted[0].fail(RuntimeError("EngineCore died"))
        await session.read_until(over(2))
        for stream in (1, 2):
            finished = session.frames(stream)[-1].finished
            assert finished.outcome == generation_pb2.FINISH_OUTCOME_FAILED
            assert finished.error.reason == error_reason_pb2.ERROR_REASON_SERVICE_UNAVAILABLE
        assert session.frames(1)[-1].finished.usage.completion_tokens == 3
        await asyncio.wait_for(service.lifecycle.wait(), 5)
        assert service.lifecycle.failed
        assert await _health(service.port) == health_pb2.HealthCheckResponse.NOT_SERVING
        await eventually(lambda: len(service.events) == 2)
        assert {event.outcome for event in service.events} == {usage_event_pb2.OUTCOME_FAILED}
