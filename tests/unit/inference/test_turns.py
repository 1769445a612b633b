"""Requests that wait for a slot of the engine: they are served in a fair order, or leave without a trace."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from inference.events import GenerationOrder
from inference.generation import Generation
from naru.errors import Reason, unavailable
from naru.identity import Principal
from naru.usage import Outcome
from tests.support.generation_bench import Bench, Hearing, eventually, new_bench, order_of
from tests.support.scripted_engine import ScriptedEngine

ANNA, BERT = Principal("anna", key_id="abcdefghijkl"), Principal("bert", key_id="mnopqrstuvwx")
LENGTH, PATIENCE = 3, 1.0


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """An engine with two slots."""
    engine = ScriptedEngine()
    engine.slot_count = 2
    bench = new_bench(tmp_path, engine=engine, queue_length=LENGTH)
    yield bench
    await end_all(bench)
    # Whatever a test did, it left nobody waiting and no slot taken.
    assert (bench.queue.waiting, bench.queue.used) == (0, 0)
    bench.journal.close()


async def end_all(bench: Bench) -> None:
    """What the engine has is finished until nothing is left."""
    while not await bench.generations.wait_idle(0.0):
        for submitted in bench.engine.submitted:
            for choice in sorted(set(range(submitted.choices)) - submitted.ended):
                submitted.emit("x", choice=choice, finish_reason="stop")
        await asyncio.sleep(0)
    await bench.generations.drain(0.0)


class Asked:
    """Requests, by number."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.heard: dict[int, Hearing] = {}
        self.generations: dict[int, Generation] = {}

    def ask(self, number: int, principal: Principal = ANNA, **changes: object) -> Hearing:
        """Begins one."""
        hearing = self.heard[number] = Hearing()
        order: GenerationOrder = order_of(number, principal=principal, **changes)  # type: ignore[arg-type] # as order_of
        self.generations[number] = self.bench.generations.start(order, hearing)
        return hearing

    async def fill(self) -> None:
        """Two requests that take all slots."""
        self.ask(1)
        self.ask(2)
        await eventually(lambda: len(self.bench.engine.submitted) == 2)

    async def wait(self, number: int, principal: Principal = ANNA, **changes: object) -> Hearing:
        """One that has to wait."""
        before = self.bench.queue.waiting
        hearing = self.ask(number, principal, **changes)
        await eventually(lambda: self.bench.queue.waiting == before + 1)
        return hearing

    @property
    def accepted(self) -> set[int]:
        """Those that the engine was given."""
        return {number for number, hearing in self.heard.items() if "Accepted" in hearing.kinds}


async def test_another_workspace_is_next(bench: Bench) -> None:
    """One that floods keeps its place in its own row only; what waits is told nothing and journalled nowhere."""
    asked = Asked(bench)
    await asked.fill()
    await asked.wait(3)
    await asked.wait(4)
    late = await asked.wait(5, BERT)
    assert late.events == []
    assert bench.journal.backlog == 0
    assert len(bench.engine.submitted) == 2
    bench.engine.submitted[0].emit("done", finish_reason="stop")
    await eventually(lambda: len(bench.engine.submitted) == 3)
    assert asked.accepted == {1, 2, 5}
    bench.engine.submitted[1].emit("done", finish_reason="stop")
    await eventually(lambda: len(bench.engine.submitted) == 4)
    assert asked.accepted == {1, 2, 3, 5}


async def test_a_slot_is_free_with_each_choice(bench: Bench) -> None:
    """A request of two choices gives one slot back when one of them ends, and what it has left at the end."""
    asked = Asked(bench)
    asked.ask(1, n=2)
    await eventually(lambda: bench.engine.submitted)
    await asked.wait(2)
    bench.engine.submitted[0].emit("a", choice=1, finish_reason="stop")
    await eventually(lambda: asked.accepted == {1, 2})
    await asked.wait(3)
    bench.engine.submitted[0].emit("b", choice=0, finish_reason="stop")
    await eventually(lambda: asked.accepted == {1, 2, 3})


