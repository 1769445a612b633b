"""The story of a request, told with peers that live in this file: no HTTP, no gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from edge.accounts import (
    EventRef,
    HeldReservation,
    Idempotency,
    KeptOutcome,
    OutcomeFate,
    Reservation,
    ReserveResult,
)
from edge.attempts import Generation, Replayed
from edge.gateway import Gateway
from edge.generation import (
    Accepted,
    Delta,
    Endpoint,
    Event,
    Finished,
    FinishOutcome,
    GenerationRequest,
    GenerationStream,
    Refused,
    ServedModel,
    SessionLost,
)
from edge.leases import Leases
from edge.ports import Call, GatewayPolicy, Progress
from edge.spares import Spare
from naru.clock import SystemClock
from naru.errors import NaruError, Reason, invalid_argument, unavailable
from naru.identity import Principal
from naru.pricing import UnitPrices
from naru.usage import Usage

ACCEPTED = Accepted("m", 7, 1, 1_800_000_000.0)
DONE = Finished(FinishOutcome.COMPLETED, Usage(prompt_tokens=7, completion_tokens=1))
Step = Event | SessionLost
LOST_WRITTEN, LOST_UNWRITTEN = SessionLost(written=True), SessionLost(written=False)


class FakeStream:
    """Says its steps one by one, then nothing."""

    def __init__(self, replica: str, steps: Sequence[Step], *, written: bool) -> None:
        self.replica = replica
        self.written = written
        self.closed = False
        self.interrupted: Callable[[NaruError], None] = lambda _: None
        self._steps = list(steps)

    def on_interrupt(self, interrupted: Callable[[NaruError], None]) -> None:
        self.interrupted = interrupted

    async def receive(self) -> Sequence[Event]:
        if not self._steps:
            await asyncio.Event().wait()
        step = self._steps.pop(0)
        if isinstance(step, SessionLost):
            self.written = step.written
            raise step
        return [step]

    async def forward(self, take: Callable[[Sequence[Event]], bool]) -> None:
        while take(await self.receive()):
            pass

    def close(self) -> None:
        self.closed = True


class World:
    """All that the gateway asks, in one: replicas named a, b, ... take the scripts in turn."""

    def __init__(self, *scripts: Sequence[Step], replicas: int = 2, written: bool = True) -> None:
        self.scripts = list(scripts)
        self.names = [chr(ord("a") + number) for number in range(replicas)]
        self.written = written
        self.submitted: list[tuple[str, GenerationRequest]] = []
        self.streams: list[FakeStream] = []
        self.reserved: list[Reservation] = []
        self.released: list[EventRef] = []
        self.finished: list[EventRef] = []
        self.renewed: list[EventRef] = []
        self.restored: list[HeldReservation] = []
        self.forgets = False
        self.kept: list[KeptOutcome] = []
        self.spares: list[Spare] = []
        self.decide: Callable[[Reservation], ReserveResult] = lambda _: ReserveResult()

    async def reserve(self, reservation: Reservation) -> ReserveResult:
        self.reserved.append(reservation)
        await asyncio.sleep(0)
        return self.decide(reservation)

    def spare(self, reservation: Reservation) -> Spare | None:
        return self.spares.pop() if self.spares else None

    def finish(self, event: EventRef) -> None:
        self.finished.append(event)

    def release(self, event: EventRef) -> None:
        self.released.append(event)

    def keep(self, kept: KeptOutcome) -> None:
        self.kept.append(kept)

    async def renew(self, events: Sequence[EventRef]) -> list[EventRef]:
        self.renewed.extend(events)
        return list(events) if self.forgets else []

    async def restore(self, held: Sequence[HeldReservation]) -> None:
        self.restored.extend(held)

    def models(self) -> tuple[ServedModel, ...]:
        return (ServedModel("m", "naru", 0.0, 100),)

    def check(self, model: str) -> None:
        return None

    def has_other(self, model: str, without: Collection[str]) -> bool:
        return any(name not in without for name in self.names)

    def submit(self, request: GenerationRequest, without: Collection[str] = ()) -> GenerationStream:
        able = [name for name in self.names if name not in without]
        if not able:
            raise unavailable("inference")
        stream = FakeStream(able[0], self.scripts.pop(0), written=self.written)
        self.submitted.append((able[0], request))
        self.streams.append(stream)
        return stream

    def known(self, credential: str, client_address: str = "", workspace_id: str = "") -> Principal | None:
        return None

    async def authenticate(self, credential: str, client_address: str = "", workspace_id: str = "") -> Principal:
        raise AssertionError("not asked here")

    def gateway(self, **policy: Any) -> Gateway:
        return Gateway(
            authenticator=self,
            quota=self,
            leases=Leases(self, interval=20.0),
            replicas=self,
            policy=GatewayPolicy(**policy),
            clock=SystemClock(),
            new_event_id=lambda: "event",
        )


CALL = Call(
    request_id="r",
    principal=Principal(workspace_id="w"),
    client_address="",
    endpoint=Endpoint.CHAT_COMPLETIONS,
    requested_model="m",
    stream=True,
    input_tokens=10,
    output_tokens=0,
    choices=1,
    traceparent="",
    body=b"{}",
)


async def run(world: World, **policy: Any) -> tuple[str, Progress]:
    """Runs a request to its end; the text it got."""
    progress = Progress()
    async with world.gateway(**policy).generate(CALL, progress) as generation:
        text = "".join(delta.text for delta in await told(generation))
    return text, progress


async def told(generation: Generation) -> list[Delta]:
    """All that is generated."""
    deltas: list[Delta] = []

    def take(some: Sequence[Delta]) -> bool:
        deltas.extend(some)
        return True

    while not await generation.forward(take):
        pass
    return deltas


def attempts(world: World) -> list[tuple[str, int, int]]:
    """Where each submission went, its attempt, and what was reserved for it."""
    return [(name, request.attempt, request.reserved_prompt_tokens) for name, request in world.submitted]


async def test_plain() -> None:
    """Reserve, submit, answer: nothing is released, the stream is closed, the usage is the engine's."""
    world = World([ACCEPTED, Delta(0, "hi", 1, "stop"), DONE])
    text, progress = await run(world)
    assert text == "hi"
    assert progress.usage == DONE.usage
    assert progress.event_id == "event"
    assert attempts(world) == [("a", 0, 10)]
    assert world.released == []
    assert world.finished == [EventRef("event", 0)]
    assert world.streams[0].closed


