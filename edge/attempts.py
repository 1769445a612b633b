"""One request on its way through reservation and replicas."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from edge.accounts import EventRef, HeldReservation, KeptOutcome, OutcomeFate, Reservation
from edge.generation import (
    Accepted,
    Delta,
    Event,
    Finished,
    FinishOutcome,
    GenerationRequest,
    GenerationStream,
    Refused,
    SessionLost,
)
from edge.leases import Leases
from edge.ports import Call, GatewayPolicy, Progress, Quota, Replicas
from edge.reserving import ask_quota
from edge.spares import Spare
from naru.clock import Clock
from naru.errors import NaruError, Reason, unavailable

_MOST_REVISIONS = 3


class Replayed(Exception):  # noqa: N818 -- it is an event the routes act on, never shown to anybody
    """The same request was made before.

    Args:
        outcome: What became of it, as it was given to `Generation.keep`.
    """

    def __init__(self, outcome: bytes) -> None:
        super().__init__("the request was made before")
        self.outcome = outcome


class Generation:
    """One request on its way through reservation and replicas. Made by `Gateway.generate`."""

    def __init__(
        self,
        *,
        call: Call,
        served: str,
        progress: Progress,
        quota: Quota,
        leases: Leases,
        replicas: Replicas,
        policy: GatewayPolicy,
        clock: Clock,
    ) -> None:
        self._call = call
        self._served = served
        self._progress = progress
        self._quota = quota
        self._leases = leases
        self._replicas = replicas
        self._policy = policy
        self._clock = clock
        self._deadline = clock.monotonic() + policy.request_timeout
        self._event = EventRef(progress.event_id, 0)
        self._revision = 0
        self._input_tokens = call.input_tokens
        self._cap: int | None = None
        self._reserved = False
        self._holds_key = False
        self._without: set[str] = set()
        self._stream: GenerationStream | None = None
        self._pending: Sequence[Event] = ()
        self._accepted: Accepted | None = None
        self._began = False
        self._finished: Finished | None = None
        self._interrupt: Callable[[], None] = lambda: None
        self.interruption: NaruError | None = None

    @property
    def accepted(self) -> Accepted:
        """What the engine said when it took the request."""
        assert self._accepted is not None  # noqa: S101 -- `Gateway.generate` hands out accepted requests only
        return self._accepted

    @property
    def model(self) -> str:
        """The model's name as the client sees it: the one asked for, or the served one behind an alias."""
        return self._served

    def interrupt_with(self, interrupt: Callable[[], None]) -> None:
        """Sets what stops the handler when its stream is cut."""
        self._interrupt = interrupt

    async def open(self) -> None:
        """Reserves and submits until an engine has accepted the request. Raises NaruError, or Replayed."""
        while True:
            if not self._reserved:
                await self._reserve()
            self._stream = self._submit()
            try:
                events = await self._first_events(self._stream)
            except SessionLost as lost:
                self._move_on(written=lost.written)
                continue
            first = events[0]
            if isinstance(first, Accepted):
                self._accepted = first
                self._pending = events[1:]
                self._leases.drop(self._event)
                return
            if not isinstance(first, Refused):
                raise unavailable("inference")
            self._refused(first)

    async def forward(self, take: Callable[[Sequence[Delta]], bool]) -> bool:
        """Hands what the engine generates to `take`, step by step, until all is told or that returns False.

        Call it again then, once there is room for more. No deltas stand for silence. `take` is called in whichever turn of the
        loop something came, so it must not wait. Sets the usage at the end.

        Returns whether all is told.

        Raises NaruError when the engine, the replica or the service ends it early, and what `take` raises.
        """

        def hand_on(events: Sequence[Event]) -> bool:
            deltas = [event for event in events if isinstance(event, Delta)]
            if deltas:
                self._began = True
                self._note_end(deltas)
            last = events[-1] if events else None
            if isinstance(last, Finished):
                self._finished = last
            more = take(deltas) if deltas or not events else True
            return more and self._finished is None

        pending, self._pending = self._pending, ()
        if not pending or hand_on(pending):
            await self._forward(hand_on)
        if self._finished is not None:
            self._finish(self._finished)
        return self._finished is not None

    def keep(self, outcome: bytes | None) -> None:
        """Says that the request was answered completely, and how; None: by more than can be kept.

        Matters to requests with an idempotency key alone. One that ends without this may be made again.
        """
        self._tell_fate(OutcomeFate.TOO_LARGE if outcome is None else OutcomeFate.ANSWERED, outcome or b"")

    def interrupt(self, error: NaruError) -> None:
        """Stops the handler, wherever it waits; the gateway then raises `error`."""
        self.interruption = self.interruption or error
        self._interrupt()

    def close(self) -> None:
        """Ends the request at its replica, and gives its reservation back if it certainly never began."""
        self._leases.drop(self._event)
        self._tell_fate(OutcomeFate.FAILED)
        if self._stream is None:
            if self._reserved:
                self._release()
            return
        self._stream.close()
        if not self._stream.written:
            self._release()

    async def _forward(self, hand_on: Callable[[Sequence[Event]], bool]) -> None:
        assert self._stream is not None  # noqa: S101 -- it is accepted
        try:
            await self._stream.forward(hand_on)
        except SessionLost:
            if self._began:
                raise unavailable("inference", "The connection to the model was lost.") from None
            self._move_on(written=True)
            await self.open()

    async def _first_events(self, stream: GenerationStream) -> Sequence[Event]:
        while True:
            events = await stream.receive()
            if events:
                return events

    def _note_end(self, deltas: Sequence[Delta]) -> None:
        for delta in deltas:
            if delta.finish_reason:
                self._progress.finish_reason = delta.finish_reason

    def _finish(self, finished: Finished) -> None:
        self._progress.usage = finished.usage
        if finished.error is not None:
            raise finished.error
        if finished.outcome is not FinishOutcome.COMPLETED:
            raise unavailable("inference", "The model stopped before the answer was complete.")
        self._quota.finish(self._event)

    async def _reserve(self) -> None:
        # Said before asking: a call that was cancelled or lost may have taken capacity all the same.
        self._reserved = self._holds_key = True
        started = self._clock.monotonic()
        reservation = self._reservation()
        spare = self._spare(reservation)
        if spare is None:
            result = await ask_quota(self._quota, reservation, admit_without=self._policy.admit_without_accounting)
        else:
            reservation, result = spare
            self._event, self._input_tokens = reservation.event, reservation.input_tokens
            self._progress.event_id = reservation.event_id
        self._progress.reserve_seconds += self._clock.monotonic() - started
        self._progress.limits = result.limits or self._progress.limits
        if result.replay is not None:
            self._reserved = self._holds_key = False
            raise Replayed(result.replay)
        if result.refusal is not None:
            self._holds_key = False
            # Revision 0 took nothing; a later one left the earlier reservation as it was.
            self._reserved = self._revision > 0
            raise result.refusal
        self._cap = result.output_token_cap
        if result.decided:
            self._progress.decided, self._progress.prices = True, result.prices
        self._leases.hold(HeldReservation(reservation, result.reserve_time))

    def _spare(self, reservation: Reservation) -> Spare | None:
        first = reservation.attempt == 0 and reservation.revision == 0
        return self._quota.spare(reservation) if first and reservation.idempotency is None else None

    def _reservation(self) -> Reservation:
        return Reservation(
            event_id=self._event.event_id,
            attempt=self._event.attempt,
            revision=self._revision,
            principal=self._call.principal,
            client_address=self._call.client_address,
            requested_model=self._call.requested_model,
            served_model=self._served,
            endpoint=self._call.endpoint,
            input_tokens=self._input_tokens,
            output_tokens=self._call.output_tokens,
            choices=self._call.choices,
            request_id=self._call.request_id,
            idempotency=self._call.idempotency,
        )

    def _submit(self) -> GenerationStream:
        call = self._call
        stream = self._replicas.submit(
            GenerationRequest(
                event_id=self._event.event_id,
                attempt=self._event.attempt,
                principal=call.principal,
                reserved_prompt_tokens=self._input_tokens,
                output_token_cap=self._cap,
                timeout=max(self._deadline - self._clock.monotonic(), 0.001),
                traceparent=call.traceparent,
                request_id=call.request_id,
                model=self._served,
                requested_model=call.requested_model,
                stream=call.stream,
                endpoint=call.endpoint,
                body=call.body,
            ),
            self._without,
        )
        stream.on_interrupt(self.interrupt)
        return stream

    def _move_on(self, *, written: bool) -> None:
        """Gets ready for another replica, once. An attempt that may have reached one stays reserved: its lease decides."""
        self._give_up_replica()
        if len(self._without) > 1 or not self._replicas.has_other(self._served, self._without):
            if not written:
                self._release()
            self._reserved = False
            raise unavailable("inference", "The connection to the model was lost.")
        if written:
            self._leases.drop(self._event)
            self._event = EventRef(self._event.event_id, self._event.attempt + 1)
            self._revision = 0
            self._reserved = False

    def _refused(self, refused: Refused) -> None:
        """Gets ready for another try where that helps. Raises the refusal where it does not."""
        # One that has waited as long as it may at one replica is not made to wait at another one.
        waited = refused.error.metadata.get("bound") == "time"
        replica_is_busy = refused.error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.OVERLOADED) and not waited
        self._give_up_replica(exclude=replica_is_busy)
        if refused.prompt_tokens is not None and self._revision < _MOST_REVISIONS:
            self._input_tokens = refused.prompt_tokens
            self._revision += 1
            self._reserved = False
        elif not (
            replica_is_busy and len(self._without) == 1 and self._replicas.has_other(self._served, self._without)
        ):
            self._release()
            raise refused.error

    def _give_up_replica(self, *, exclude: bool = True) -> None:
        if self._stream is not None:
            if exclude:
                self._without.add(self._stream.replica)
            self._stream.close()
            self._stream = None

    def _tell_fate(self, fate: OutcomeFate, outcome: bytes = b"") -> None:
        given = self._call.idempotency
        if given is not None and self._holds_key:
            self._holds_key = False
            self._quota.keep(KeptOutcome(self._event.event_id, self._call.principal, given.key, fate, outcome))

    def _release(self) -> None:
        self._reserved = False
        self._quota.release(self._event)