async def test_tokens_count_and_so_do_tiers(bench: Bench) -> None:
    """Of two that wait the one that was served less is next; a heavier tier's tokens count less."""
    asked = Asked(bench)
    asked.ask(1, Principal("anna", tier="heavy"))
    asked.ask(2, BERT)
    await eventually(lambda: len(bench.engine.submitted) == 2)
    await asked.wait(3, BERT)
    await asked.wait(4, Principal("anna", tier="heavy"))
    anna, bert = bench.queue.counter("anna"), bench.queue.counter("bert")
    assert anna >= bert
    bench.engine.submitted[0].emit("a", tokens=30)
    bench.engine.submitted[1].emit("b", tokens=10)
    assert bench.queue.counter("anna") == anna + 2 * 30 / 4
    assert bench.queue.counter("bert") == bert + 2 * 10
    bench.engine.submitted[1].emit("b", finish_reason="stop")
    await eventually(lambda: asked.accepted == {1, 2, 4})


Ending = Callable[[Bench, Generation], None]


@pytest.mark.parametrize(
    ("end", "timeout", "reason"),
    [
        (lambda _, generation: generation.cancel(), 60.0, Reason.CANCELLED),
        (lambda _bench, _generation: None, 1.0, Reason.DEADLINE_EXCEEDED),
        (lambda bench, _: bench.generations.refuse_new(), 60.0, Reason.SERVICE_UNAVAILABLE),
    ],
)
@pytest.mark.parametrize("reserved", [100, None])
async def test_an_end_while_waiting(
    bench: Bench, end: Ending, timeout: float, reason: Reason, reserved: int | None
) -> None:
    """Cancelled, out of time, or told that the service stops: refused, nothing billed or held, the others as before."""
    asked = Asked(bench)
    await asked.fill()
    waiting = await asked.wait(3, reserved=reserved, timeout=timeout)
    end(bench, asked.generations[3])
    await eventually(lambda: waiting.over)
    assert waiting.refused.error.reason is reason
    await eventually(lambda: bench.queue.waiting == 0)
    await eventually(lambda: bench.accounting.released == ([] if reserved else [asked.generations[3].order.key]))
    for submitted in tuple(bench.engine.submitted):
        submitted.emit("done", finish_reason="stop")
    await eventually(lambda: asked.heard[1].over and asked.heard[2].over)
    assert asked.heard[1].finished.outcome is Outcome.COMPLETED
    assert len(bench.engine.submitted) == 2
    assert {event.event_id for event in bench.journal.unshipped(10)} == {
        asked.generations[number].order.event_id for number in (1, 2)
    }


async def test_cancelled_in_the_moment_of_its_turn(bench: Bench) -> None:
    """The slot goes to the next one, whichever of the two comes first."""
    asked = Asked(bench)
    await asked.fill()
    await asked.wait(3)
    await asked.wait(4)
    await asked.wait(5)
    asked.generations[3].cancel()
    bench.engine.submitted[0].emit("done", finish_reason="stop")
    asked.generations[4].cancel()
    await eventually(lambda: asked.accepted == {1, 2, 5})
    assert bench.queue.used == 2


async def test_who_waits_without_an_edge_keeps_its_reservation(bench: Bench) -> None:
    """Its lease is renewed, and given back with what it holds when it leaves."""
    asked = Asked(bench)
    keeping = asyncio.create_task(bench.leases.keep())
    await asked.fill()
    await asked.wait(3, reserved=None)
    key = asked.generations[3].order.key
    await eventually(lambda: any(key in batch for batch in bench.accounting.renewed))
    asked.generations[3].cancel()
    await eventually(lambda: bench.accounting.released == [key])
    renewed = len(bench.accounting.renewed)
    await eventually(lambda: len(bench.accounting.renewed) > renewed)
    assert key not in bench.accounting.renewed[-1]
    keeping.cancel()
    await asyncio.wait([keeping])