async def test_a_spare_needs_no_reservation() -> None:
    """What was taken in advance is the request's from then on: its event, its figures, its lease and its release."""
    world = World(
        [Refused(unavailable("x"), 50)], [ACCEPTED, Delta(0, "hi", 1, "stop"), DONE], [Refused(overloaded("time"))]
    )
    world.spares = [spare_of("second"), spare_of("first")]
    world.decide = lambda _: ReserveResult(output_token_cap=5)
    _, progress = await run(world)
    assert progress.event_id == "first"
    assert attempts(world) == [("a", 0, 15), ("b", 0, 50)]
    # Only what was too small was reserved, as a better figure for the same event.
    assert [(one.event_id, one.attempt, one.revision, one.input_tokens) for one in world.reserved] == [
        ("first", 0, 1, 50)
    ]
    assert world.finished == [EventRef("first", 0)]
    assert world.submitted[0][1].output_token_cap == 3
    with pytest.raises(NaruError):
        await run(world)
    assert world.released == [EventRef("second", 0)]


async def test_a_request_with_a_key_or_another_attempt_reserves_for_itself() -> None:
    """Their events are decided on by what was asked before."""
    world = World([LOST_WRITTEN], [ACCEPTED, DONE], [ACCEPTED, DONE])
    world.spares = [spare_of("spare")]
    await run(world)
    assert [(one.event_id, one.attempt) for one in world.reserved] == [("spare", 1)]
    world.spares = [spare_of("another")]
    keyed = replace(CALL, idempotency=Idempotency("key", b""))
    async with world.gateway().generate(keyed, Progress()) as generation:
        await told(generation)
    assert world.reserved[-1].event_id == "event"


