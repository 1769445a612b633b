"""The SQL that finds and makes keys and workspaces, and reads the numbered list of invalidations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.key_owners import OWNER_COLUMNS, Owner, is_owner, is_seat, to_owner
from authsvc.keys import SecretDigest
from authsvc.records import (
    DEFAULT_TIER,
    ApiKey,
    Invalidation,
    KeyFilters,
    KeyState,
    PageStart,
    Position,
    RequestMark,
    Workspace,
)
from authsvc.rows import (
    REQUEST_ID_SECONDS,
    digest_values,
    get_key,
    hold_workspace,
    key_values,
    mark_values,
    to_key,
    to_workspace,
    used_before,
)
from authsvc.tables import (
    MICROS,
    api_keys,
    earlier_secrets,
    installation,
    invalidations,
    memberships,
    micros,
    users,
    workspaces,
)
from naru.database import Database
from naru.errors import NaruError, Reason, not_found

_DAY_SECONDS = 86_400.0
# Made once, as making it takes longer than running it. One statement sees one snapshot: an invalidation that the position
# counts is also seen in the keys.
_POSITION = sa.select(installation.c.epoch, installation.c.sequence)
_LOOK_UP = (
    sa.select(
        installation.c.epoch,
        installation.c.sequence,
        workspaces.c.tier.label("workspace_tier"),
        earlier_secrets.c.digest.label("earlier_digest"),
        earlier_secrets.c.pepper_version.label("earlier_pepper_version"),
        earlier_secrets.c.expire_time.label("earlier_expire_time"),
        *OWNER_COLUMNS,
        *api_keys.c,
    )
    .select_from(
        installation.outerjoin(api_keys, api_keys.c.key_id.in_(sa.bindparam("key_ids", expanding=True)))
        .outerjoin(workspaces, workspaces.c.workspace_id == api_keys.c.workspace_id)
        .outerjoin(users, is_owner(api_keys.c.user_id))
        .outerjoin(memberships, is_seat(api_keys.c.workspace_id))
        .outerjoin(
            earlier_secrets,
            sa.and_(earlier_secrets.c.key_id == api_keys.c.key_id, earlier_secrets.c.expire_time > sa.bindparam("now")),
        )
    )
    .order_by(earlier_secrets.c.expire_time)
)


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """One secret of a key, and when it stops working; None: with the key."""

    digest: SecretDigest
    expire_time: float | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What one consistent look at the database says about a key; without such a key only the position is set.

    The first of `secrets` is the current one, the others are in their grace. `owner` is the key's user, if there is one.
    """

    position: Position
    key: ApiKey | None = None
    secrets: tuple[StoredSecret, ...] = ()
    workspace_tier: str = ""
    owner: Owner | None = None