async def test_too_many_are_refused_at_once(bench: Bench) -> None:
    """The newest of the workspace that has most waiting; the refusal says when to come again."""
    asked = Asked(bench)
    await asked.fill()
    for number in range(LENGTH):
        await asked.wait(3 + number)
    refused = asked.ask(10)
    await eventually(lambda: refused.over)
    assert refused.refused.error.reason is Reason.OVERLOADED
    assert refused.refused.error.metadata == {"service": "inference", "bound": "length"}
    assert refused.refused.error.retry_after == 1.0
    asked.ask(11, BERT)
    await eventually(lambda: asked.heard[5].over)
    assert asked.heard[5].refused.error.reason is Reason.OVERLOADED
    bench.engine.submitted[0].emit("done", finish_reason="stop")
    await eventually(lambda: asked.accepted == {1, 2, 11})
    assert bench.overloaded("length") == 2


async def test_too_long_is_refused(tmp_path: Path) -> None:
    """After its patience a request hears that the model is busy; the engine never hears of it."""
    engine = ScriptedEngine()
    engine.slot_count = 2
    bench = new_bench(tmp_path, engine=engine, patience=PATIENCE)
    asked = Asked(bench)
    await asked.fill()
    waiting = await asked.wait(3)
    await eventually(lambda: waiting.over)
    assert waiting.refused.error.reason is Reason.OVERLOADED
    assert waiting.refused.error.metadata["bound"] == "time"
    assert waiting.refused.error.retry_after is not None
    assert bench.overloaded("time") == 1
    assert len(engine.submitted) == 2
    await end_all(bench)
    bench.journal.close()


async def test_a_request_that_the_engine_refuses_gives_its_slots_back(bench: Bench) -> None:
    """Whatever goes wrong after its turn has come."""
    asked = Asked(bench)
    await asked.fill()
    await asked.wait(3)
    bench.engine.refuse_submit = unavailable("inference")
    bench.engine.submitted[0].emit("done", finish_reason="stop")
    await eventually(lambda: asked.heard[3].over)
    bench.engine.refuse_submit = None
    asked.ask(4)
    await eventually(lambda: asked.accepted == {1, 2, 4})


@pytest.mark.parametrize("seed", range(3))
async def test_cancelled_at_any_moment(bench: Bench, seed: int) -> None:
    """Three hundred requests, half of them cancelled wherever they are: no slot is lost, and what was accepted is billed."""
    chance, asked = random.Random(seed), Asked(bench)
    for number in range(1, 301):
        asked.ask(number, chance.choice([ANNA, BERT]), n=chance.choice([1, 1, 2]), reserved=chance.choice([100, None]))
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        if chance.random() < 0.5:
            asked.generations[chance.randrange(max(1, number - 6), number + 1)].cancel()
        open_ones = [one for one in bench.engine.submitted if len(one.ended) < one.choices]
        if open_ones:
            one = chance.choice(open_ones)
            choice = min(set(range(one.choices)) - one.ended)
            one.emit("x", choice=choice, finish_reason=chance.choice(["", "stop"]))
    await end_all(bench)
    assert all(hearing.over for hearing in asked.heard.values())
    assert len(asked.accepted) == len(bench.engine.submitted) > 30
    billed = {event.event_id for event in bench.journal.unshipped(1000)}
    assert billed == {asked.generations[number].order.event_id for number in asked.accepted}
    refused = {number for number in asked.heard if number not in asked.accepted}
    reserved = {key for key, _, _ in bench.accounting.reserved}
    given_back = {key for key in reserved if key.event_id not in billed}
    await eventually(lambda: set(bench.accounting.released) == given_back)
    assert {asked.generations[number].order.key for number in refused} >= given_back