def spare_of(event_id: str) -> Spare:
    """One for a request of up to 15 prompt tokens, and 3 more."""
    reservation = Reservation(event_id, 0, 0, CALL.principal, "", "m", "m", CALL.endpoint, 15, 0, 1, "r")
    return Spare(reservation, ReserveResult(output_token_cap=3, reserve_time=1.0))


def overloaded(bound: str) -> NaruError:
    """What inference says when a request met a bound of its queue."""
    return NaruError(Reason.OVERLOADED, "Busy.", metadata={"service": "inference", "bound": bound}, retry_after=1.0)


@pytest.mark.parametrize(
    ("first", "expected_attempts", "reservations"),
    [
        ([LOST_WRITTEN], [("a", 0, 10), ("b", 1, 10)], [(0, 0), (1, 0)]),
        ([ACCEPTED, LOST_WRITTEN], [("a", 0, 10), ("b", 1, 10)], [(0, 0), (1, 0)]),
        ([LOST_UNWRITTEN], [("a", 0, 10), ("b", 0, 10)], [(0, 0)]),
        ([Refused(unavailable("inference"))], [("a", 0, 10), ("b", 0, 10)], [(0, 0)]),
        ([Refused(overloaded("length"))], [("a", 0, 10), ("b", 0, 10)], [(0, 0)]),
        ([Refused(unavailable("x"), 50)], [("a", 0, 10), ("b", 0, 50)], [(0, 0), (0, 1)]),
    ],
    ids=["lost", "lost after accepted", "lost before written", "stopping", "full", "larger than reserved"],
)
async def test_another_try(
    first: list[Step], expected_attempts: list[tuple[str, int, int]], reservations: list[tuple[int, int]]
) -> None:
    """A try that may have reached a replica makes the next one a new attempt; one that certainly did not, does not."""
    world = World(first, [ACCEPTED, Delta(0, "ok", 1, "stop"), DONE])
    text, _ = await run(world)
    assert text == "ok"
    assert attempts(world) == expected_attempts
    assert [(reservation.attempt, reservation.revision) for reservation in world.reserved] == reservations
    assert world.released == []
    # The attempt that ended, not one that may still run.
    assert world.finished == [EventRef("event", expected_attempts[-1][1])]


@pytest.mark.parametrize(
    ("scripts", "replicas", "released"),
    [
        ([[LOST_WRITTEN]], 1, []),
        ([[LOST_UNWRITTEN]], 1, [("event", 0)]),
        ([[LOST_WRITTEN], [LOST_WRITTEN]], 3, []),
        ([[LOST_WRITTEN], [LOST_UNWRITTEN]], 3, [("event", 1)]),
        ([[Refused(unavailable("inference"))]], 1, [("event", 0)]),
        ([[Refused(invalid_argument("n", "no"))]], 2, [("event", 0)]),
        # It has waited at one replica already.
        ([[Refused(overloaded("time"))]], 2, [("event", 0)]),
        ([[ACCEPTED, Delta(0, "x", 1), LOST_WRITTEN]], 2, []),
    ],
)
async def test_released_only_what_never_began(
    scripts: list[list[Step]], replicas: int, released: list[tuple[str, int]]
) -> None:
    """What may have reached a replica is left to its lease; what was refused or never written is given back, once."""
    world = World(*scripts, replicas=replicas)
    with pytest.raises(NaruError):
        await run(world)
    assert world.released == released
    assert len(world.submitted) == len(scripts)
    assert all(stream.closed for stream in world.streams)


async def test_no_new_try_after_the_first_token() -> None:
    """Once text was delivered, a lost replica ends the request."""
    world = World([ACCEPTED, Delta(0, "x", 1), LOST_WRITTEN], [ACCEPTED, DONE])
    with pytest.raises(NaruError) as failure:
        await run(world)
    assert failure.value.reason is Reason.SERVICE_UNAVAILABLE
    assert len(world.submitted) == 1


