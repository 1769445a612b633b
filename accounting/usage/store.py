"""The SQL of usage events: what was reported, what counts, and what the limiter has to be told still."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.bulk import Bulk, given, insert_given, is_given, upsert
from accounting.engines import EngineReport
from accounting.ledger.ledger import usage_entries
from accounting.ledger.posting import as_attempt, post_usage, posted_for
from accounting.quota import EventRef
from accounting.settlement import (
    BookedEvent,
    Change,
    Exact,
    Recorded,
    RecordStatus,
    StoredEvent,
    earlier_attempts,
    weigh,
)
from accounting.settlement import statuses as statuses_of
from accounting.tables import limiter_epoch, settlement_outbox, usage_corrections, usage_events
from accounting.usage.counting import changes
from accounting.usage.engine_counters import keep_counters
from accounting.usage.event_rows import (
    EVENT_COLUMNS,
    OUTBOX_COLUMNS,
    event_columns,
    exact,
    figures,
    outbox_columns,
    reference_columns,
    settled_attempt,
    share,
    stored_event,
    stored_share,
)
from accounting.usage.rollup_store import note_changes
from naru.database import Database
from naru.usage import Evidence

_LIMITER = 1
_KEY = (usage_events.c.event_id, usage_events.c.attempt)


class UsageStore:
    """Keeps usage events. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away.

    Times are microseconds since the Unix epoch.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    async def ping(self) -> None:
        """Asks the database for a sign of life."""
        _ = await self.database.read_rows(sa.select(1))

    async def record(self, reports: Sequence[BookedEvent], now: int, counters: EngineReport | None = None) -> Recorded:
        """Keeps what is better than what was there, in one transaction. What settles by it is in the outbox after.

        Args:
            reports: Of attempts.
            now: Microseconds since the Unix epoch.
            counters: What an engine has counted that these reports and those before them are of.
        """
        if not reports and counters is None:
            return Recorded((), ())
        async with self.database.writing() as connection:
            if counters is not None:
                await keep_counters(connection, counters, now)
            return await self._record(connection, reports, now) if reports else Recorded((), ())

    async def _record(self, connection: AsyncConnection, reports: Sequence[BookedEvent], now: int) -> Recorded:
        groups: dict[EventRef, list[int]] = {}
        for index, report in enumerate(reports):
            groups.setdefault(report.event.ref, []).append(index)
        best = {ref: _best([reports[index] for index in indexes]) for ref, indexes in groups.items()}
        statuses = [RecordStatus.KNOWN] * len(reports)
        settled: list[Exact] = []
        new = await self._insert(connection, list(best.values()), now, settle_final=True)
        # What is new and a first attempt cannot have other attempts: theirs would have left a row in its place.
        known = {ref.event_id for ref in groups if ref not in new or ref.attempt > 0}
        locked = await self._lock_events(connection, known)
        for ref in sorted(groups):
            booked: BookedEvent = best[ref]
            stored: StoredEvent | None = None
            if ref not in new:
                stored = stored_event(locked[ref])
                change = weigh(stored, booked)
                if change is not None:
                    await self._replace(connection, booked, change, stored, now)
            else:
                change = weigh(None, booked)
            if change is not None and change.settle:
                settled.append(Exact(ref, booked.event.evidence, booked.event.usage, booked.cost))
            evidence = None if stored is None else stored.evidence
            found = statuses_of(evidence, [reports[index].event for index in groups[ref]])
            for index, status in zip(groups[ref], found, strict=True):
                statuses[index] = status
        await self._note(connection, settled, now)
        first = [best[ref] for ref in new if ref.event_id not in known]
        await self._book(
            connection,
            [row for ref, row in locked.items() if ref not in new],
            known,
            now,
            first=[one for one in first if one.event.evidence is Evidence.FINAL],
        )
        return Recorded(tuple(statuses), tuple(settled))

    async def expire(self, leases: Sequence[BookedEvent], now: int) -> list[Exact]:
        """Settles attempts whose lease has ended: by the best evidence there is, else by the event given for each.

        Returns what each counts with. What settled just now is in the outbox after.
        """
        if not leases:
            return []
        async with self.database.writing() as connection:
            new = await self._insert(connection, leases, now, settle_final=False)
            return await self._settle(connection, [lease.event.ref for lease in leases], now, new)

    async def settle(self, refs: Sequence[EventRef], now: int) -> list[Exact]:
        """Settles attempts by the best evidence there is; returns what each counts with.

        What settled just now is in the outbox after.
        """
        if not refs:
            return []
        async with self.database.writing() as connection:
            return await self._settle(connection, refs, now, set())

    async def _settle(
        self, connection: AsyncConnection, refs: Sequence[EventRef], now: int, new: Collection[EventRef]
    ) -> list[Exact]:
        keys = sa.tuple_(*_KEY).in_([(ref.event_id, ref.attempt) for ref in refs])
        locked = await self._lock_events(connection, {ref.event_id for ref in refs})
        rows = [locked[ref] for ref in sorted(set(refs)) if ref in locked]
        await connection.execute(
            sa.update(usage_events).where(keys, usage_events.c.settled_time.is_(None)).values(settled_time=now)
        )
        settled = [row for row in rows if row.settled_time is None]
        await self._note(connection, [exact(row) for row in settled], now)
        before = [row for ref, row in locked.items() if ref not in new]
        await self._book(connection, before, {ref.event_id for ref in locked}, now)
        return [exact(row) for row in rows]

    async def unsettled(self, before: int, most: int) -> list[EventRef]:
        """The oldest attempts that were reported before a time and do not count yet."""
        query = (
            sa.select(*_KEY)
            .where(usage_events.c.settled_time.is_(None), usage_events.c.record_time < before)
            .order_by(usage_events.c.record_time)
            .limit(most)
        )
        return [EventRef(row.event_id, row.attempt) for row in await self.database.read_rows(query)]

    async def outbox(self, before: int, most: int) -> list[Exact]:
        """The oldest of what the limiter has to be told still, written before a time."""
        query = (
            sa.select(settlement_outbox)
            .where(settlement_outbox.c.create_time < before)
            .order_by(settlement_outbox.c.create_time)
            .limit(most)
        )
        return [exact(row) for row in await self.database.read_rows(query)]

    async def backlog(self, before: int) -> int:
        """How much the limiter has to be told still that was written before a time."""
        query = sa.select(sa.func.count()).where(settlement_outbox.c.create_time < before)
        ((count,),) = await self.database.read_rows(query)
        return int(count)

    async def delivered(self, told: Sequence[Exact]) -> None:
        """Takes out of the outbox what the limiter knows now, unless better evidence came in between."""
        if not told:
            return
        ordered = sorted(told, key=attrgetter("ref"))
        async with self.database.writing() as connection:
            await _FORGET.execute(connection, reference_columns(ordered))

    async def reserve_times(self, refs: Collection[EventRef]) -> dict[EventRef, int]:
        """When those of the attempts that are known here are booked."""
        event_ids = {ref.event_id for ref in refs}
        query = sa.select(*_KEY, usage_events.c.reserve_time).where(usage_events.c.event_id.in_(event_ids))
        found = await self.database.read_rows(query) if event_ids else ()
        return {EventRef(row.event_id, row.attempt): row.reserve_time for row in found}

    async def epoch(self) -> str | None:
        """The last epoch of the limiter that was noted; None when it never began."""
        rows = await self.database.read_rows(sa.select(limiter_epoch.c.epoch))
        return str(rows[0].epoch) if rows else None

    async def note_epoch(self, epoch: str) -> None:
        """Notes the limiter's epoch."""
        async with self.database.writing() as connection:
            insert = upsert(connection.dialect.name, limiter_epoch).values(limiter_id=_LIMITER, epoch=epoch)
            await connection.execute(
                insert.on_conflict_do_update(index_elements=["limiter_id"], set_={"epoch": insert.excluded.epoch})
            )

    async def _insert(
        self, connection: AsyncConnection, events: Sequence[BookedEvent], now: int, *, settle_final: bool
    ) -> set[EventRef]:
        """Inserts the events that are not there yet, and tells which.

        Attempts before them that nobody has reported get a row without usage. Whoever reports one at the same time waits for
        us there, and so learns that a later attempt counts; or we wait, and learn what was posted for it.
        """
        earlier = earlier_attempts(events)
        # One order for everybody: two transactions that wait for each other's rows would never end.
        ordered = sorted([*events, *earlier], key=attrgetter("event.ref"))
        waste = {one.event.ref for one in earlier}
        settled = [one.event.ref in waste or (settle_final and one.event.evidence is Evidence.FINAL) for one in ordered]
        columns = event_columns(ordered, now, settled)
        inserted = await _INSERT.execute(connection, columns)
        return {EventRef(*row) for row in inserted}

    async def _lock_events(
        self, connection: AsyncConnection, event_ids: Collection[str]
    ) -> dict[EventRef, sa.Row[Any]]:
        """All attempts of the events; nobody else changes them, or adds one, until the transaction ends."""
        if not event_ids:
            return {}
        await _LOCK.execute(connection, {"event_id": list(event_ids)})
        # What was added while we waited for the lock is not in what the statement that waited found.
        return await self._attempts(connection, event_ids)

    async def _attempts(self, connection: AsyncConnection, event_ids: Collection[str]) -> dict[EventRef, sa.Row[Any]]:
        rows = await _READ.execute(connection, {"event_id": list(event_ids)})
        return {EventRef(row.event_id, row.attempt): row for row in rows}

    async def _replace(
        self,
        connection: AsyncConnection,
        booked: BookedEvent,
        change: Change,
        stored: StoredEvent,
        now: int,
    ) -> None:
        ref = booked.event.ref
        settled_time = stored.settled_time or (now if change.settle else None)
        await connection.execute(
            sa.update(usage_events).where(_is(usage_events, ref)).values(**figures(booked), settled_time=settled_time)
        )
        if change.correction is not None:
            await connection.execute(
                sa.insert(usage_corrections).values(
                    event_id=ref.event_id,
                    attempt=ref.attempt,
                    evidence=booked.event.evidence.value,
                    previous_evidence=stored.evidence.value,
                    reserve_time=stored.reserve_time,
                    create_time=now,
                    cost=change.correction.cost,
                    **asdict(change.correction.usage),
                )
            )

    async def _book(
        self,
        connection: AsyncConnection,
        before: Sequence[sa.Row[Any]],
        event_ids: Collection[str],
        now: int,
        *,
        first: Sequence[BookedEvent] = (),
    ) -> None:
        """Brings the ledger and the sums to what counts now of events.

        Those of `event_ids` are locked, and `before` is as they were. Nobody knew the `first` ones, which are final, before.
        """
        after = list((await self._attempts(connection, event_ids)).values()) if event_ids else []
        posted = await posted_for(connection, event_ids) if event_ids else {}
        shares = [*map(stored_share, after), *(share(one, settled=True) for one in first)]
        await note_changes(connection, changes(map(stored_share, before), shares))
        attempts = [*map(as_attempt, after), *map(settled_attempt, first)]
        # All at once: who posted twice would hold accounts while it waits for others.
        await post_usage(connection, usage_entries(attempts, posted, now))

    async def _note(self, connection: AsyncConnection, settled: Sequence[Exact], now: int) -> None:
        if not settled:
            return
        ordered = sorted(settled, key=attrgetter("ref"))
        await _NOTE.execute(connection, outbox_columns(ordered, now))