class KeyStore:
    """Keeps keys. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pepper_versions(self, now: float) -> Mapping[int, int]:
        """How many secrets that still work were made with which version of the pepper."""
        current = sa.select(api_keys.c.pepper_version).where(api_keys.c.revoke_time.is_(None))
        earlier = sa.select(earlier_secrets.c.pepper_version).where(earlier_secrets.c.expire_time > micros(now))
        version = sa.union_all(current, earlier).subquery().c.pepper_version
        async with self._database.reading() as connection:
            counted = await connection.execute(sa.select(version, sa.func.count()).group_by(version))
            return {row[0]: row[1] for row in counted}

    async def position(self) -> Position:
        """Where the numbering of invalidations stands."""
        (row,) = await self._database.read_rows(_POSITION)
        return Position(row.epoch, row.sequence)

    async def look_up(self, key_ids: Sequence[str], now: float) -> dict[str, StoredKey]:
        """Each key, its secrets that work at `now`, its workspace, and where the numbering stands, all at one moment."""
        # Each number of parameters is a statement to prepare, so that there are few.
        padded = [*key_ids, *repeat(key_ids[-1], (1 << (len(key_ids) - 1).bit_length()) - len(key_ids))]
        rows = await self._database.read_rows(_LOOK_UP, {"key_ids": padded, "now": micros(now)})
        position = Position(rows[0].epoch, rows[0].sequence)
        found = {key_id: StoredKey(position) for key_id in key_ids}
        for row in rows:
            if row.key_id is not None:
                found[row.key_id] = _with_row(found[row.key_id], row)
        return found

    async def get_key(self, key_id: str) -> ApiKey | None:
        """The key, or None."""
        async with self._database.reading() as connection:
            return await get_key(connection, key_id)

    async def get_workspace(self, workspace_id: str) -> Workspace | None:
        """The workspace, or None."""
        query = sa.select(workspaces).where(
            workspaces.c.workspace_id == workspace_id, workspaces.c.delete_time.is_(None)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else to_workspace(row)

    async def get_owner(self, user_id: str, workspace_id: str) -> Owner | None:
        """What a user would be to a key of theirs in a workspace; None: there is no such user."""
        query = sa.select(*OWNER_COLUMNS).select_from(users.outerjoin(memberships, is_seat(workspace_id)))
        async with self._database.reading() as connection:
            row = (await connection.execute(query.where(is_owner(user_id)))).one_or_none()
        return None if row is None else to_owner(row)

    async def insert_key(
        self,
        key: ApiKey,
        digest: SecretDigest,
        entry: AuditEntry,
        mark: RequestMark | None = None,
        *,
        user_keys: int | None = None,
    ) -> tuple[ApiKey, bool]:
        """Adds the key, and `entry` to the audit. When the same request was seen within 24 hours, adds nothing.

        Returns:
            The key that is there now, and whether this call made it.

        Raises:
            NaruError: ALREADY_EXISTS when the request id was seen with another body; NOT_FOUND when the workspace, or the
                key's user, is gone; FAILED_PRECONDITION when that user would have more than `user_keys` that work or are a
                day old at most.
        """
        try:
            async with self._database.writing() as connection:
                if key.user_id:
                    await _hold_owner(connection, key.user_id)
                await hold_workspace(connection, key.workspace_id)
                if mark is not None:
                    await _forget_request(connection, mark, before=key.create_time - REQUEST_ID_SECONDS)
                await _insert_key(connection, key, digest, mark)
                if user_keys is not None:
                    await _check_number(connection, key, user_keys)
                await audit.record(connection, entry)
        except IntegrityError:
            earlier = None if mark is None else await self._made_by(mark)
            if earlier is None:
                raise
            return earlier, False
        return key, True

    async def list_keys(self, filters: KeyFilters, *, after: PageStart | None, limit: int, now: float) -> list[ApiKey]:
        """At most `limit` keys that fit at `now`, newest first, from after `after` on."""
        query = sa.select(api_keys).order_by(api_keys.c.create_time.desc(), api_keys.c.key_id.desc()).limit(limit)
        if filters.tier:
            query = query.join(workspaces, workspaces.c.workspace_id == api_keys.c.workspace_id)
            query = query.outerjoin(users, is_owner(api_keys.c.user_id))
            query = query.where(_effective_tier() == filters.tier)
        query = query.where(*_conditions(filters, micros(now)))
        if after is not None:
            position = sa.tuple_(api_keys.c.create_time, api_keys.c.key_id)
            query = query.where(position < sa.tuple_(sa.literal(micros(after.create_time)), sa.literal(after.key_id)))
        async with self._database.reading() as connection:
            return [to_key(row) for row in await connection.execute(query)]

    async def invalidations_after(self, sequence: int, limit: int) -> list[Invalidation]:
        """At most `limit` invalidations with a higher number, lowest first."""
        query = (
            sa.select(invalidations.c.sequence, invalidations.c.key_id, invalidations.c.user_id)
            .where(invalidations.c.sequence > sequence)
            .order_by(invalidations.c.sequence)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            rows = await connection.execute(query)
            return [Invalidation(row.sequence, row.key_id, row.user_id or "") for row in rows]

    async def bootstrap(self, workspace: Workspace, key: ApiKey, digest: SecretDigest, entry: AuditEntry) -> bool:
        """Adds the first workspace, its key, and `entry` to the audit.

        False, and nothing added, when the installation has a workspace already.
        """
        claim = (
            sa.update(installation)
            .where(installation.c.first_workspace_id.is_(None))
            .values(first_workspace_id=workspace.workspace_id)
        )
        async with self._database.writing() as connection:
            # Of two at once, the second waits here for the first to commit and then changes no row.
            if (await connection.execute(claim)).rowcount != 1:
                return False
            await connection.execute(
                sa.insert(workspaces).values(
                    workspace_id=workspace.workspace_id,
                    name=workspace.name,
                    tier=workspace.tier,
                    create_time=micros(workspace.create_time),
                )
            )
            await _insert_key(connection, key, digest, None)
            await audit.record(connection, entry)
        return True

    async def bootstrapped_workspace(self, name: str) -> Workspace | None:
        """The workspace of that name, or with an empty name the one the installation began with; None without one."""
        query = sa.select(workspaces)
        if name:
            query = query.where(workspaces.c.name == name)
        else:
            query = query.join(installation, installation.c.first_workspace_id == workspaces.c.workspace_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else to_workspace(row)

    async def _made_by(self, mark: RequestMark) -> ApiKey | None:
        query = sa.select(api_keys).where(
            api_keys.c.request_caller == mark.caller, api_keys.c.request_id == mark.request_id
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        if row.request_digest != mark.body_digest:
            raise used_before(mark)
        return to_key(row)


def _with_row(stored: StoredKey, row: sa.Row[Any]) -> StoredKey:
    """What is known with one more row: each has the key, and one of its earlier secrets, if it has any."""
    current = (StoredSecret(SecretDigest(row.pepper_version, row.digest)),)
    secrets = stored.secrets or current
    if row.earlier_digest is not None:
        digest = SecretDigest(row.earlier_pepper_version, row.earlier_digest)
        secrets += (StoredSecret(digest, row.earlier_expire_time / MICROS),)
    return StoredKey(stored.position, stored.key or to_key(row), secrets, row.workspace_tier, to_owner(row))


def _alive(now: int) -> sa.ColumnElement[bool]:
    columns = api_keys.c
    return sa.and_(columns.revoke_time.is_(None), sa.or_(columns.expire_time.is_(None), columns.expire_time > now))


def _conditions(filters: KeyFilters, now: int) -> list[sa.ColumnElement[bool]]:
    columns = api_keys.c
    found = [
        columns[name] == getattr(filters, name)
        for name in ("workspace_id", "user_id", "service_account")
        if getattr(filters, name)
    ]
    if filters.description_contains:
        found.append(columns.description.icontains(filters.description_contains, autoescape=True))
    ended = columns.expire_time <= now
    alive = _alive(now)
    match filters.state:
        case KeyState.ACTIVE:
            found += [alive, columns.block_time.is_(None)]
        case KeyState.BLOCKED:
            found += [alive, columns.block_time.is_not(None)]
        case KeyState.EXPIRED:
            found += [columns.revoke_time.is_(None), ended]
        case KeyState.REVOKED:
            found.append(columns.revoke_time.is_not(None))
        case None:
            # A tier is in use as long as a key that has it can be used.
            shown = alive if filters.tier else columns.revoke_time.is_(None)
            found += [] if filters.show_revoked else [shown]
    return found


def _effective_tier() -> sa.ColumnElement[str]:
    """As `Authenticator` finds it."""
    return sa.func.coalesce(api_keys.c.tier, users.c.tier, sa.func.nullif(workspaces.c.tier, ""), DEFAULT_TIER)


async def _insert_key(connection: AsyncConnection, key: ApiKey, digest: SecretDigest, mark: RequestMark | None) -> None:
    values = key_values(key) | digest_values(digest) | mark_values(mark)
    await connection.execute(sa.insert(api_keys).values(values))


async def _hold_owner(connection: AsyncConnection, user_id: str) -> None:
    """Keeps a key's user from being deleted before the transaction ends; of two who make them a key the second waits.

    Raises NaruError NOT_FOUND when there is none.
    """
    owner = sa.select(users.c.user_id).where(is_owner(user_id)).with_for_update(key_share=True)
    if (await connection.execute(owner)).one_or_none() is None:
        raise not_found("user", user_id)


async def _check_number(connection: AsyncConnection, key: ApiKey, most: int) -> None:
    """Raises NaruError FAILED_PRECONDITION when the user of a new key, who is held, has more than `most`."""
    # Those of a day count whatever became of them, as their rows stay.
    fresh = api_keys.c.create_time > micros(key.create_time - _DAY_SECONDS)
    mine = sa.and_(api_keys.c.user_id == key.user_id, sa.or_(_alive(micros(key.create_time)), fresh))
    counted = await connection.execute(sa.select(sa.func.count()).select_from(api_keys).where(mine))
    if counted.scalar_one() > most:
        raise NaruError(
            Reason.FAILED_PRECONDITION,
            f"You have as many API keys as users may: {most} that work or were made within the last 24 hours.",
            metadata={"resource": "api_key", "limit": str(most)},
        )


async def _forget_request(connection: AsyncConnection, mark: RequestMark, before: float) -> None:
    await connection.execute(
        sa.update(api_keys)
        .where(
            api_keys.c.request_caller == mark.caller,
            api_keys.c.request_id == mark.request_id,
            api_keys.c.create_time <= micros(before),
        )
        .values(request_caller=None, request_id=None, request_digest=None)
    )
