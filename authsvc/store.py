"""The only SQL of authsvc: keys, workspaces, and the numbered list of invalidations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.keys import SecretDigest
from authsvc.records import DEFAULT_TIER, ApiKey, Invalidation, PageStart, Position, RequestMark, Workspace
from authsvc.tables import api_keys, installation, invalidations, workspaces
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.identity import Role, Scopes

REQUEST_ID_SECONDS = 24 * 3600
"""How long a request id is remembered."""

_MICROS = 1_000_000


@dataclass(frozen=True, slots=True)
class StoredKey:
    """What one consistent look at the database says about a key; without such a key only the position is set."""

    position: Position
    key: ApiKey | None = None
    digest: SecretDigest | None = None
    workspace_tier: str = ""


class KeyStore:
    """Keeps keys. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def pepper_versions(self) -> frozenset[int]:
        """The versions of the peppers that keys which are not revoked were made with."""
        query = sa.select(api_keys.c.pepper_version).where(api_keys.c.revoke_time.is_(None)).distinct()
        async with self._database.reading() as connection:
            return frozenset((await connection.execute(query)).scalars())

    async def position(self) -> Position:
        """Where the numbering of invalidations stands."""
        async with self._database.reading() as connection:
            row = (await connection.execute(sa.select(installation.c.epoch, installation.c.sequence))).one()
        return Position(row.epoch, row.sequence)

    async def look_up(self, key_id: str) -> StoredKey:
        """Key, workspace and position of the numbering, as they were at one moment."""
        # One statement sees one snapshot: an invalidation that the position counts is also seen in the key.
        query = (
            sa.select(
                installation.c.epoch, installation.c.sequence, workspaces.c.tier.label("workspace_tier"), *api_keys.c
            )
            .select_from(
                installation.outerjoin(api_keys, api_keys.c.key_id == key_id).outerjoin(
                    workspaces, workspaces.c.workspace_id == api_keys.c.workspace_id
                )
            )
            .limit(1)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one()
        position = Position(row.epoch, row.sequence)
        if row.key_id is None:
            return StoredKey(position)
        return StoredKey(position, _to_key(row), SecretDigest(row.pepper_version, row.digest), row.workspace_tier)

    async def get_key(self, key_id: str) -> ApiKey | None:
        """The key, or None."""
        async with self._database.reading() as connection:
            return await _get_key(connection, key_id)

    async def get_workspace(self, workspace_id: str) -> Workspace | None:
        """The workspace, or None."""
        query = sa.select(workspaces).where(workspaces.c.workspace_id == workspace_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else _to_workspace(row)

    async def insert_key(
        self, key: ApiKey, digest: SecretDigest, mark: RequestMark | None = None
    ) -> tuple[ApiKey, bool]:
        """Adds the key. When the same request was seen within 24 hours, adds nothing.

        Returns:
            The key that is there now, and whether this call made it.

        Raises:
            NaruError: ALREADY_EXISTS when the request id was seen with another body.
        """
        try:
            async with self._database.writing() as connection:
                if mark is not None:
                    await _forget_request(connection, mark, before=key.create_time - REQUEST_ID_SECONDS)
                await connection.execute(sa.insert(api_keys).values(_from_key(key, digest, mark)))
        except IntegrityError:
            earlier = None if mark is None else await self._made_by(mark)
            if earlier is None:
                raise
            return earlier, False
        return key, True

    async def list_keys(
        self,
        *,
        workspace_id: str | None,
        show_revoked: bool,
        after: PageStart | None,
        limit: int,
        tier: str = "",
        expire_after: float | None = None,
    ) -> list[ApiKey]:
        """At most `limit` keys, newest first, from after `after` on; of every workspace when `workspace_id` is None.

        With `tier` only those that have it, their own or their workspace's; with `expire_after` only those that do not end by
        that time.
        """
        query = sa.select(api_keys).order_by(api_keys.c.create_time.desc(), api_keys.c.key_id.desc()).limit(limit)
        if workspace_id is not None:
            query = query.where(api_keys.c.workspace_id == workspace_id)
        if not show_revoked:
            query = query.where(api_keys.c.revoke_time.is_(None))
        if tier:
            query = query.join(workspaces, workspaces.c.workspace_id == api_keys.c.workspace_id)
            query = query.where(_effective_tier() == tier)
        if expire_after is not None:
            ends = api_keys.c.expire_time
            query = query.where(ends.is_(None) | (ends > _micros(expire_after)))
        if after is not None:
            position = sa.tuple_(api_keys.c.create_time, api_keys.c.key_id)
            query = query.where(position < sa.tuple_(sa.literal(_micros(after.create_time)), sa.literal(after.key_id)))
        async with self._database.reading() as connection:
            return [_to_key(row) for row in await connection.execute(query)]

    async def revoke_key(self, key_id: str, time: float) -> tuple[ApiKey, int | None]:
        """Revokes the key at `time` and numbers that, in one transaction.

        Returns:
            The key, and the number of the invalidation; None when the key was revoked before and nothing changed.

        Raises:
            NaruError: NOT_FOUND when there is no such key.
        """
        change = (
            sa.update(api_keys)
            .where(api_keys.c.key_id == key_id, api_keys.c.revoke_time.is_(None))
            .values(revoke_time=_micros(time))
        )
        async with self._database.writing() as connection:
            changed = (await connection.execute(change)).rowcount == 1
            sequence = await _number_invalidation(connection, key_id, time) if changed else None
            key = await _get_key(connection, key_id)
        if key is None:
            raise not_found("api_key", key_id)
        return key, sequence

    async def invalidations_after(self, sequence: int, limit: int) -> list[Invalidation]:
        """At most `limit` invalidations with a higher number, lowest first."""
        query = (
            sa.select(invalidations.c.sequence, invalidations.c.key_id)
            .where(invalidations.c.sequence > sequence)
            .order_by(invalidations.c.sequence)
            .limit(limit)
        )
        async with self._database.reading() as connection:
            return [Invalidation(row.sequence, row.key_id) for row in await connection.execute(query)]

    async def bootstrap(self, workspace: Workspace, key: ApiKey, digest: SecretDigest) -> bool:
        """Adds the first workspace and its key; False, and nothing added, when the installation has one already."""
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
                    create_time=_micros(workspace.create_time),
                )
            )
            await connection.execute(sa.insert(api_keys).values(_from_key(key, digest, None)))
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
        return None if row is None else _to_workspace(row)

    async def _made_by(self, mark: RequestMark) -> ApiKey | None:
        query = sa.select(api_keys).where(
            api_keys.c.request_caller == mark.caller, api_keys.c.request_id == mark.request_id
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        if row.request_digest != mark.body_digest:
            raise NaruError(
                Reason.ALREADY_EXISTS,
                "This request_id was used before with another body.",
                metadata={"resource": "request", "name": mark.request_id},
            )
        return _to_key(row)


def _effective_tier() -> sa.ColumnElement[str]:
    """As `Authenticator` finds it."""
    return sa.func.coalesce(api_keys.c.tier, sa.func.nullif(workspaces.c.tier, ""), DEFAULT_TIER)


async def _get_key(connection: AsyncConnection, key_id: str) -> ApiKey | None:
    row = (await connection.execute(sa.select(api_keys).where(api_keys.c.key_id == key_id))).one_or_none()
    return None if row is None else _to_key(row)


async def _forget_request(connection: AsyncConnection, mark: RequestMark, before: float) -> None:
    await connection.execute(
        sa.update(api_keys)
        .where(
            api_keys.c.request_caller == mark.caller,
            api_keys.c.request_id == mark.request_id,
            api_keys.c.create_time <= _micros(before),
        )
        .values(request_caller=None, request_id=None, request_digest=None)
    )


async def _number_invalidation(connection: AsyncConnection, key_id: str, time: float) -> int:
    """Belongs into the transaction that changes the key; holds the numbering until that commits."""
    advance = sa.update(installation).values(sequence=installation.c.sequence + 1).returning(installation.c.sequence)
    sequence = int((await connection.execute(advance)).scalar_one())
    await connection.execute(sa.insert(invalidations).values(sequence=sequence, key_id=key_id, time=_micros(time)))
    return sequence


def _from_key(key: ApiKey, digest: SecretDigest, mark: RequestMark | None) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "digest": digest.digest,
        "pepper_version": digest.pepper_version,
        "description": key.description,
        "workspace_id": key.workspace_id,
        "user_id": key.user_id or None,
        "service_account": key.service_account or None,
        "role": key.role.value,
        "tier": key.tier or None,
        "scopes": {
            "models": list(key.scopes.models),
            "endpoints": list(key.scopes.endpoints),
            "source_cidrs": list(key.scopes.source_cidrs),
        },
        "create_time": _micros(key.create_time),
        "expire_time": None if key.expire_time is None else _micros(key.expire_time),
        "revoke_time": None if key.revoke_time is None else _micros(key.revoke_time),
        "request_caller": None if mark is None else mark.caller,
        "request_id": None if mark is None else mark.request_id,
        "request_digest": None if mark is None else mark.body_digest,
    }


def _to_key(row: sa.Row[Any]) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        workspace_id=row.workspace_id,
        create_time=row.create_time / _MICROS,
        description=row.description,
        user_id=row.user_id or "",
        service_account=row.service_account or "",
        role=Role(row.role),
        tier=row.tier or "",
        scopes=Scopes(**{name: tuple(values) for name, values in row.scopes.items()}),
        expire_time=None if row.expire_time is None else row.expire_time / _MICROS,
        revoke_time=None if row.revoke_time is None else row.revoke_time / _MICROS,
    )


def _to_workspace(row: sa.Row[Any]) -> Workspace:
    return Workspace(row.workspace_id, row.name, row.tier, row.create_time / _MICROS)


def _micros(seconds: float) -> int:
    return round(seconds * _MICROS)