def superseded() -> sa.ColumnElement[bool]:
    """Whether a usage event has a higher attempt, which counts in its place."""
    higher = usage_events.alias("higher")
    return sa.exists().where(higher.c.event_id == usage_events.c.event_id, higher.c.attempt > usage_events.c.attempt)


def _is(table: sa.Table, ref: EventRef) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.event_id == ref.event_id, table.c.attempt == ref.attempt)


def _insert(dialect: str) -> sa.ClauseElement:
    insert = insert_given(dialect, usage_events, EVENT_COLUMNS)
    return insert.on_conflict_do_nothing(index_elements=[column.name for column in _KEY]).returning(*_KEY)


def _read(dialect: str) -> sa.Select[Any]:
    return sa.select(usage_events).where(
        usage_events.c.event_id.in_(sa.select(given(dialect, [usage_events.c.event_id])))
    )


def _lock(dialect: str) -> sa.ClauseElement:
    return _read(dialect).with_only_columns(*_KEY).order_by(*_KEY).with_for_update()


def _note(dialect: str) -> sa.ClauseElement:
    insert = insert_given(dialect, settlement_outbox, OUTBOX_COLUMNS)
    changed = ("evidence", "prompt_tokens", "completion_tokens", "cost")
    return insert.on_conflict_do_update(
        index_elements=[column.name for column in _KEY], set_={name: insert.excluded[name] for name in changed}
    )


def _forget(dialect: str) -> sa.ClauseElement:
    names = ("event_id", "attempt", "evidence")
    held, told = settlement_outbox.alias("held"), [settlement_outbox.c[name] for name in names]
    those = [held.c[name] for name in names]
    # What somebody else holds gets better evidence, or goes anyway: nobody waits for anybody.
    free = sa.select(*those).where(is_given(dialect, those)).with_for_update(skip_locked=True)
    return sa.delete(settlement_outbox).where(is_given(dialect, told), sa.tuple_(*told).in_(free).is_(sa.true()))


_INSERT, _LOCK, _READ = Bulk(_insert), Bulk(_lock), Bulk(_read)
_NOTE, _FORGET = Bulk(_note), Bulk(_forget)


def _best(reports: Sequence[BookedEvent]) -> BookedEvent:
    """The first of those with the best evidence."""
    if len(reports) == 1:
        return reports[0]
    return max(reports, key=lambda report: report.event.evidence)
