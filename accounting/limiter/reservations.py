"""Reserve, release, renew: what the limiter is asked, and what happens when the limiter cannot be relied on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from accounting.catalogue.catalogue import Catalogue
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.idempotency import Held, Replay, unsupported_error
from accounting.limiter.answers import Taken
from accounting.limiter.limiter import MICROS, Limiter, Standing
from accounting.limiter.outcomes import Outcomes
from accounting.quota import (
    MAX_TOKENS,
    Decision,
    EventRef,
    Grant,
    Limit,
    LimitKind,
    LimitNotice,
    LimitOverview,
    Renewal,
    Reservation,
    RunningRequest,
    unpriced_error,
)
from naru.clock import Clock
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal
from naru.logs import Logger
from naru.metrics import Metrics

_LOG_SECONDS = 10.0
_CAPPING = (LimitKind.OUTPUT_TOKENS, LimitKind.TOTAL_TOKENS, LimitKind.COST)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What the limiter is asked, or why it is not; and what a grant says besides."""

    reservation: Reservation
    limits: tuple[Limit, ...] = ()
    cap: int | None = None
    refusal: NaruError | None = None


class Reservations:
    """Decides about reservations.

    Args:
        lease_seconds: Length of a lease that is granted without the limiter.
        admit_when_lost: Admit and log while the limiter is away or was emptied; otherwise refuse everybody.
        outcomes: Answers requests that were made before with the same idempotency key.
        refuse_unpriced: Refuse models that nobody has set a price for; otherwise they cost nothing.
    """

    def __init__(
        self,
        *,
        limiter: Limiter,
        catalogue: CatalogueKeeper,
        outcomes: Outcomes,
        clock: Clock,
        logger: Logger,
        metrics: Metrics,
        lease_seconds: float,
        admit_when_lost: bool,
        refuse_unpriced: bool = False,
    ) -> None:
        self._limiter = limiter
        self._catalogue = catalogue
        self._outcomes = outcomes
        self._clock = clock
        self._logger = logger
        self._lease_seconds = lease_seconds
        self._admit_when_lost = admit_when_lost
        self._refuse_unpriced = refuse_unpriced
        self._logged: float | None = None
        self._unknown_tiers: set[str] = set()
        self._decided = metrics.counter("naru_reservations_total", "Reservations decided.", ("decision",))
        self._noticed = metrics.counter(
            "naru_limit_notices_total",
            "Soft thresholds crossed, and requests that a limit in shadow would have refused.",
            ("notice", "scope", "kind", "window"),
        )

    async def reserve(self, reservations: Sequence[Reservation], finished: Sequence[EventRef] = ()) -> list[Decision]:
        """Decides about each, in order, once requests that have `finished` gave their places in flight back.

        Raises NaruError SERVICE_UNAVAILABLE when the limiter cannot be relied on.
        """
        catalogue, now = self._catalogue.current, round(self._clock.time() * MICROS)
        prepared = [self._prepare(catalogue, reservation, now) for reservation in reservations]
        taken = iter(await self._take([one for one in prepared if one.refusal is None], finished))
        decisions = [
            self._decision(catalogue, one, next(taken))
            if one.refusal is None
            else Decision(one.reservation.ref, one.refusal)
            for one in prepared
        ]
        counts: Counter[str] = Counter()
        for one, decision in zip(prepared, decisions, strict=True):
            label, count = _counted(one.reservation, decision.outcome)
            counts[label] += count
        for label, count in counts.items():
            self._decided.labels(label).inc(count)
        return decisions

    async def release(self, refs: Sequence[EventRef], *, unused_spares: bool = False) -> list[bool]:
        """Gives back what each holds, except its request count; of unused spares that too. Tells which were open."""
        released = await self._limiter.release(refs, unused_spares=unused_spares)
        if unused_spares:
            self._decided.labels("spare_unused").inc(sum(released))
        return released

    async def finish(self, refs: Sequence[EventRef]) -> None:
        """Gives back the places in flight of requests that have ended; what they used is settled when it is reported."""
        await self._limiter.finish(refs)

    async def renew(self, refs: Sequence[EventRef]) -> list[Renewal]:
        """Extends leases."""
        leases = await self._limiter.renew(refs)
        lost = [ref for ref, lease in zip(refs, leases, strict=True) if lease is None]
        known = await self._limiter.look_up(lost)
        unknown = {ref for ref, found in zip(lost, known, strict=True) if not found.at_all}
        return [Renewal(lease, ref in unknown) for ref, lease in zip(refs, leases, strict=True)]

    async def restore(self, running: Sequence[RunningRequest]) -> list[Renewal]:
        """Takes what running requests hold that the limiter knows nothing of, whatever their limits say, and leases it anew."""
        catalogue, now = self._catalogue.current, round(self._clock.time() * MICROS)
        items = []
        for one in running:
            since = one.reserve_time or now
            # What would refuse it now did not when it was reserved.
            prepared = self._prepare(catalogue, one.reservation, since)
            items.append((prepared.reservation, prepared.limits, since))
        restored = await self._limiter.restore(items)
        for _, notices in restored:
            for notice in notices:
                self._tell(notice)
        return [Renewal(lease) for lease, _ in restored]

    async def overview(self, principal: Principal, client_address: str, model: str) -> LimitOverview:
        """Where the limits of a caller stand; with a model also those for it alone."""
        catalogue = self._catalogue.current
        limits = catalogue.limits(principal, client_address, model)
        return LimitOverview(catalogue.tier(principal.tier).name, await self._limiter.inspect(limits))

    def _prepare(self, catalogue: Catalogue, reservation: Reservation, now: int) -> _Prepared:
        """The reservation with its limits and cost, and the cap that the engine needs for the figures to hold."""
        work = reservation.work
        self._log_unknown_tier(catalogue, work.principal.tier)
        limits = catalogue.limits(work.principal, reservation.client_address, work.served_model)
        price = catalogue.price(work.served_model, work.principal.workspace_id, now)
        if price is None and self._refuse_unpriced:
            return _Prepared(reservation, limits, refusal=unpriced_error(work.served_model))
        if reservation.idempotency is not None and not self._outcomes.supported:
            return _Prepared(reservation, refusal=unsupported_error())
        prices = price.unit_prices if price else None
        cap, output_tokens = None, reservation.output_tokens
        if output_tokens == 0 and any(one.kind in _CAPPING and not one.shadow for one in limits):
            cap = catalogue.tier(work.principal.tier).default_output_tokens
            output_tokens = min(cap * reservation.choices, MAX_TOKENS)
        cost = prices.most(reservation.input_tokens, output_tokens) if prices else 0
        if cost or cap:
            reservation = msgspec.structs.replace(reservation, output_tokens=output_tokens, cost=cost)
        return _Prepared(reservation, limits, cap)

    def _decision(self, catalogue: Catalogue, prepared: _Prepared, taken: Taken) -> Decision:
        outcome: Grant | Replay | NaruError
        if isinstance(taken.outcome, Held):
            outcome = self._outcomes.answer(taken.outcome, prepared.reservation.work.principal)
        else:
            outcome = taken.outcome
        if isinstance(outcome, Grant):
            # It is billed by what was in force when the limiter decided, which may be another moment.
            work = prepared.reservation.work
            price = catalogue.price(work.served_model, work.principal.workspace_id, outcome.reserve_time)
            prices = price.unit_prices if price else None
            outcome = msgspec.structs.replace(outcome, output_token_cap=prepared.cap, prices=prices)
        for notice in taken.notices:
            self._tell(notice)
        enforced = tuple(state for state in taken.limits if not state.limit.shadow)
        return Decision(prepared.reservation.ref, outcome, enforced)

    async def _take(self, prepared: Sequence[_Prepared], finished: Sequence[EventRef]) -> Sequence[Taken]:
        items = [(one.reservation, one.limits) for one in prepared]
        try:
            verdict = await self._limiter.reserve(items, admit_when_lost=self._admit_when_lost, finished=finished)
        except NaruError as error:
            if not self._admit_when_lost or error.reason is not Reason.SERVICE_UNAVAILABLE:
                raise
            self._log_admission("the limiter is away")
            now = round(self._clock.time() * MICROS)
            grant = Grant(now, now + round(self._lease_seconds * MICROS))
            return [Taken(grant, ()) for _ in prepared]
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

    def _tell(self, notice: LimitNotice) -> None:
        limit = notice.limit
        name = "shadow" if notice.percent is None else str(notice.percent)
        self._noticed.labels(name, limit.scope, limit.kind, limit.window).inc()
        about = {
            "scope": limit.scope.value,
            "scope_id": limit.scope_id,
            "kind": limit.kind.value,
            "window": limit.window.value,
            "model": limit.model,
            "limit": limit.limit,
        }
        if notice.percent is None:
            self._logger.info("a limit in shadow would have refused a request", **about)
        else:
            self._logger.warning("a limit is used to a soft threshold", percent=notice.percent, **about)

    def _log_unknown_tier(self, catalogue: Catalogue, name: str) -> None:
        # Names come from callers' records: a bound keeps a flood of wrong ones from filling the memory.
        if catalogue.knows_tier(name) or name in self._unknown_tiers or len(self._unknown_tiers) >= 1_000:
            return
        self._unknown_tiers.add(name)
        self._logger.warning("unknown tier, using another", tier=name, used=catalogue.tier(name).name)

    def _log_admission(self, why: str) -> None:
        now = self._clock.monotonic()
        if self._logged is None or now - self._logged >= _LOG_SECONDS:
            self._logged = now
            self._logger.warning("admitting requests without full knowledge of their limits", why=why)


def _counted(reservation: Reservation, outcome: Grant | Replay | NaruError) -> tuple[str, int]:
    match outcome:
        case Grant() if reservation.spares:
            return "spare", outcome.spares
        case Grant():
            return "granted", 1
        case Replay():
            return "replayed", 1
        case _:
            return outcome.reason.lower(), 1
