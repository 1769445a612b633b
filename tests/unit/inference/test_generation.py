"""What one generation promises, on a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from inference.admission import Grant, Renewal
from inference.engine import EngineRequest, InputKind, PreparedRequest, Sampling, Sink
from inference.events import EventKey
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal, Scopes
from naru.usage import Accuracy, Evidence, Outcome, Usage
from tests.support.generation_bench import Bench, Hearing, eventually, new_bench, order_of
from tests.support.scripted_engine import ScriptedEngine, Submitted


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = new_bench(tmp_path)
    yield bench
    await bench.generations.drain(0.0)
    bench.journal.close()


async def test_streams_in_order_and_meters_exactly(bench: Bench) -> None:
    """Accepted, outputs, Finished; the usage is the prompt and the sum over choices; the journal has it."""
    hearing = Hearing()
    bench.generations.start(order_of(n=2), hearing)
    await eventually(lambda: bench.engine.submitted)
    request = bench.engine.submitted[0]
    request.emit("a", choice=0, cached=4)
    request.emit("b", choice=1, tokens=2, cached=7)
    request.emit("c", choice=0, finish_reason="stop")
    assert not hearing.over
    request.emit("", choice=1, tokens=3, finish_reason="length")
    assert hearing.kinds == ["Accepted", *["ChoiceOutput"] * 4, "Finished"]
    assert hearing.accepted.prompt_tokens == 7
    assert hearing.accepted.choices == 2
    assert hearing.finished.outcome is Outcome.COMPLETED
    # The second choice found in the cache what the first one had computed: that is no discount.
    assert hearing.finished.usage == Usage(prompt_tokens=7, completion_tokens=7, cached_prompt_tokens=4)
    (event,) = bench.journal.unshipped(10)
    assert event.usage == hearing.finished.usage
    assert (event.evidence, event.accuracy, event.outcome) == (Evidence.FINAL, Accuracy.EXACT, Outcome.COMPLETED)
    assert (event.served_model, event.requested_model, event.replica, event.epoch) == (
        "small",
        "small",
        "replica-1",
        "epoch-1",
    )


async def test_a_larger_prompt_than_reserved_is_refused_with_the_exact_figure(bench: Bench) -> None:
    """The edge learns how much to reserve, nothing reaches the engine, nothing is journalled."""
    hearing = Hearing()
    bench.generations.start(order_of(reserved=6), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.refused.prompt_tokens == 7
    assert bench.engine.submitted == []
    assert bench.journal.backlog == 0
    again = Hearing()
    bench.generations.start(order_of(reserved=7), again)
    await eventually(lambda: again.events)
    assert again.accepted.prompt_tokens == 7


async def test_cancel_while_preparing_prevents_the_submit(bench: Bench) -> None:
    """A Cancel before Accepted is Refused, bills nothing, and the engine never hears of it."""
    bench.engine.prepare_gate.clear()
    hearing = Hearing()
    generation = bench.generations.start(order_of(), hearing)
    await eventually(lambda: bench.engine.prepared)
    generation.cancel()
    assert hearing.refused.error.reason is Reason.CANCELLED
    bench.engine.prepare_gate.set()
    await bench.generations.drain(1.0)
    assert bench.engine.submitted == []
    assert bench.journal.backlog == 0


async def test_cancel_in_the_same_turn_as_the_start(bench: Bench) -> None:
    """A Cancel before the preparation has even begun is Refused too."""
    hearing = Hearing()
    bench.generations.start(order_of(), hearing).cancel()
    assert hearing.refused.error.reason is Reason.CANCELLED
    await bench.generations.drain(1.0)
    assert bench.engine.prepared == []


async def test_cancel_while_submitting_is_accepted_then_aborted(bench: Bench) -> None:
    """What the engine may have begun is told as accepted, cancelled there, and metered."""
    bench.engine.submit_gate.clear()
    hearing = Hearing()
    generation = bench.generations.start(order_of(), hearing)
    await eventually(lambda: generation.phase.value == "submitting")
    generation.cancel()
    assert hearing.events == []
    bench.engine.submit_gate.set()
    await eventually(lambda: hearing.over)
    assert hearing.kinds == ["Accepted", "ChoiceOutput", "Finished"]
    assert hearing.finished.outcome is Outcome.ABORTED
    assert bench.engine.submitted[0].cancelled


async def test_cancel_meters_what_the_engine_generated_not_what_was_told(bench: Bench) -> None:
    """The usage of a cancelled request includes the token that the engine was working on."""
    hearing = Hearing()
    generation = bench.generations.start(order_of(), hearing)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a")
    bench.engine.submitted[0].emit("b")
    generation.cancel()
    generation.cancel()
    await eventually(lambda: hearing.over)
    assert hearing.finished.outcome is Outcome.ABORTED
    assert hearing.finished.error is None
    assert hearing.finished.usage.completion_tokens == 3
    assert bench.journal.unshipped(1)[0].usage.completion_tokens == 3


async def test_a_timeout_ends_a_running_request(bench: Bench) -> None:
    """The time allowed runs out: aborted with DEADLINE_EXCEEDED, and metered."""
    hearing = Hearing()
    bench.generations.start(order_of(timeout=1.0), hearing)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a")
    await eventually(lambda: hearing.over)
    assert hearing.finished.outcome is Outcome.ABORTED
    assert hearing.finished.error is not None
    assert hearing.finished.error.reason is Reason.DEADLINE_EXCEEDED
    assert bench.journal.unshipped(1)[0].outcome is Outcome.ABORTED


async def test_a_timeout_while_preparing_is_refused(bench: Bench) -> None:
    """The time allowed runs out before the engine has it: refused with DEADLINE_EXCEEDED."""
    bench.engine.prepare_gate.clear()
    hearing = Hearing()
    bench.generations.start(order_of(timeout=0.02), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.refused.error.reason is Reason.DEADLINE_EXCEEDED


async def test_an_engine_that_never_confirms_a_cancel_is_given_up(tmp_path: Path) -> None:
    """The caller gets an end all the same, and the figures are called an estimate."""
    bench = new_bench(tmp_path, abort_patience=0.02)
    bench.engine.confirm_cancel = False
    hearing = Hearing()
    generation = bench.generations.start(order_of(), hearing)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a")
    generation.cancel()
    await eventually(lambda: hearing.over)
    bench.engine.submitted[0].emit("late")
    assert hearing.text == "a"
    assert bench.journal.unshipped(1)[0].accuracy is Accuracy.ESTIMATED
    bench.journal.close()


async def test_an_engine_error_finishes_failed_with_what_was_delivered(bench: Bench) -> None:
    """The engine's failure is told as unavailable, without its text, and what it had delivered is metered."""
    hearing = Hearing()
    bench.generations.start(order_of(), hearing)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a", tokens=5)
    bench.engine.submitted[0].fail(RuntimeError("secret detail"))
    assert hearing.finished.outcome is Outcome.FAILED
    assert hearing.finished.error is not None
    assert hearing.finished.error.reason is Reason.SERVICE_UNAVAILABLE
    assert "secret" not in hearing.finished.error.message
    assert hearing.finished.usage.completion_tokens == 5
    (event,) = bench.journal.unshipped(10)
    # What the engine had generated and not yet put out died with it.
    assert (event.outcome, event.accuracy) == (Outcome.FAILED, Accuracy.ESTIMATED)


