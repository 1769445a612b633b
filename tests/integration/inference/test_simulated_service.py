"""The inference service as it is configured and run: the simulated engine, real processes, kills and restarts."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from naru.api.accounting.v1 import usage_event_pb2
from naru.api.inference.v1 import generation_pb2
from naru.identity import ServiceTokens
from naru.lifecycle import Lifecycle
from tests.support.generation_bench import eventually
from tests.support.inference_service import (
    InferenceService,
    cancel,
    generation,
    inference_service,
    submit,
)
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers, write_service_tokens

ROOT = Path(__file__).parents[3]


def long_generation(number: int) -> generation_pb2.Generation:
    """An answer that takes the simulated engine seconds."""
    sampling = generation_pb2.SamplingParameters(max_tokens=4000)
    return generation(number, chat=_chat(sampling))


def _chat(sampling: generation_pb2.SamplingParameters) -> generation_pb2.ChatInput:
    message = generation_pb2.ChatMessage(role="user", content="Hello there.")
    return generation_pb2.ChatInput(messages=[message], sampling=sampling)


async def test_the_configured_engine_answers_and_is_metered(tmp_path: Path) -> None:
    """Usage is what the deltas counted, for an answer that ends and for one that is cancelled, in one session."""
    async with (
        inference_service(tmp_path, simulated_tokens_per_second=500.0, simulated_answer_tokens=1000) as service,
        service.session() as session,
    ):
        short = generation_pb2.SamplingParameters(max_tokens=12, n=2)
        await session.send(submit(1, generation(1, chat=_chat(short))), submit(2, long_generation(2)))
        await session.read_until(lambda frames: len([f for f in frames if f.stream_id == 2]) > 20)
        await session.send(cancel(2))
        frames = await session.read_until(lambda frames: sum(f.WhichOneof("event") == "finished" for f in frames) == 2)
        counts: dict[tuple[int, int], int] = {}
        for frame in frames:
            if frame.WhichOneof("event") == "delta":
                counts[frame.stream_id, frame.delta.choice_index] = frame.delta.completion_tokens
        both = session.frames(1)[-1].finished
        cut = session.frames(2)[-1].finished
        assert both.outcome == generation_pb2.FINISH_OUTCOME_COMPLETED
        assert both.usage.completion_tokens == counts[1, 0] + counts[1, 1] == 24
        assert cut.outcome == generation_pb2.FINISH_OUTCOME_ABORTED
        assert cut.usage.completion_tokens == counts[2, 0] > 10
        await eventually(lambda: len(service.events) == 2)
        assert {event.event_id: event.usage for event in service.events} == {
            generation(1).event_id: both.usage,
            generation(2).event_id: cut.usage,
        }


async def test_an_engine_that_dies_ends_the_service(tmp_path: Path) -> None:
    """Its request is told and metered as failed, then the process is to stop with exit code 1."""
    async with (
        inference_service(tmp_path, simulated_die_after_tokens=10) as service,
        service.session() as session,
    ):
        await session.send(submit(1, long_generation(1)))
        frames = await session.read_until(lambda frames: frames[-1:] != [] and frames[-1].HasField("finished"))
        assert frames[-1].finished.outcome == generation_pb2.FINISH_OUTCOME_FAILED
        assert frames[-1].finished.usage.completion_tokens == 10
        await asyncio.wait_for(service.lifecycle.wait(), 5)
        assert service.lifecycle.failed
        await eventually(lambda: service.events)
        assert service.events[0].usage.completion_tokens == 10


async def test_an_engine_that_hangs_ends_the_service(tmp_path: Path) -> None:
    """It does not answer while it has work: what runs is failed with what it had delivered."""
    async with (
        inference_service(
            tmp_path, simulated_hang_after_tokens=5, engine_probe_seconds=0.1, engine_probe_timeout=0.1
        ) as service,
        service.session() as session,
    ):
        await session.send(submit(1, long_generation(1)))
        frames = await session.read_until(lambda frames: frames[-1:] != [] and frames[-1].HasField("finished"))
        assert frames[-1].finished.outcome == generation_pb2.FINISH_OUTCOME_FAILED
        assert frames[-1].finished.usage.completion_tokens == 5
        await asyncio.wait_for(service.lifecycle.wait(), 5)
        assert service.lifecycle.failed


class Replica:
    """`python -m inference` with a folder of its own."""

    def __init__(self, directory: Path, address: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OTEL_"))}
        self._environ = {
            **inherited,
            "NARU_INFERENCE_ENGINE": "simulated",
            "NARU_INFERENCE_MODEL": "small",
            "NARU_INFERENCE_PORT": str(self.port),
            "NARU_INFERENCE_JOURNAL_DIR": str(directory / "journal"),
            "NARU_INFERENCE_SHUTDOWN_GRACE": "0.2",
            "NARU_SERVICE_TOKENS_DIR": str(directory / "tokens"),
            "NARU_AUTHSVC_ADDRESS": address,
            "NARU_ACCOUNTING_ADDRESS": address,
        }

    @asynccontextmanager
    async def running(self, **environ: str) -> AsyncIterator[Process]:
        """The process, once it has said that it serves; killed at the end if it still runs."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "inference", cwd=ROOT, env={**self._environ, **environ}, stderr=PIPE
        )
        assert process.stderr is not None
        try:
            async with asyncio.timeout(30):
                while b'"serving"' not in (line := await process.stderr.readline()):
                    assert line, "it ended before it served"
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.stderr.read()
            await process.wait()

    def service(self, tokens: ServiceTokens, accounting: RecordingAccounting, keys: KeyRing) -> InferenceService:
        """The ways into it."""
        peers_address = self._environ["NARU_ACCOUNTING_ADDRESS"]
        return InferenceService(self.port, Lifecycle(), tokens, accounting, keys, peers_address)