async def test_refusals_end() -> None:
    """A replica that is never content with what is reserved does not keep a request going for ever."""
    world = World(*[[Refused(invalid_argument("prompt", "large"), 100 + number)] for number in range(9)])
    with pytest.raises(NaruError):
        await run(world)
    assert [reservation.revision for reservation in world.reserved] == [0, 1, 2, 3]
    assert world.released == [("event", 0)]


async def test_a_place_in_flight_may_be_free_a_moment_later() -> None:
    """Asked once more, and only once: the request before it may be settled meanwhile."""
    error = NaruError(Reason.CONCURRENCY_LIMIT_EXCEEDED, "Too many.", retry_after=1)
    world = World([ACCEPTED, Delta(0, "hi", 1, "stop"), DONE])
    world.decide = lambda _: ReserveResult(refusal=error if len(world.reserved) == 1 else None)
    assert (await run(world))[0] == "hi"
    assert [reservation.revision for reservation in world.reserved] == [0, 0]
    world = World()
    world.decide = lambda _: ReserveResult(refusal=error)
    with pytest.raises(NaruError) as failure:
        await run(world)
    assert (failure.value, len(world.reserved)) == (error, 2)


async def test_refused_reservation_takes_nothing() -> None:
    """A refused reservation is not released; a refused revision gives back what the first one took."""
    error = NaruError(Reason.RATE_LIMIT_EXCEEDED, "no", retry_after=1)
    world = World()
    world.decide = lambda _: ReserveResult(refusal=error)
    with pytest.raises(NaruError):
        await run(world)
    assert world.released == []
    world = World([Refused(invalid_argument("prompt", "large"), 100)])
    world.decide = lambda reservation: ReserveResult(refusal=error if reservation.revision else None)
    with pytest.raises(NaruError):
        await run(world)
    assert world.released == [("event", 0)]


@pytest.mark.parametrize(("written", "released"), [(True, []), (False, [("event", 0)])])
async def test_cancelled_while_waiting(written: bool, released: list[tuple[str, int]]) -> None:
    """A client that goes away: the stream is closed, and the reservation given back only if nothing was written."""
    world = World([], written=written)
    task = asyncio.create_task(run(world))
    while not world.streams:
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.released == released
    assert world.streams[0].closed


async def test_cancelled_while_reserving() -> None:
    """A reservation that was asked for may have been made: it is given back."""
    world = World()
    waiting = asyncio.Event()

    async def never(reservation: Reservation) -> ReserveResult:
        waiting.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.reserve = never  # type: ignore[method-assign] # this world's accounting hangs
    task = asyncio.create_task(run(world))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert world.released == [("event", 0)]


async def test_time_runs_out_at_the_edge() -> None:
    """A replica that does not keep to the time is not waited for longer than the margin."""
    world = World([ACCEPTED])
    with pytest.raises(NaruError) as failure:
        await run(world, request_timeout=0.02, timeout_margin=0.02)
    assert failure.value.reason is Reason.DEADLINE_EXCEEDED
    assert world.streams[0].closed
    assert 0 < world.submitted[0][1].timeout <= 0.02


async def test_interruption_reaches_a_handler_that_waits_elsewhere() -> None:
    """A stream that is cut stops its handler even while it waits for the client and not for the stream."""
    world = World([ACCEPTED])
    with pytest.raises(NaruError) as failure:
        async with world.gateway().generate(CALL, Progress()):
            world.streams[0].interrupted(NaruError(Reason.CANCELLED, "not read"))
            await asyncio.Event().wait()
    assert failure.value.message == "not read"


