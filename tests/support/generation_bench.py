"""Generations on a scripted engine and a real journal, with an accounting that a test commands."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from inference.admission import Grant, Leases, Need, Renewal, Reservations, RunningRequest
from inference.engine import ChoiceOutput, EngineRequest, InputKind, Sampling
from inference.events import (
    Accepted,
    EngineReport,
    Event,
    EventKey,
    Finished,
    GenerationOrder,
    Refused,
    UsageEvent,
)
from inference.fair_queue import FairQueue
from inference.generations import Generations
from inference.journal import Journal
from inference.metrics import InferenceMetrics
from inference.tools import Tools
from inference.turns import TurnLimits, Turns
from naru.errors import NaruError
from naru.identity import Principal
from naru.interceptors import internal_error
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.testing.clock import FakeClock
from naru.tracing import Tracing
from tests.support.scripted_engine import ScriptedEngine

ALICE = Principal(workspace_id="ws-1", key_id="abcdefghijkl")


async def eventually(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until something holds; fails the test when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class CommandedAccounting:
    """Answers as a test says and remembers what it was asked."""

    def __init__(self) -> None:
        self.reserved: list[tuple[EventKey, Need, int]] = []
        self.released: list[EventKey] = []
        self.renewed: list[list[EventKey]] = []
        self.restored: list[list[RunningRequest]] = []
        self.renewal: Callable[[EventKey], Renewal] = lambda _: Renewal.RENEWED
        self.restoration = Renewal.RENEWED
        self.recorded: list[list[UsageEvent]] = []
        self.reports: list[EngineReport | None] = []
        self.decision: Grant | NaruError = Grant()
        self.revision_decision: Grant | NaruError = Grant()
        self.away: NaruError | None = None
        self.answer: Callable[[UsageEvent], NaruError | None] = lambda _: None
        self.reserve_gate = asyncio.Event()
        self.reserve_gate.set()

    async def reserve(self, order: GenerationOrder, need: Need, revision: int, served_model: str) -> Grant | NaruError:
        self.reserved.append((order.key, need, revision))
        await self.reserve_gate.wait()
        if self.away is not None:
            raise self.away
        return self.revision_decision if revision else self.decision

    async def release(self, key: EventKey) -> None:
        self.released.append(key)

    async def finish(self, keys: Sequence[EventKey]) -> None:
        """Nobody waits for a place."""

    async def renew(self, keys: Sequence[EventKey]) -> list[Renewal]:
        self.renewed.append(list(keys))
        if self.away is not None:
            raise self.away
        return [self.renewal(key) for key in keys]

    async def restore(self, running: Sequence[RunningRequest]) -> list[Renewal]:
        self.restored.append(list(running))
        return [self.restoration] * len(running)

    async def record_usage(self, events: Sequence[UsageEvent], report: EngineReport | None) -> list[NaruError | None]:
        if self.away is not None:
            raise self.away
        self.recorded.append(list(events))
        self.reports.append(report)
        return [self.answer(event) for event in events]


@dataclass(slots=True)
class Bench:
    """All parts of a replica that are not gRPC."""

    engine: ScriptedEngine
    accounting: CommandedAccounting
    journal: Journal
    leases: Leases
    clock: FakeClock
    metrics: InferenceMetrics
    kit_metrics: Metrics
    queue: FairQueue
    generations: Generations

    def overloaded(self, bound: str) -> float | None:
        """How many were refused because of a bound of the queue."""
        return self.kit_metrics.registry.get_sample_value("naru_inference_overloaded_total", {"bound": bound})


@dataclass(slots=True)
class Hearing:
    """A listener that remembers."""

    events: list[Event] = field(default_factory=list)
    raises: bool = False

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if self.raises:
            raise RuntimeError("the listener is broken")

    @property
    def kinds(self) -> list[str]:
        """The names of what was heard, in order."""
        return [type(event).__name__ for event in self.events]

    @property
    def over(self) -> bool:
        """Whether the end was heard."""
        return bool(self.events) and isinstance(self.events[-1], Refused | Finished)

    @property
    def text(self) -> str:
        """All text heard."""
        return "".join(event.text for event in self.events if isinstance(event, ChoiceOutput))

    @property
    def accepted(self) -> Accepted:
        """The first event, which must be that."""
        assert isinstance(self.events[0], Accepted), self.events
        return self.events[0]

    @property
    def finished(self) -> Finished:
        """The last event, which must be that."""
        assert isinstance(self.events[-1], Finished), self.events
        return self.events[-1]

    @property
    def refused(self) -> Refused:
        """The only event, which must be that."""
        assert len(self.events) == 1, self.events
        assert isinstance(self.events[0], Refused), self.events
        return self.events[0]


def new_bench(
    directory: Path,
    *,
    engine: ScriptedEngine | None = None,
    abort_patience: float = 5.0,
    segment_bytes: int = 1 << 20,
    queue_length: int = 1024,
    patience: float = 30.0,
) -> Bench:
    """Everything anew; the journal is in `directory`. Call inside a running loop."""
    kit_metrics = Metrics()
    metrics = InferenceMetrics(kit_metrics)
    logger = get_logger("test")
    engine = engine or ScriptedEngine()
    accounting, clock = CommandedAccounting(), FakeClock()
    journal = Journal(directory, logger, metrics, segment_bytes)
    leases = Leases(accounting, logger, metrics, interval=0.01)
    queue = FairQueue(engine.slots(), queue_length)
    tools = Tools(
        engine=engine,
        journal=journal,
        leases=leases,
        reservations=Reservations(accounting, logger),
        turns=Turns(queue, TurnLimits(patience, {"heavy": 4.0}), clock, metrics),
        clock=clock,
        logger=logger,
        metrics=metrics,
        start_span=Tracing().start_span,
        internal_error=internal_error,
        replica="replica-1",
        epoch="epoch-1",
        abort_patience=abort_patience,
    )
    return Bench(engine, accounting, journal, leases, clock, metrics, kit_metrics, queue, Generations(tools))


def order_of(number: int = 1, *, reserved: int | None = 100, n: int = 1, **changes: object) -> GenerationOrder:
    """An order; of the edge unless `reserved` is None."""
    order = GenerationOrder(
        event_id=f"00000000-0000-7000-8000-{number:012d}",
        attempt=0,
        request_id=f"req_{number}",
        request=EngineRequest(kind=InputKind.TEXT, model="", stream=True, text="hello", sampling=Sampling(n=n)),
        principal=ALICE,
        endpoint="/v1/completions",
        reserved_prompt_tokens=reserved,
    )
    return replace(order, **changes)  # type: ignore[arg-type]  # a test names fields of GenerationOrder
