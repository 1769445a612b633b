"""Reserve, release, renew: what the limiter is asked for a tier, and what happens when the limiter cannot be relied on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accounting.limiter import MICROS, Limiter, Standing, Taken
from accounting.quota import Decision, EventRef, Grant, Reservation
from accounting.tiers import Tiers
from naru.clock import Clock
from naru.errors import NaruError, Reason, unavailable
from naru.logs import Logger
from naru.metrics import Metrics

_LOG_SECONDS = 10.0


class Reservations:
    """Decides about reservations.

    Args:
        lease_seconds: Length of a lease that is granted without the limiter.
        admit_when_lost: Admit and log while the limiter is away or was emptied; otherwise refuse everybody.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        tiers: Tiers,
        clock: Clock,
        logger: Logger,
        metrics: Metrics,
        lease_seconds: float,
        admit_when_lost: bool,
    ) -> None:
        self._limiter = limiter
        self._tiers = tiers
        self._clock = clock
        self._logger = logger
        self._lease_seconds = lease_seconds
        self._admit_when_lost = admit_when_lost
        self._logged: float | None = None
        self._decided = metrics.counter("naru_reservations_total", "Reservations decided.", ("decision",))

    async def reserve(self, reservations: Sequence[Reservation]) -> list[Decision]:
        """Decides about each, in order. Raises NaruError SERVICE_UNAVAILABLE when the limiter cannot be relied on."""
        prepared = [self._prepare(reservation) for reservation in reservations]
        taken = await self._take([reservation for reservation, _ in prepared])
        decisions = []
        for (reservation, cap), one in zip(prepared, taken, strict=True):
            outcome = one.outcome
            if isinstance(outcome, Grant) and cap is not None:
                outcome = replace(outcome, output_token_cap=cap)
            self._decided.labels("granted" if isinstance(outcome, Grant) else outcome.reason.lower()).inc()
            decisions.append(Decision(reservation.ref, outcome, one.limits))
        return decisions

    async def release(self, refs: Sequence[EventRef]) -> list[bool]:
        """Gives back what each holds, except its request count. Tells which were open."""
        return await self._limiter.release(refs)

    async def renew(self, refs: Sequence[EventRef]) -> list[int | None]:
        """Extends leases. Tells when each ends (microseconds since the Unix epoch); None when it does not go on."""
        return await self._limiter.renew(refs)

    def _prepare(self, reservation: Reservation) -> tuple[Reservation, int | None]:
        """The reservation with a figure for its output, and the cap that the engine needs for the figure to hold."""
        tier = self._tiers.of(reservation.work.principal)
        if reservation.output_tokens > 0 or not tier.caps_output:
            return reservation, None
        return replace(reservation, output_tokens=tier.default_output_tokens), tier.default_output_tokens

    async def _take(self, reservations: Sequence[Reservation]) -> Sequence[Taken]:
        items = [(reservation, self._tiers.limits(reservation.work.principal)) for reservation in reservations]
        try:
            verdict = await self._limiter.reserve(items, admit_when_lost=self._admit_when_lost)
        except NaruError as error:
            if not self._admit_when_lost or error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            self._log_admission("the limiter is away")
            now = round(self._clock.time() * MICROS)
            grant = Grant(now, now + round(self._lease_seconds * MICROS))
            return [Taken(grant, ()) for _ in reservations]
        if verdict.standing is Standing.OK:
            return verdict.taken
        if self._admit_when_lost:
            self._log_admission("the limiter was emptied")
            return verdict.taken
        raise unavailable(
            "accounting",
            "The limiter has lost its state and is recovering.",
            retry_after=max(verdict.wait_seconds, 1.0),
        )

    def _log_admission(self, why: str) -> None:
        now = self._clock.monotonic()
        if self._logged is None or now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self._logger.warning("admitting requests without full knowledge of their limits", why=why)