async def test_a_listener_that_raises_loses_no_event(bench: Bench) -> None:
    """A broken listener has its request cancelled; the usage is journalled once."""
    hearing = Hearing(raises=True)
    bench.generations.start(order_of(), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.kinds.count("Finished") == 1
    assert [event.outcome for event in bench.journal.unshipped(10)] == [Outcome.ABORTED]


async def test_the_journal_has_the_acceptance_before_the_listener(tmp_path: Path) -> None:
    """When Accepted is heard, a restart would find it; when Finished is heard, a restart would find the final event."""
    bench = new_bench(tmp_path)
    on_disk: list[tuple[str, int, int]] = []

    def listener(event: object) -> None:
        data = b"".join(path.read_bytes() for path in sorted(tmp_path.glob("*.segment")))
        on_disk.append((type(event).__name__, data.count(b'"kind":"accepted"'), data.count(b'"kind":"final"')))

    bench.generations.start(order_of(), listener)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a", finish_reason="stop")
    assert on_disk == [("Accepted", 1, 0), ("ChoiceOutput", 1, 0), ("Finished", 1, 1)]
    bench.journal.close()


async def test_a_journal_that_cannot_be_written_refuses_new_requests_and_keeps_old_ones(tmp_path: Path) -> None:
    """New requests get SERVICE_UNAVAILABLE; one that runs is still metered; writing again heals it."""
    # Each record begins a file of its own, so that a directory that is away makes every write fail.
    bench = new_bench(tmp_path / "journal", segment_bytes=1)
    running, refused, later = Hearing(), Hearing(), Hearing()
    bench.generations.start(order_of(1), running)
    await eventually(lambda: bench.engine.submitted)
    (tmp_path / "journal").rename(tmp_path / "away")
    bench.generations.start(order_of(2), refused)
    await eventually(lambda: refused.over)
    assert refused.refused.error.reason is Reason.SERVICE_UNAVAILABLE
    bench.engine.submitted[0].emit("a", finish_reason="stop")
    assert running.finished.usage.completion_tokens == 1
    assert not bench.journal.writable
    (tmp_path / "away").rename(tmp_path / "journal")
    assert len(bench.engine.submitted) == 1
    bench.generations.start(order_of(3), later)
    await eventually(lambda: later.events)
    assert later.accepted.prompt_tokens == 7
    bench.journal.close()
    after_restart = new_bench(tmp_path / "journal").journal
    assert [event.outcome for event in after_restart.unshipped(10)] == [Outcome.COMPLETED, Outcome.FAILED]
    after_restart.close()


async def test_an_engine_that_takes_nothing_leaves_nothing_to_bill(tmp_path: Path) -> None:
    """A submit that fails is Refused, and a restart finds nothing to report."""
    bench = new_bench(tmp_path)
    bench.engine.refuse_submit = NaruError(Reason.OVERLOADED, "Full.", retry_after=1.0)
    hearing = Hearing()
    bench.generations.start(order_of(), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.refused.error.reason is Reason.OVERLOADED
    bench.journal.close()
    after_restart = new_bench(tmp_path).journal
    assert after_restart.backlog == 0
    after_restart.close()


async def test_an_engine_that_fails_a_submit_after_it_spoke_finishes_the_request(tmp_path: Path) -> None:
    """The first of two choices is at work when the second cannot be handed over: Accepted is followed by Finished."""

    class HalfDone(ScriptedEngine):
        async def submit(self, prepared: PreparedRequest, sink: Sink) -> Submitted:
            submitted = await super().submit(prepared, sink)
            submitted.emit("a")
            raise unavailable("inference", "The engine is not running.")

    bench = new_bench(tmp_path, engine=HalfDone())
    hearing = Hearing()
    bench.generations.start(order_of(n=2), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.kinds == ["Accepted", "ChoiceOutput", "Finished"]
    assert (hearing.finished.outcome, hearing.finished.usage.completion_tokens) == (Outcome.FAILED, 1)
    assert [event.evidence for event in bench.journal.unshipped(10)] == [Evidence.FINAL]
    keeping = asyncio.create_task(bench.leases.keep())
    await asyncio.sleep(0.05)
    assert bench.accounting.renewed == []
    keeping.cancel()
    bench.journal.close()


async def test_an_unexpected_fault_while_preparing_tells_only_an_incident(bench: Bench) -> None:
    """The text of a fault of ours never reaches the caller."""
    bench.engine.refuse_prepare = RuntimeError("secret detail")
    hearing = Hearing()
    bench.generations.start(order_of(), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.refused.error.reason is Reason.INTERNAL
    assert "incident" in hearing.refused.error.metadata
    assert "secret" not in hearing.refused.error.message


async def test_an_unknown_model_is_refused(bench: Bench) -> None:
    """A model that is not served: MODEL_NOT_FOUND, before anything is reserved."""
    hearing = Hearing()
    request = EngineRequest(kind=InputKind.TEXT, model="gpt-5", stream=True, text="x")
    bench.generations.start(order_of(reserved=None, request=request), hearing)
    await eventually(lambda: hearing.over)
    assert hearing.refused.error.reason is Reason.MODEL_NOT_FOUND
    assert bench.accounting.reserved == []


async def test_the_same_attempt_twice_at_once_is_refused(bench: Bench) -> None:
    """One attempt cannot run twice; the first one goes on."""
    first, second = Hearing(), Hearing()
    bench.generations.start(order_of(), first)
    await eventually(lambda: bench.engine.submitted)
    bench.generations.start(order_of(), second)
    await eventually(lambda: second.over)
    assert second.refused.error.reason is Reason.ALREADY_EXISTS
    bench.engine.submitted[0].emit("a", finish_reason="stop")
    assert first.finished.outcome is Outcome.COMPLETED


async def test_a_direct_caller_is_reserved_for_with_the_callers_limits(bench: Bench) -> None:
    """Prompt estimated from bytes, output from max_tokens times n; the grant's cap goes to the engine."""
    bench.accounting.decision = Grant(output_token_cap=9)
    hearing = Hearing()
    request = EngineRequest(
        kind=InputKind.TEXT, model="", stream=True, text="x" * 300, sampling=Sampling(n=3, max_tokens=20)
    )
    bench.generations.start(order_of(reserved=None, request=request), hearing)
    await eventually(lambda: bench.engine.submitted)
    ((key, need, revision),) = bench.accounting.reserved
    assert key == order_of().key
    assert revision == 0
    assert need.output_tokens == 60
    assert need.input_tokens == 152
    assert bench.engine.submitted[0].request.output_token_cap == 9
    assert bench.accounting.released == []


async def test_an_estimate_that_was_too_low_is_made_exact(tmp_path: Path) -> None:
    """A prompt larger than estimated is reserved again with the exact figure before the engine gets it."""
    bench = new_bench(tmp_path, engine=ScriptedEngine(prompt_tokens=500))
    hearing = Hearing()
    bench.generations.start(order_of(reserved=None), hearing)
    await eventually(lambda: hearing.events)
    assert [(need.input_tokens, revision) for _, need, revision in bench.accounting.reserved] == [(34, 0), (500, 1)]
    assert hearing.accepted.prompt_tokens == 500
    refused = Hearing()
    bench.accounting.revision_decision = NaruError(Reason.RATE_LIMIT_EXCEEDED, "Too much.", retry_after=3.0)
    bench.generations.start(order_of(2, reserved=None), refused)
    await eventually(lambda: refused.over and bench.accounting.released)
    assert refused.refused.error == bench.accounting.revision_decision
    assert bench.accounting.released == [order_of(2).key]
    bench.journal.close()


async def test_a_refused_reservation_is_the_answer(bench: Bench) -> None:
    """Accounting's refusal reaches the caller as it is; nothing is held, so nothing is released."""
    bench.accounting.decision = NaruError(Reason.RATE_LIMIT_EXCEEDED, "Slow down.", retry_after=7.0)
    hearing = Hearing()
    bench.generations.start(order_of(reserved=None), hearing)
    await eventually(lambda: hearing.over)
    await bench.generations.drain(1.0)
    assert hearing.refused.error == bench.accounting.decision
    assert bench.accounting.released == []
    assert bench.engine.prepared == []


async def test_a_direct_caller_refused_after_the_reservation_gives_it_back(bench: Bench) -> None:
    """A prompt that the engine refuses releases what was reserved for it."""
    bench.engine.refuse_prepare = NaruError(Reason.CONTEXT_LENGTH_EXCEEDED, "Too long.")
    hearing = Hearing()
    bench.generations.start(order_of(reserved=None), hearing)
    await eventually(lambda: bench.accounting.released)
    assert hearing.refused.error.reason is Reason.CONTEXT_LENGTH_EXCEEDED
    assert bench.accounting.released == [order_of().key]


async def test_a_cancel_while_reserving_releases(bench: Bench) -> None:
    """Whether accounting had decided is not known: the release leaves a tombstone either way."""
    bench.accounting.reserve_gate.clear()
    hearing = Hearing()
    generation = bench.generations.start(order_of(reserved=None), hearing)
    await eventually(lambda: bench.accounting.reserved)
    generation.cancel()
    await eventually(lambda: bench.accounting.released)
    assert hearing.refused.error.reason is Reason.CANCELLED


async def test_accounting_away_refuses_direct_callers(bench: Bench) -> None:
    """Nobody can be admitted while nobody can decide; what may have been decided is released."""
    bench.accounting.away = unavailable("accounting")
    hearing = Hearing()
    bench.generations.start(order_of(reserved=None), hearing)
    await eventually(lambda: hearing.over and bench.accounting.released)
    assert hearing.refused.error == unavailable("accounting")


async def test_model_scopes_bind_direct_callers(bench: Bench) -> None:
    """A key narrowed to other models is denied, before existence of the model is told; globs match."""
    denied, allowed = Hearing(), Hearing()
    others = Principal(workspace_id="ws-1", key_id="k", scopes=Scopes(models=("big-*",)))
    globbed = Principal(workspace_id="ws-1", key_id="k", scopes=Scopes(models=("sm*",)))
    bench.generations.start(order_of(1, reserved=None, principal=others), denied)
    bench.generations.start(order_of(2, reserved=None, principal=globbed), allowed)
    await eventually(lambda: denied.over and allowed.events)
    assert denied.refused.error.reason is Reason.PERMISSION_DENIED
    assert allowed.accepted.model == "small"
    assert [key.event_id for key, _, _ in bench.accounting.reserved] == [order_of(2).event_id]


async def test_leases_of_everything_that_runs_are_renewed_together(bench: Bench) -> None:
    """One call renews all running requests, none that is over, and goes on after accounting was away."""
    hearings = [Hearing(), Hearing()]
    for number, hearing in enumerate(hearings):
        bench.generations.start(order_of(number), hearing)
    await eventually(lambda: len(bench.engine.submitted) == 2)
    keeping = asyncio.create_task(bench.leases.keep())
    await eventually(lambda: bench.accounting.renewed)
    assert sorted(bench.accounting.renewed[0]) == [order_of(0).key, order_of(1).key]
    bench.accounting.away = unavailable("accounting")
    count = len(bench.accounting.renewed)
    await eventually(lambda: len(bench.accounting.renewed) > count + 1)
    bench.accounting.away = None
    bench.engine.submitted[0].emit("", finish_reason="stop")
    await eventually(lambda: bench.accounting.renewed[-1] == [order_of(1).key])
    keeping.cancel()


async def test_a_direct_callers_reservation_is_kept_while_the_engine_takes_its_time(bench: Bench) -> None:
    """An upstream may be slow to take a request: until it does, or does not, nobody else renews the lease."""
    bench.engine.submit_gate.clear()
    bench.engine.refuse_submit = unavailable("inference")
    edges, direct = Hearing(), Hearing()
    bench.generations.start(order_of(1), edges)
    bench.generations.start(order_of(2, reserved=None), direct)
    await eventually(lambda: len(bench.engine.prepared) == 2)
    keeping = asyncio.create_task(bench.leases.keep())
    await eventually(lambda: bench.accounting.renewed)
    assert bench.accounting.renewed[0] == [order_of(2).key]
    bench.engine.submit_gate.set()
    await eventually(lambda: edges.over and direct.over and bench.accounting.released)
    count = len(bench.accounting.renewed)
    await asyncio.sleep(0.1)
    assert len(bench.accounting.renewed) <= count + 1
    keeping.cancel()


async def test_drain_lets_requests_end_and_refuses_new_ones(bench: Bench) -> None:
    """During the grace a running request finishes normally; a new one is refused as unavailable."""
    running, late = Hearing(), Hearing()
    bench.generations.start(order_of(1), running)
    await eventually(lambda: bench.engine.submitted)
    draining = asyncio.create_task(bench.generations.drain(5.0))
    await eventually(lambda: bench.generations.draining)
    bench.generations.start(order_of(2), late)
    await eventually(lambda: late.over)
    assert late.refused.error.reason is Reason.SERVICE_UNAVAILABLE
    assert not draining.done()
    bench.engine.submitted[0].emit("a", finish_reason="stop")
    await draining
    assert running.finished.outcome is Outcome.COMPLETED


async def test_drain_aborts_and_meters_what_does_not_end(bench: Bench) -> None:
    """After the grace a running request is aborted with an error and metered exactly."""
    hearing = Hearing()
    bench.generations.start(order_of(), hearing)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("a")
    await bench.generations.drain(0.01)
    assert hearing.finished.outcome is Outcome.ABORTED
    assert hearing.finished.error is not None
    assert hearing.finished.error.reason is Reason.SERVICE_UNAVAILABLE
    assert bench.journal.unshipped(1)[0].usage.completion_tokens == 2


async def test_drain_ends_though_a_submit_never_returns(tmp_path: Path) -> None:
    """A task that waits for the engine for ever does not keep the service from stopping."""
    bench = new_bench(tmp_path, abort_patience=0.0)
    bench.engine.submit_gate.clear()
    hearing = Hearing()
    generation = bench.generations.start(order_of(), hearing)
    await eventually(lambda: generation.phase.value == "submitting")
    async with asyncio.timeout(20):
        await bench.generations.drain(0.0)
    assert hearing.refused.error.reason is Reason.SERVICE_UNAVAILABLE
    assert bench.journal.backlog == 0
    bench.journal.close()


@pytest.mark.parametrize(
    ("traceparent", "logged"),
    [
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", True),
        (f"00-{'x' * 1000}-00f067aa0ba902b7-01", False),
    ],
)
async def test_only_a_real_trace_id_is_logged(bench: Bench, traceparent: str, logged: bool) -> None:
    """A caller's traceparent is whatever the caller sent: what is no trace id stays out of the log."""
    with capture_logs() as logs:
        bench.generations.start(order_of(traceparent=traceparent), Hearing())
        await eventually(lambda: bench.engine.submitted)
        await eventually(lambda: logs)
    assert [line.get("trace_id") for line in logs] == [traceparent.split("-")[1] if logged else None]


async def test_fail_all_ends_requests_in_every_phase(bench: Bench) -> None:
    """When the engine is gone: preparing and submitting ones are Refused, running ones Finished as failed."""
    running, submitting, preparing = Hearing(), Hearing(), Hearing()
    bench.generations.start(order_of(1), running)
    await eventually(lambda: running.events)
    bench.engine.submit_gate.clear()
    second = bench.generations.start(order_of(2), submitting)
    await eventually(lambda: second.phase.value == "submitting")
    bench.engine.prepare_gate.clear()
    bench.generations.start(order_of(3), preparing)
    await eventually(lambda: len(bench.engine.prepared) == 3)
    bench.generations.fail_all(unavailable("inference"))
    assert running.finished.outcome is Outcome.FAILED
    assert submitting.refused.error == unavailable("inference")
    assert preparing.refused.error == unavailable("inference")
    (event,) = bench.journal.unshipped(10)
    assert (event.key, event.accuracy) == (EventKey(order_of(1).event_id, 0), Accuracy.ESTIMATED)
    bench.engine.submit_gate.set()
    await eventually(lambda: len(bench.engine.submitted) == 2 and bench.engine.submitted[1].cancelled)


async def test_what_accounting_forgot_is_restored_while_it_runs(bench: Bench) -> None:
    """With the exact prompt, what it may generate, and since when; what ended meanwhile is not brought back to life."""
    running, ended = order_of(0, n=3), order_of(1)
    bench.generations.start(running, Hearing())
    bench.generations.start(ended, Hearing())
    await eventually(lambda: len(bench.engine.submitted) == 2)

    def forgotten(key: EventKey) -> Renewal:
        if key == ended.key:
            bench.engine.submitted[1].emit("x", finish_reason="stop")
        return Renewal.UNKNOWN

    bench.accounting.renewal = forgotten
    keeping = asyncio.create_task(bench.leases.keep())
    await eventually(lambda: bench.accounting.restored)
    ((restored,),) = bench.accounting.restored[:1]
    keeping.cancel()
    assert restored.order == running
    assert (restored.need().input_tokens, restored.need().choices) == (bench.engine.prompt_tokens, 3)
    assert restored.accept_time == bench.clock.time()


async def test_an_end_that_nobody_saw_is_abandoned(bench: Bench) -> None:
    """What is billed by estimate is not what the engine counts as exact, should it come to its end after all."""
    hearing = Hearing()
    bench.generations.start(order_of(), hearing)
    await eventually(lambda: bench.engine.submitted)
    bench.engine.submitted[0].emit("x")
    bench.generations.fail_all(unavailable("inference"))
    assert hearing.over
    assert bench.engine.submitted[0].abandoned
