"""The SQL of usage events: what was reported, what counts, and what the limiter has to be told still."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from accounting.ledger.ledger import Account, Attempt, usage_entries
from accounting.ledger.posting import post_events, post_usage
from accounting.ledger.store import prepaid
from accounting.quota import EventRef, Work
from accounting.settlement import (
    BookedEvent,
    Change,
    Evidence,
    Exact,
    Recorded,
    RecordStatus,
    StoredEvent,
    earlier_attempts,
    weigh,
)
from accounting.settlement import statuses as statuses_of
from accounting.tables import limiter_epoch, settlement_outbox, usage_corrections, usage_events
from accounting.usage.counting import RollState
from accounting.usage.rollup_store import keep_rolled
from naru.database import Database
from naru.identity import Principal
from naru.usage import Usage

_LIMITER = 1
_KEY = (usage_events.c.event_id, usage_events.c.attempt)


@dataclass(frozen=True, slots=True)
class BookedUsage:
    """What a principal used of a model in the bucket that begins at `bucket` times the width that was asked for."""

    principal: Principal
    model: str
    bucket: int
    requests: int
    usage: Usage
    cost: int


class UsageStore:
    """Keeps usage events. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away.

    Times are microseconds since the Unix epoch.
    """

    def __init__(self, database: Database) -> None:
        self.database = database

    async def ping(self) -> None:
        """Asks the database for a sign of life."""
        async with self.database.reading() as connection:
            await connection.execute(sa.select(1))

    async def record(self, reports: Sequence[BookedEvent], now: int) -> Recorded:
        """Keeps what is better than what was there, in one transaction. What settles by it is in the outbox after."""
        if not reports:
            return Recorded((), ())
        groups: dict[EventRef, list[int]] = {}
        for index, report in enumerate(reports):
            groups.setdefault(report.event.ref, []).append(index)
        best = {ref: _best([reports[index] for index in indexes]) for ref, indexes in groups.items()}
        statuses = [RecordStatus.KNOWN] * len(reports)
        settled: list[Exact] = []
        async with self.database.writing() as connection:
            new = await self._insert(connection, list(best.values()), now, settle_final=True)
            # What is new and a first attempt cannot have other attempts: theirs would have left a row in its place.
            known = {ref.event_id for ref in groups if ref not in new or ref.attempt > 0}
            locked = await self._lock_events(connection, known)
            for ref in sorted(groups):
                booked: BookedEvent = best[ref]
                stored: StoredEvent | None = None
                if ref not in new:
                    stored = _stored(locked[ref])
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
            await post_events(connection, known, now)
            first = [_attempt(best[ref], settled=True) for ref in new if ref.event_id not in known]
            final = [one for one in first if one.evidence == Evidence.FINAL]
            await post_usage(connection, usage_entries(final, {}, now))
        return Recorded(tuple(statuses), tuple(settled))

    async def expire(self, leases: Sequence[BookedEvent], now: int) -> list[Exact]:
        """Settles attempts whose lease has ended: by the best evidence there is, else by the event given for each.

        Returns what each counts with. What settled just now is in the outbox after.
        """
        if not leases:
            return []
        async with self.database.writing() as connection:
            await self._insert(connection, leases, now, settle_final=False)
            return await self._settle(connection, [lease.event.ref for lease in leases], now)

    async def settle(self, refs: Sequence[EventRef], now: int) -> list[Exact]:
        """Settles attempts by the best evidence there is; returns what each counts with.

        What settled just now is in the outbox after.
        """
        if not refs:
            return []
        async with self.database.writing() as connection:
            return await self._settle(connection, refs, now)

    async def _settle(self, connection: AsyncConnection, refs: Sequence[EventRef], now: int) -> list[Exact]:
        keys = sa.tuple_(*_KEY).in_([(ref.event_id, ref.attempt) for ref in refs])
        locked = await self._lock_events(connection, {ref.event_id for ref in refs})
        rows = [locked[ref] for ref in sorted(set(refs)) if ref in locked]
        await connection.execute(
            sa.update(usage_events)
            .where(keys, usage_events.c.settled_time.is_(None))
            .values(settled_time=now, roll_state=RollState.PENDING.value)
        )
        settled = [row for row in rows if row.settled_time is None]
        await self._note(connection, [_exact(row) for row in settled], now)
        await post_events(connection, {row.event_id for row in settled}, now)
        return [_exact(row) for row in rows]

    async def unsettled(self, before: int, most: int) -> list[EventRef]:
        """The oldest attempts that were reported before a time and do not count yet."""
        query = (
            sa.select(*_KEY)
            .where(usage_events.c.settled_time.is_(None), usage_events.c.record_time < before)
            .order_by(usage_events.c.record_time)
            .limit(most)
        )
        async with self.database.reading() as connection:
            return [EventRef(row.event_id, row.attempt) for row in await connection.execute(query)]

    async def outbox(self, before: int, most: int) -> list[Exact]:
        """The oldest of what the limiter has to be told still, written before a time."""
        query = (
            sa.select(settlement_outbox)
            .where(settlement_outbox.c.create_time < before)
            .order_by(settlement_outbox.c.create_time)
            .limit(most)
        )
        async with self.database.reading() as connection:
            return [_exact(row) for row in await connection.execute(query)]

    async def delivered(self, told: Sequence[Exact]) -> None:
        """Takes out of the outbox what the limiter knows now, unless better evidence came in between."""
        if not told:
            return
        statement = sa.delete(settlement_outbox).where(
            settlement_outbox.c.event_id == sa.bindparam("ref_event"),
            settlement_outbox.c.attempt == sa.bindparam("ref_attempt"),
            settlement_outbox.c.evidence == sa.bindparam("ref_evidence"),
        )
        rows = [
            {"ref_event": one.ref.event_id, "ref_attempt": one.ref.attempt, "ref_evidence": one.evidence.value}
            for one in sorted(told, key=lambda one: one.ref)
        ]
        async with self.database.writing() as connection:
            await connection.execute(statement, rows)

    async def booked_since(self, since: int, bucket_seconds: int) -> list[BookedUsage]:
        """What was used since a time, whether it counts yet or not, per principal, model and bucket."""
        width = sa.literal_column(str(bucket_seconds * 1_000_000), sa.BigInteger)
        bucket = usage_events.c.reserve_time.op("/", return_type=sa.BigInteger())(width)
        names = ("workspace_id", "key_id", "user_id", "tier", "served_model")
        who = [usage_events.c[name] for name in names]
        query = (
            sa.select(
                *who,
                bucket.label("bucket"),
                sa.func.count().label("requests"),
                *(
                    sa.func.sum(usage_events.c[name]).label(name)
                    for name in ("prompt_tokens", "completion_tokens", "cost")
                ),
            )
            # An event counts with its highest attempt only.
            .where(usage_events.c.reserve_time >= since, ~superseded())
            .group_by(*who, bucket)
        )
        async with self.database.reading() as connection:
            return [
                BookedUsage(
                    Principal(row.workspace_id, tier=row.tier, key_id=row.key_id, user_id=row.user_id),
                    row.served_model,
                    int(row.bucket),
                    int(row.requests),
                    Usage(int(row.prompt_tokens), int(row.completion_tokens)),
                    int(row.cost),
                )
                for row in await connection.execute(query)
            ]

    async def prepaid(self) -> Sequence[Account]:
        """The accounts that are paid in advance."""
        async with self.database.reading() as connection:
            return await prepaid(connection)

    async def epoch(self) -> str | None:
        """The last epoch of the limiter that was noted; None when it never began."""
        async with self.database.reading() as connection:
            return (await connection.execute(sa.select(limiter_epoch.c.epoch))).scalar_one_or_none()

    async def note_epoch(self, epoch: str) -> None:
        """Notes the limiter's epoch."""
        insert = self._upsert(limiter_epoch).values(limiter_id=_LIMITER, epoch=epoch)
        async with self.database.writing() as connection:
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
        statement = (
            self._upsert(usage_events).on_conflict_do_nothing(index_elements=["event_id", "attempt"]).returning(*_KEY)
        )
        rows = [
            {
                "event_id": booked.event.ref.event_id,
                "attempt": booked.event.ref.attempt,
                "reserve_time": booked.reserve_time,
                "record_time": now,
                "settled_time": now if settle_final and booked.event.evidence is Evidence.FINAL else None,
                **_columns(booked),
            }
            for booked in events
        ]
        rows += [
            {
                "event_id": booked.event.ref.event_id,
                "attempt": booked.event.ref.attempt,
                "reserve_time": booked.reserve_time,
                "record_time": now,
                "settled_time": now,
                **_columns(booked),
            }
            for booked in earlier_attempts(events)
        ]
        # One order for everybody: two transactions that wait for each other's rows would never end.
        inserted = await connection.execute(statement, sorted(rows, key=itemgetter("event_id", "attempt")))
        return {EventRef(row.event_id, row.attempt) for row in inserted}

    async def _lock_events(
        self, connection: AsyncConnection, event_ids: Collection[str]
    ) -> dict[EventRef, sa.Row[Any]]:
        """All attempts of the events; nobody else changes them until the transaction ends."""
        if not event_ids:
            return {}
        query = sa.select(usage_events).where(usage_events.c.event_id.in_(sorted(event_ids)))
        rows = await connection.execute(query.order_by(*_KEY).with_for_update())
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
        await keep_rolled(connection, _is(usage_events, ref))
        await connection.execute(
            sa.update(usage_events)
            .where(_is(usage_events, ref))
            .values(**_columns(booked), settled_time=settled_time, roll_state=RollState.PENDING.value)
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
                    **_tokens(change.correction.usage),
                )
            )

    async def _note(self, connection: AsyncConnection, settled: Sequence[Exact], now: int) -> None:
        if not settled:
            return
        insert = self._upsert(settlement_outbox)
        statement = insert.on_conflict_do_update(
            index_elements=["event_id", "attempt"],
            set_={name: insert.excluded[name] for name in ("evidence", "prompt_tokens", "completion_tokens", "cost")},
        )
        rows = [
            {
                "event_id": one.ref.event_id,
                "attempt": one.ref.attempt,
                "evidence": one.evidence.value,
                "prompt_tokens": one.usage.prompt_tokens,
                "completion_tokens": one.usage.completion_tokens,
                "cost": one.cost,
                "create_time": now,
            }
            for one in settled
        ]
        await connection.execute(statement, sorted(rows, key=itemgetter("event_id", "attempt")))

    def _upsert(self, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
        # The two dialects have the same clause, each in a class of its own.
        return postgresql.insert(table) if self.database.is_postgresql else sqlite.insert(table)


def superseded() -> sa.ColumnElement[bool]:
    """Whether a usage event has a higher attempt, which counts in its place."""
    higher = usage_events.alias("higher")
    return sa.exists().where(higher.c.event_id == usage_events.c.event_id, higher.c.attempt > usage_events.c.attempt)


def _is(table: sa.Table, ref: EventRef) -> sa.ColumnElement[bool]:
    return sa.and_(table.c.event_id == ref.event_id, table.c.attempt == ref.attempt)


def _stored(row: sa.Row[Any]) -> StoredEvent:
    usage = Usage(row.prompt_tokens, row.completion_tokens, row.cached_prompt_tokens, row.reasoning_tokens)
    return StoredEvent(Evidence(row.evidence), usage, row.cost, row.reserve_time, row.settled_time)


def _attempt(booked: BookedEvent, *, settled: bool) -> Attempt:
    event = booked.event
    return Attempt(
        event.ref, event.work.principal.workspace_id, event.evidence.value, booked.cost, booked.reserve_time, settled
    )


def _best(reports: Sequence[BookedEvent]) -> BookedEvent:
    """The first of those with the best evidence."""
    return max(reports, key=lambda report: report.event.evidence)


def _exact(row: sa.Row[Any]) -> Exact:
    usage = Usage(row.prompt_tokens, row.completion_tokens)
    return Exact(EventRef(row.event_id, row.attempt), Evidence(row.evidence), usage, row.cost)


def _columns(booked: BookedEvent) -> dict[str, Any]:
    event = booked.event
    return {
        "evidence": event.evidence.value,
        "accuracy": event.accuracy.value,
        "outcome": event.outcome.value,
        "accept_time": event.accept_time,
        "end_time": event.end_time,
        "replica": event.replica,
        "epoch": event.epoch,
        "cost": booked.cost,
        "price_id": booked.price_id,
        **_work(event.work),
        **_tokens(event.usage),
    }


def _work(work: Work) -> dict[str, Any]:
    return {
        "key_id": work.principal.key_id,
        "user_id": work.principal.user_id,
        "service_account": work.principal.service_account,
        "workspace_id": work.principal.workspace_id,
        "tier": work.principal.tier,
        "requested_model": work.requested_model,
        "served_model": work.served_model,
        "endpoint": work.endpoint,
        "request_id": work.request_id,
    }


def _tokens(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_prompt_tokens": usage.cached_prompt_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
    }
