"""Runs the limiter's script, which is the `.lua` files of this folder one after the other, on Redis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
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
from accounting.idempotency import KeptOutcome, name_of
from accounting.limiter.answers import Taken, notices_of, states_of, taken_of
from accounting.limiter.script import Script
from accounting.limiter.wire import LimitTable, decode_ref, decode_work, encode_refs, encode_reservation
from accounting.quota import (
    EventRef,
    Limit,
    LimitNotice,
    LimitState,
    LimitWindow,
    Reservation,
    Work,
    tightest_first,
)
from accounting.settlement import Exact
from naru.clock import Clock
from naru.errors import unavailable

MICROS = 1_000_000
_SCRIPTS = (
    "quota_places.lua",
    "quota_limits.lua",
    "quota_keys.lua",
    "quota_reservations.lua",
    "quota_spares.lua",
    "quota.lua",
    "quota_epoch.lua",
)
_CALENDAR = (LimitWindow.DAY, LimitWindow.MONTH)
KEY_PREFIX = "{naru-3}:"
"""What the names of all keys begin with. Another format of what they hold takes another number: to it Redis is empty."""
EPOCH_KEY = f"{KEY_PREFIX}epoch"
_CONNECTIONS = 16
# Redis does one thing at a time: settling so many takes it a millisecond or two, and reservations wait for it.
_ITEMS = 128
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
_WITHOUT_ITEMS = ("claim", "time", "begin", "recovered")
_NOTHING: dict[str, Any] = {"reserve": ["ok", 0, []], "restore": [[], []]}
_CODES_OF_OUTAGES = ("OOM ", "MISCONF ", "READONLY ", "MASTERDOWN ")


class Standing(StrEnum):
    """Whether what Redis holds can be relied on."""

    OK = "ok"
    LOST = "lost"
    RECOVERING = "recovering"


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
    """What Redis knows of a reservation.

    Attributes:
        running: Whether it still runs.
        reserve_time: When it was made, in microseconds; 0: unknown.
        at_all: Whether anything is known of it.
    """

    running: bool
    reserve_time: int
    at_all: bool = True


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
        redis: A client that leaves answers as they are; see `connect`.
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
        text = "".join((Path(__file__).parent / name).read_text() for name in _SCRIPTS)
        self._script = Script(redis, text, timeout=_TIMEOUT_SECONDS)
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
        with translated():
            await self._redis.ping()

    async def reserve(
        self,
        items: Sequence[tuple[Reservation, Sequence[Limit]]],
        *,
        admit_when_lost: bool = False,
        finished: Sequence[EventRef] = (),
    ) -> Verdict:
        """Decides about reservations in order, each with the limits that apply to it.

        With `admit_when_lost` it decides by what Redis holds even when that is not all there was. Requests that have `finished`
        give their places back first, as by `finish`.
        """
        table = LimitTable()
        encoded = [encode_reservation(reservation, table.numbers(limits)) for reservation, limits in items]
        standing, wait, answers = await self._run(
            "reserve", encoded, limits=table.encoded, admit=admit_when_lost, finished=encode_refs(finished)
        )
        return Verdict(
            Standing(standing),
            wait / MICROS,
            tuple(
                taken_of(reservation.ref, limits, answer)
                for (reservation, limits), answer in zip(items, answers, strict=False)
            ),
        )

    async def release(self, refs: Sequence[EventRef], *, unused_spares: bool = False) -> list[bool]:
        """Gives back what each holds, except its request count; of unused spares that too. Tells which were open."""
        answers = await self._run_all("release", encode_refs(refs), unused_spares=unused_spares)
        return [answer == 1 for answer in answers]

    async def finish(self, refs: Sequence[EventRef]) -> None:
        """Gives back the places in flight of requests that have ended, before what they used is known."""
        await self._run("finish", encode_refs(refs))

    async def renew(self, refs: Sequence[EventRef]) -> list[int | None]:
        """Extends leases. Tells when each ends (microseconds); None when it does not go on."""
        return [answer or None for answer in await self._run_all("renew", encode_refs(refs))]

    async def restore(
        self, items: Sequence[tuple[Reservation, Sequence[Limit], int]]
    ) -> list[tuple[int | None, tuple[LimitNotice, ...]]]:
        """Takes what running requests hold that are unknown, whatever their limits say, since when they hold it (microseconds).

        Tells when the lease of each ends, as `renew` does for those that are known, and what is to be told of its limits.
        """
        table = LimitTable()
        encoded = [
            encode_reservation(reservation, table.numbers(limits), since) for reservation, limits, since in items
        ]
        leases, notices = await self._run("restore", encoded, limits=table.encoded)
        return [
            (lease or None, notices_of(limits, told))
            for (_, limits, _), lease, told in zip(items, leases, notices, strict=True)
        ]

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
        await self._run_all("settle", encoded)

    async def claim_expired(self, most: int, hold_seconds: float) -> list[ReservedWork]:
        """Takes up to `most` reservations whose lease has ended, and returns their places in flight.

        They are this caller's for `hold_seconds`; those it has not settled by then are claimed again.
        """
        answers = await self._run("claim", [], most=most, hold=round(hold_seconds * MICROS))
        return [ReservedWork(decode_ref(ref), reserve_time, decode_work(about)) for ref, reserve_time, about in answers]

    async def look_up(self, refs: Sequence[EventRef]) -> list[Known]:
        """What is known of each reservation."""
        answers = await self._run_all("look_up", encode_refs(refs))
        return [Known(running, reserve_time, at_all) for at_all, running, reserve_time in answers]

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
        table = LimitTable()
        (flat,) = await self._run("inspect", [{"limits": table.numbers(limits)}], limits=table.encoded)
        return tightest_first(states_of(limits, flat))

    async def time(self) -> int:
        """What time it is for reservations, in microseconds: Redis's, and never earlier than it was."""
        return int(await self._run("time", []))

    async def begin_epoch(self, epoch_id: str, recovery_seconds: float) -> Epoch:
        """Begins an epoch, open after `recovery_seconds`, unless there is one; returns the one there is."""
        began, found, open_time, now = await self._run(
            "begin", [], epoch=epoch_id, recovery=round(recovery_seconds * MICROS)
        )
        return Epoch(began == 1, found, open_time, now)

    async def recover(self, booked: Sequence[Booked]) -> None:
        """Makes what each window holds beside reservations what is known from elsewhere, until `recovered`. Idempotent."""
        await self._put("recover", booked)

    async def recovered(self) -> None:
        """Lets `recover` change nothing any more in this epoch."""
        await self._run("recovered", [])

    async def load(self, booked: Sequence[Booked]) -> None:
        """Makes each window hold at least what is known from elsewhere. Idempotent."""
        await self._put("load", booked)

    async def _put(self, operation: str, booked: Sequence[Booked]) -> None:
        table = LimitTable()
        encoded = [
            {"limit": number, "bucket": item.bucket, "amount": item.amount, "exact": str(item.amount)}
            for item, number in zip(booked, table.numbers([item.limit for item in booked]), strict=True)
        ]
        await self._run(operation, encoded, limits=table.encoded)

    @property
    def redis(self) -> Redis:
        """What it runs on, for the little that needs no script."""
        return self._redis

    async def close(self) -> None:
        """Closes the connections."""
        await self._script.close()
        await self._redis.aclose()

    async def _run_all(self, operation: str, items: Sequence[Any], **options: Any) -> list[Any]:
        """The answers to any number of items that have nothing to do with each other, in calls that keep nobody waiting."""
        answers: list[Any] = []
        for start in range(0, len(items), _ITEMS):
            answers += await self._run(operation, items[start : start + _ITEMS], **options)
        return answers

    async def _run(self, operation: str, items: Sequence[Any], **options: Any) -> Any:
        if not items and not options.get("finished") and operation not in _WITHOUT_ITEMS:
            return _NOTHING.get(operation, [])
        settings = {**self._options, **options, "periods": self._current_periods()}
        if self.now is not None:
            settings["now"] = self.now
        with translated():
            answer = await self._script(
                EPOCH_KEY, operation, msgspec.msgpack.encode(settings), msgspec.msgpack.encode(items)
            )
        return msgspec.msgpack.decode(answer)

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
            # A connection that Redis closed when it restarted costs no failed request.
            retry=Retry(NoBackoff(), 1),
        )
    except ValueError:
        raise ValueError("the Redis URL is malformed") from None
    return Redis.from_pool(pool)


@contextmanager
def translated() -> Iterator[None]:
    """Turns failures to reach Redis into NaruError SERVICE_UNAVAILABLE; lets everything else pass."""
    try:
        yield
    except (*_AWAY, ResponseError) as error:
        # Within a script such a state has no exception of its own, only its code in the text.
        if isinstance(error, _AWAY) or any(code in str(error) for code in _CODES_OF_OUTAGES):
            raise unavailable("accounting", "The limiter is not available right now.") from error
        raise