async def test_interrupted_again_while_it_unwinds() -> None:
    """A second interruption, before the handler has noticed the first, does no harm to whoever makes it."""
    world = World([ACCEPTED])
    gateway, error = world.gateway(), NaruError(Reason.CANCELLED, "not read")
    raised: list[BaseException] = []

    def again() -> None:
        try:
            gateway.interrupt_all(unavailable("edge"))
        except RuntimeError as failure:
            raised.append(failure)

    with pytest.raises(NaruError) as failure:
        async with gateway.generate(CALL, Progress()):
            world.streams[0].interrupted(error)
            asyncio.get_running_loop().call_soon(again)
            await asyncio.Event().wait()
    assert raised == []
    assert failure.value is error


@pytest.mark.parametrize(
    ("finished", "reason"),
    [
        (Finished(FinishOutcome.ABORTED, Usage(), unavailable("inference")), Reason.SERVICE_UNAVAILABLE),
        (Finished(FinishOutcome.FAILED, Usage(), NaruError(Reason.INTERNAL, "x")), Reason.INTERNAL),
        (Finished(FinishOutcome.ABORTED, Usage()), Reason.SERVICE_UNAVAILABLE),
    ],
)
async def test_early_end_is_an_error(finished: Finished, reason: Reason) -> None:
    """An answer that the service cut short is never passed off as complete."""
    world = World([ACCEPTED, Delta(0, "x", 1, "abort"), finished])
    with pytest.raises(NaruError) as failure:
        await run(world)
    assert failure.value.reason is reason


@asynccontextmanager
async def one_waiting_and_one_accepted(world: World) -> AsyncIterator[None]:
    """Two requests, of which a replica accepted the second, and leases that are renewed quickly."""
    leases = Leases(world, interval=0.01)
    renewing = asyncio.create_task(leases.run())
    gateway = Gateway(
        authenticator=world,
        quota=world,
        leases=leases,
        replicas=world,
        policy=GatewayPolicy(),
        clock=SystemClock(),
        new_event_id=iter(("waiting", "accepted")).__next__,
    )

    async def hold() -> None:
        async with gateway.generate(CALL, Progress()):
            await asyncio.Event().wait()

    tasks = [renewing, *(asyncio.create_task(hold()) for _ in range(2))]
    async with asyncio.timeout(20):
        yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_leases_are_renewed_until_accepted() -> None:
    """Leases of waiting requests are renewed in one call; those that a replica accepted are not."""
    world = World([], [ACCEPTED])
    async with one_waiting_and_one_accepted(world):
        while len(world.renewed) < 3:
            await asyncio.sleep(0.005)
    assert set(world.renewed) == {("waiting", 0)}
    assert world.restored == []


async def test_what_accounting_forgot_is_restored_until_accepted() -> None:
    """What a waiting request reserved, and since when; what a replica accepted is the replica's to restore."""
    world = World([], [ACCEPTED])
    world.forgets = True
    world.decide = lambda _: ReserveResult(reserve_time=1_800_000_000.5)
    async with one_waiting_and_one_accepted(world):
        while not world.restored:
            await asyncio.sleep(0.005)
    assert set(world.restored) == {HeldReservation(world.reserved[0], 1_800_000_000.5)}
    assert world.reserved[0].event_id == "waiting"


async def test_cost_is_of_the_last_grant() -> None:
    """A request costs what the grant it ran under says, for the exact usage; without prices there is no cost."""
    world = World([Refused(invalid_argument("x", "larger"), prompt_tokens=20)], [ACCEPTED, DONE])
    world.decide = lambda reservation: ReserveResult(
        prices=UnitPrices(input_million=10**6, output_million=5 * 10**6, request=100 + reservation.revision)
    )
    _, progress = await run(world)
    assert progress.cost == 7 + 5 + 101
    _, unpriced = await run(World([ACCEPTED, DONE]))
    assert unpriced.cost is None