async def test_kill_minus_nine_and_restart_reports_what_had_been_accepted(tmp_path: Path) -> None:
    """A request that a kill cut short becomes rank 1 evidence; one that had finished is reported exactly."""
    tokens, accounting, keys = write_service_tokens(tmp_path / "tokens"), RecordingAccounting(), KeyRing()
    async with peers(tokens, accounting, keys) as address:
        replica = Replica(tmp_path, address)
        service = replica.service(tokens, accounting, keys)
        async with replica.running() as process, service.session() as session:
            await session.send(submit(1, generation(1, chat=_chat(generation_pb2.SamplingParameters(max_tokens=3)))))
            await session.read_until(lambda frames: frames[-1:] != [] and frames[-1].HasField("finished"))
            await session.send(submit(2, long_generation(2)))
            await session.read_until(lambda frames: len([f for f in frames if f.stream_id == 2]) > 3)
            process.kill()
            await process.wait()
        async with replica.running() as process:
            await eventually(lambda: len({event.event_id for event in accounting.events}) == 2, 10)
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
    by_id = {event.event_id: event for event in accounting.events}
    finished, cut = by_id[generation(1).event_id], by_id[generation(2).event_id]
    assert finished.evidence == usage_event_pb2.EVIDENCE_FINAL
    assert finished.usage.completion_tokens == 3
    assert cut.evidence == usage_event_pb2.EVIDENCE_ACCEPTED
    assert cut.accuracy == usage_event_pb2.ACCURACY_ESTIMATED
    assert cut.outcome == usage_event_pb2.OUTCOME_FAILED
    assert cut.usage.prompt_tokens == session.frames(2)[0].accepted.prompt_tokens
    assert cut.usage.completion_tokens == 0
    assert not cut.HasField("end_time")
    assert cut.epoch == finished.epoch


async def test_the_process_exits_with_one_when_its_engine_dies(tmp_path: Path) -> None:
    """The supervisor can tell a death from an orderly stop."""
    tokens, accounting, keys = write_service_tokens(tmp_path / "tokens"), RecordingAccounting(), KeyRing()
    async with peers(tokens, accounting, keys) as address:
        replica = Replica(tmp_path, address)
        service = replica.service(tokens, accounting, keys)
        async with replica.running(NARU_INFERENCE_SIMULATED_DIE_AFTER_TOKENS="5") as process:
            async with service.session() as session:
                await session.send(submit(1, long_generation(1)))
                await session.read_until(lambda frames: frames[-1:] != [] and frames[-1].HasField("finished"))
            assert process.stderr is not None
            await process.stderr.read()
            assert await asyncio.wait_for(process.wait(), 15) == 1
    assert [event.usage.completion_tokens for event in accounting.events] == [5]
