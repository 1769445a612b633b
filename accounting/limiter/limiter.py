"""Runs `quota_windows.lua`, `quota_keys.lua` and `quota.lua`, which are one script, on Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from accounting import calendar
from accounting.idempotency import Held, HeldState, KeptOutcome, name_of
from accounting.limiter.wire import decode_ref, decode_work, encode_idempotency, encode_limit, encode_refs, encode_work
from accounting.quota import (
    EventRef,
    Grant,
    Limit,
    LimitKind,
    LimitNotice,
    LimitScope,
    LimitState,
    LimitWindow,
    Refusal,
    Reservation,
    Work,
    closed_error,
    refusal_error,
    tightest_first,
)
from accounting.settlement import Exact
from naru.clock import Clock
from naru.errors import NaruError, unavailable

MICROS = 1_000_000
_SCRIPTS = ("quota_windows.lua", "quota_keys.lua", "quota.lua")
_CALENDAR = (LimitWindow.DAY, LimitWindow.MONTH)
_EPOCH_KEY = "{naru}:epoch"
_CONNECTIONS = 16
_TIMEOUT_SECONDS = 2.0
_OUTCOME_SECONDS = 3_600
_AWAY = (
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    TimeoutError,
    TryAgainError,
    OSError,
)
_CODES_OF_OUTAGES = ("OOM ", "MISCONF ", "READONLY ", "MASTERDOWN ")


class Standing(StrEnum):
    """Whether what Redis holds can be relied on."""

    OK = "ok"
    LOST = "lost"
    RECOVERING = "recovering"


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer to one reservation, before anything is added to a grant, or read of what was kept."""

    outcome: Grant | Held | NaruError
    limits: tuple[LimitState, ...]
    notices: tuple[LimitNotice, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a batch. `taken` is empty when nothing was decided; `wait_seconds` is set while recovering."""

    standing: Standing
    wait_seconds: float
    taken: tuple[Taken, ...]


@dataclass(frozen=True, slots=True)
class ReservedWork:
    """A reservation whose lease has ended. Time in microseconds since the Unix epoch."""

    ref: EventRef
    reserve_time: int
    work: Work


@dataclass(frozen=True, slots=True)
class Known:
    """What Redis knows of a reservation: whether it still runs, and when it was made (microseconds; 0: unknown)."""

    running: bool
    reserve_time: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """The life of what Redis holds. Times in microseconds by the limiter's clock."""

    began: bool
    epoch_id: str
    open_time: int
    now: int


@dataclass(frozen=True, slots=True)
class Booked:
    """An amount that is known to have been taken of a limit.

    `bucket` is one of its window's, if that slides; a window of the calendar is the one of now.
    """

    limit: Limit
    bucket: int
    amount: int


class Limiter:
    """The limits, kept in Redis. Every method raises NaruError SERVICE_UNAVAILABLE when Redis is away.

    Args:
        redis: A client that decodes answers; see `connect`.
        lease_seconds: How long a reservation lives without being renewed.
        lifetime_seconds: How long a reservation lives at most.
        zone: Whose days and months are counted.
        clock: Tells which day and month it is; the rest is decided by Redis's time.
        now: Microseconds by which to decide in place of Redis's own time, for tests.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        lease_seconds: float,
        lifetime_seconds: float,
        zone: ZoneInfo,
        clock: Clock,
        now: int | None = None,
    ) -> None:
        self._redis = redis
        self._script = redis.register_script("".join((Path(__file__).parent / name).read_text() for name in _SCRIPTS))
        self._zone = zone
        self._clock = clock
        self._periods: dict[LimitWindow, tuple[int, int, int, int]] = {}
        self.now = now
        self._options = {
            "lease": round(lease_seconds * MICROS),
            "lifetime": round(lifetime_seconds * MICROS),
            # Longer than any request can be on its way, and than any window looks back.
            "memory": round((max(lifetime_seconds, 3_660) + 2 * lease_seconds) * MICROS),
            "outcomes": _OUTCOME_SECONDS * MICROS,
        }

    async def ping(self) -> None:
        """Asks Redis for a sign of life."""
        with _translated():
            await self._redis.ping()

    async def reserve(
        self, items: Sequence[tuple[Reservation, Sequence[Limit]]], *, admit_when_lost: bool = False
    ) -> Verdict:
        """Decides about reservations in order, each with the limits that apply to it.

        With `admit_when_lost` it decides by what Redis holds even when that is not all there was.
        """
        encoded = [
            {
                "event": reservation.ref.event_id,
                "attempt": reservation.ref.attempt,
                "revision": reservation.revision,
                "input": reservation.input_tokens,
                "output": reservation.output_tokens,
                "cost": reservation.cost,
                "about": encode_work(reservation.work),
                "limits": [encode_limit(limit) for limit in limits],
                **encode_idempotency(reservation),
            }
            for reservation, limits in items
        ]
        standing, wait, answers = await self._run("reserve", encoded, admit=admit_when_lost)
        return Verdict(
            Standing(standing),
            wait / MICROS,
            tuple(
                _taken(reservation.ref, limits, answer)
                for (reservation, limits), answer in zip(items, answers, strict=False)
            ),
        )

    async def release(self, refs: Sequence[EventRef]) -> list[bool]:
        """Gives back what each holds, except its request count. Tells which were open."""
        return [answer == 1 for answer in await self._run("release", encode_refs(refs))]

    async def finish(self, refs: Sequence[EventRef]) -> None:
        """Gives back the places in flight of requests that have ended, before what they used is known."""
        await self._run("finish", encode_refs(refs))

    async def renew(self, refs: Sequence[EventRef]) -> list[int | None]:
        """Extends leases. Tells when each ends (microseconds); None when it does not go on."""
        return [answer or None for answer in await self._run("renew", encode_refs(refs))]

    async def settle(self, items: Sequence[Exact]) -> None:
        """Closes reservations with what they really used. Idempotent; only better evidence changes figures again."""
        encoded = [
            {
                "event": item.ref.event_id,
                "attempt": item.ref.attempt,
                "rank": item.evidence.value,
                "input": item.usage.prompt_tokens,
                "output": item.usage.completion_tokens,
                "cost": item.cost,
            }
            for item in items
        ]
        await self._run("settle", encoded)

    async def claim_expired(self, most: int, hold_seconds: float) -> list[ReservedWork]:
        """Takes up to `most` reservations whose lease has ended, and returns their places in flight.

        They are this caller's for `hold_seconds`; those it has not settled by then are claimed again.
        """
        answers = await self._run("claim", [], most=most, hold=round(hold_seconds * MICROS))
        return [ReservedWork(decode_ref(ref), reserve_time, decode_work(about)) for ref, reserve_time, about in answers]

    async def look_up(self, refs: Sequence[EventRef]) -> list[Known]:
        """What is known of each reservation."""
        answers = await self._run("look_up", encode_refs(refs))
        return [Known(state in ("open", "expiring"), reserve_time) for state, reserve_time in answers]

    async def keep(self, kept: KeptOutcome, sealed: str) -> bool:
        """Notes what became of an event with an idempotency key. Tells whether the key was its own. Idempotent.

        `sealed` is the outcome, encrypted; it is kept for an hour.
        """
        item = {
            "name": name_of(kept.principal, kept.key),
            "event": kept.event_id,
            "fate": kept.fate,
            "sealed": sealed,
        }
        (answer,) = await self._run("keep", [item])
        return bool(answer)

    async def inspect(self, limits: Sequence[Limit]) -> tuple[LimitState, ...]:
        """Where each limit stands, tightest first."""
        if not limits:
            return ()
        (flat,) = await self._run("inspect", [{"limits": [encode_limit(limit) for limit in limits]}])
        return tightest_first(_states(limits, flat))

    async def begin_epoch(self, epoch_id: str, recovery_seconds: float) -> Epoch:
        """Begins an epoch, open after `recovery_seconds`, unless there is one; returns the one there is."""
        began, found, open_time, now = await self._run(
            "begin", [], epoch=epoch_id, recovery=round(recovery_seconds * MICROS)
        )
        return Epoch(began == 1, found, open_time, now)

    async def load(self, booked: Sequence[Booked]) -> None:
        """Makes each window hold at least what is known from elsewhere. Idempotent."""
        encoded = [
            {**encode_limit(item.limit), "bucket": item.bucket, "amount": item.amount, "exact": str(item.amount)}
            for item in booked
        ]
        await self._run("load", encoded)

    async def close(self) -> None:
        """Closes the connections."""
        await self._redis.aclose()

    async def _run(self, operation: str, items: Sequence[Mapping[str, Any]], **options: Any) -> Any:
        if not items and operation not in ("claim", "begin"):
            return ["ok", 0, []] if operation == "reserve" else []
        settings = {**self._options, **options, "periods": self._current_periods()}
        if self.now is not None:
            settings["now"] = self.now
        with _translated():
            return await self._script(
                keys=[_EPOCH_KEY], args=[operation, json.dumps(settings), json.dumps(list(items))]
            )

    def _current_periods(self) -> dict[LimitWindow, tuple[int, int, int, int]]:
        now = round(self._clock.time() * MICROS) if self.now is None else self.now
        for window in _CALENDAR:
            known = self._periods.get(window)
            if known is None or not known[1] <= now < known[2]:
                self._periods[window] = calendar.periods(window, now, self._zone)
        return self._periods


def connect(url: str) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`; connects when first used.

    Raises ValueError for another URL, without repeating it: it may hold a password.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=_TIMEOUT_SECONDS,
            socket_timeout=_TIMEOUT_SECONDS,
            socket_connect_timeout=_TIMEOUT_SECONDS,
            decode_responses=True,
            # Every script is idempotent: a connection that Redis closed when it restarted costs no failed request.
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError:
        raise ValueError("the Redis URL is malformed") from None
    return Redis.from_pool(pool)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (*_AWAY, ResponseError) as error:
        # Within a script such a state has no exception of its own, only its code in the text.
        if isinstance(error, _AWAY) or any(code in str(error) for code in _CODES_OF_OUTAGES):
            raise unavailable("accounting", "The limiter is not available right now.") from error
        raise


def _taken(ref: EventRef, limits: Sequence[Limit], answer: Sequence[Any]) -> Taken:
    decision, reserve_time, lease_time, refusal, flat, notices = answer
    match decision:
        case "granted":
            outcome: Grant | Held | NaruError = Grant(reserve_time, lease_time)
        case "held":
            held = json.loads(refusal)
            outcome = Held(held["event"], HeldState(held["state"]), held["sealed"])
        case "refused":
            outcome = refusal_error(_decode_refusal(json.loads(refusal)))
        case _:
            outcome = closed_error(ref)
    told = tuple(
        LimitNotice(limits[index - 1], percent or None)
        for index, percent in zip(notices[::2], notices[1::2], strict=True)
    )
    return Taken(outcome, tightest_first(_states(limits, flat)), told)


def _states(limits: Sequence[Limit], flat: Sequence[Any]) -> list[LimitState]:
    """The states that came flat; none when the script did not look at the limits."""
    return [
        LimitState(
            limit,
            max(limit.limit - int(found), 0) if limit.window is LimitWindow.TOTAL else found,
            None if reset < 0 else reset / MICROS,
        )
        for limit, found, reset in zip(limits, flat[::2], flat[1::2], strict=False)
    ]


def _decode_refusal(found: Mapping[str, Any]) -> Refusal:
    return Refusal(
        LimitScope(found["scope"]),
        LimitKind(found["kind"]),
        LimitWindow(found["window"]),
        int(found["limit"]),
        int(found["requested"]),
        int(found["retry"]) / MICROS if "retry" in found else None,
    )