async def test_nobody_decided_what_it_costs() -> None:
    """Without accounting nothing is known of it; what an earlier grant said stays known."""
    prices = UnitPrices(request=100)

    def away_after(grants: int, world: World) -> Callable[[Reservation], ReserveResult]:
        def decide(_: Reservation) -> ReserveResult:
            if len(world.reserved) > grants:
                raise unavailable("accounting")
            return ReserveResult(prices=prices)

        return decide

    for grants, known in ((0, (False, None)), (1, (True, 100))):
        world = World([Refused(invalid_argument("x", "larger"), prompt_tokens=20)], [ACCEPTED, DONE])
        world.decide = away_after(grants, world)
        _, progress = await run(world, admit_without_accounting=True)
        assert (progress.decided, progress.cost) == known


KEYED = replace(CALL, idempotency=Idempotency("k", b"d" * 32))


def fates(world: World) -> list[tuple[str, OutcomeFate, bytes]]:
    """What accounting was told of keys."""
    return [(kept.event_id, kept.fate, kept.outcome) for kept in world.kept]


@pytest.mark.parametrize(
    ("outcome", "fate"), [(b"answer", (OutcomeFate.ANSWERED, b"answer")), (None, (OutcomeFate.TOO_LARGE, b""))]
)
async def test_what_was_answered_is_told_once(outcome: bytes | None, fate: tuple[OutcomeFate, bytes]) -> None:
    """A complete answer is told, the end of the request adds nothing; without a key nothing is told at all."""
    for call, expected in ((KEYED, [("event", *fate)]), (CALL, [])):
        world = World([ACCEPTED, DONE])
        async with world.gateway().generate(call, Progress()) as generation:
            await told(generation)
            generation.keep(outcome)
        assert fates(world) == expected
        assert [reservation.idempotency for reservation in world.reserved] == [call.idempotency]


@pytest.mark.parametrize(
    ("scripts", "released"),
    [
        ([[ACCEPTED, DONE]], []),
        ([[LOST_WRITTEN], [LOST_WRITTEN]], []),
        ([[LOST_UNWRITTEN], [LOST_UNWRITTEN]], [("event", 0)]),
        ([[Refused(invalid_argument("n", "No."))]], [("event", 0)]),
        ([[Refused(unavailable("x"), 50)], [ACCEPTED, Delta(0, "", 1), LOST_WRITTEN]], []),
    ],
    ids=["nobody kept it", "lost twice", "never written", "refused", "lost in the middle"],
)
async def test_what_was_not_answered_is_told_once(scripts: list[list[Step]], released: list[tuple[str, int]]) -> None:
    """However it ended, the key is free for another try."""
    world = World(*scripts)
    try:
        async with world.gateway().generate(KEYED, Progress()) as generation:
            await told(generation)
    except NaruError:
        pass
    assert fates(world) == [("event", OutcomeFate.FAILED, b"")]
    assert world.released == released


async def test_a_replay_is_neither_made_nor_told() -> None:
    """What was made before comes out as it was kept; nothing is submitted, released or told."""
    world = World()
    world.decide = lambda _: ReserveResult(replay=b"before")
    with pytest.raises(Replayed) as replayed:
        async with world.gateway().generate(KEYED, Progress()):
            raise AssertionError("nothing was generated")
    assert replayed.value.outcome == b"before"
    assert (world.submitted, world.released, world.kept) == ([], [], [])


async def test_who_is_refused_does_not_have_the_key() -> None:
    """The key stays with whoever has it; a call that was lost may have taken it, and gives it back."""
    world = World()
    world.decide = lambda _: ReserveResult(refusal=NaruError(Reason.IDEMPOTENCY_IN_FLIGHT, "Wait.", retry_after=1.0))
    with pytest.raises(NaruError):
        async with world.gateway().generate(KEYED, Progress()):
            raise AssertionError("nothing was generated")
    assert (world.released, world.kept) == ([], [])

    def lose(_: Reservation) -> ReserveResult:
        raise unavailable("accounting")

    world.decide = lose
    with pytest.raises(NaruError):
        async with world.gateway().generate(KEYED, Progress()):
            raise AssertionError("nothing was generated")
    assert world.released == [("event", 0)]
    assert fates(world) == [("event", OutcomeFate.FAILED, b"")]
