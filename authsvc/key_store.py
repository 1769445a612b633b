"""The SQL that changes keys. Each change numbers an invalidation and writes an entry of the audit, in one transaction."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.keys import EARLIER_SECRETS_MAX, SecretDigest
from authsvc.records import ApiKey, RequestMark
from authsvc.rows import (
    REQUEST_ID_SECONDS,
    digest_values,
    get_key,
    key_values,
    mark_values,
    number_invalidation,
    used_before,
)
from authsvc.tables import api_keys, earlier_secrets, micros
from naru.database import Database
from naru.errors import not_found

Change = Callable[[ApiKey], ApiKey]
"""What becomes of a key; raises NaruError when it must not be changed, and returns the key itself when nothing changes."""
Telling = Callable[[ApiKey, ApiKey], AuditEntry]
"""The entry of the audit about a key before and after."""


@dataclass(frozen=True, slots=True)
class Redigest:
    """A secret whose digest is to be replaced by one under another pepper."""

    key_id: str
    old: SecretDigest
    new: SecretDigest


class KeyChanges:
    """Changes keys. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def change(self, key_id: str, change: Change, tell: Telling, time: float) -> tuple[ApiKey, int | None]:
        """Does `change`, which sees the key as nobody else can change it meanwhile.

        Returns:
            The key, and the number of the invalidation; None when nothing changed.

        Raises:
            NaruError: NOT_FOUND when there is no such key, and whatever `change` raises.
        """
        async with self._database.writing() as connection:
            before = await _locked(connection, key_id)
            after = change(before)
            if after == before:
                return before, None
            values = key_values(after)
            # Whoever notes uses writes it without a lock.
            del values["last_used_time"]
            await connection.execute(sa.update(api_keys).where(api_keys.c.key_id == key_id).values(values))
            sequence = await number_invalidation(connection, key_id=key_id, time=time)
            await audit.record(connection, tell(before, after))
        return after, sequence

    async def rotate(
        self,
        key_id: str,
        check: Callable[[ApiKey], None],
        digest: SecretDigest,
        tell: Telling,
        *,
        time: float,
        grace: float,
        mark: RequestMark | None,
    ) -> tuple[ApiKey, int | None]:
        """Gives the key the secret of `digest`; secrets that work now work for `grace` seconds more.

        Returns:
            The key, and the number of the invalidation; None when the same request rotated it within 24 hours.

        Raises:
            NaruError: NOT_FOUND when there is no such key, whatever `check` raises, and ALREADY_EXISTS when the request id
                was seen with another body.
        """
        try:
            async with self._database.writing() as connection:
                before = await _locked(connection, key_id)
                check(before)
                if mark is not None and await _seen(connection, mark, time):
                    return before, None
                end = time + grace
                await _make_earlier(connection, key_id, time, end, mark)
                after = replace(before, rotate_time=time, earlier_secrets_expire_time=end)
                values = {"rotate_time": micros(time), "earlier_secrets_expire_time": micros(end)}
                await connection.execute(
                    sa.update(api_keys).where(api_keys.c.key_id == key_id).values(values | digest_values(digest))
                )
                sequence = await number_invalidation(connection, key_id=key_id, time=time)
                await audit.record(connection, tell(before, after))
        except IntegrityError:
            if mark is None:
                raise
            # Another key was rotated by this request id at the same moment.
            raise used_before(mark) from None
        return after, sequence

    async def note_uses(self, uses: Mapping[str, float]) -> None:
        """Notes when keys were used, by key id; earlier times than are known change nothing."""
        known, used = api_keys.c.last_used_time, sa.bindparam("used", type_=sa.BigInteger)
        update = sa.update(api_keys).where(
            api_keys.c.key_id == sa.bindparam("used_key"), known.is_(None) | (known < used)
        )
        # In one order, so that two replicas never wait for each other.
        rows = [{"used": micros(time), "used_key": key_id} for key_id, time in sorted(uses.items())]
        if rows:
            async with self._database.writing() as connection:
                await connection.execute(update.values(last_used_time=used), rows)

    async def redigest(self, changes: Sequence[Redigest]) -> None:
        """Replaces digests that are still what they were. The secrets stay, so this is no change that anybody is told of."""
        ordered = sorted(changes, key=lambda change: change.key_id)
        update = sa.update(api_keys).where(
            api_keys.c.key_id == sa.bindparam("changed_key"), api_keys.c.digest == sa.bindparam("old_digest")
        )
        update = update.values(digest=sa.bindparam("new_digest"), pepper_version=sa.bindparam("new_version"))
        rows = [
            {
                "changed_key": change.key_id,
                "old_digest": change.old.digest,
                "new_digest": change.new.digest,
                "new_version": change.new.pepper_version,
            }
            for change in ordered
        ]
        if rows:
            async with self._database.writing() as connection:
                await connection.execute(update, rows)


async def _locked(connection: AsyncConnection, key_id: str) -> ApiKey:
    key = await get_key(connection, key_id, lock=True)
    if key is None:
        raise not_found("api_key", key_id)
    return key


async def _seen(connection: AsyncConnection, mark: RequestMark, time: float) -> bool:
    """Whether the request came before, and not too long ago; raises NaruError ALREADY_EXISTS when it had another body."""
    ours = sa.and_(earlier_secrets.c.request_caller == mark.caller, earlier_secrets.c.request_id == mark.request_id)
    old = earlier_secrets.c.rotate_time <= micros(time - REQUEST_ID_SECONDS)
    await connection.execute(sa.update(earlier_secrets).where(ours, old).values(mark_values(None)))
    found = await connection.execute(sa.select(earlier_secrets.c.request_digest).where(ours))
    body_digest = found.scalar_one_or_none()
    if body_digest is not None and body_digest != mark.body_digest:
        raise used_before(mark)
    return body_digest is not None


async def _make_earlier(
    connection: AsyncConnection, key_id: str, time: float, end: float, mark: RequestMark | None
) -> None:
    """Puts the key's secret among its earlier ones, of which no more than two work, and none after `end`."""
    columns = earlier_secrets.c
    mine = columns.key_id == key_id
    await connection.execute(
        sa.update(earlier_secrets).where(mine, columns.expire_time > micros(end)).values(expire_time=micros(end))
    )
    newest = sa.select(columns.digest).where(mine).order_by(columns.rotation.desc()).limit(EARLIER_SECRETS_MAX - 1)
    await connection.execute(
        sa.update(earlier_secrets)
        .where(mine, columns.expire_time > micros(time), columns.digest.not_in(newest))
        .values(expire_time=micros(time))
    )
    # Those that ended stay for as long as the request that ended them may come again.
    forgotten = micros(time - REQUEST_ID_SECONDS)
    await connection.execute(
        sa.delete(earlier_secrets).where(mine, columns.expire_time <= micros(time), columns.rotate_time <= forgotten)
    )
    current = sa.select(api_keys.c.digest, api_keys.c.pepper_version).where(api_keys.c.key_id == key_id)
    row = (await connection.execute(current)).one()
    await connection.execute(
        sa.insert(earlier_secrets).values(
            key_id=key_id,
            digest=row.digest,
            pepper_version=row.pepper_version,
            rotation=sa.select(sa.func.coalesce(sa.func.max(columns.rotation), 0) + 1).where(mine).scalar_subquery(),
            rotate_time=micros(time),
            expire_time=micros(end),
            **mark_values(mark),
        )
    )
