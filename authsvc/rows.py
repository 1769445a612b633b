"""Between rows of the tables and what authsvc keeps."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.keys import SecretDigest
from authsvc.records import ApiKey, RequestMark, Workspace
from authsvc.tables import MICROS, api_keys, installation, invalidations, micros, users, workspaces
from authsvc.user_records import User
from naru.errors import NaruError, Reason, not_found
from naru.identity import Role, Scopes

REQUEST_ID_SECONDS = 24 * 3600
"""How long a request id is remembered."""
_TIMES = (
    "expire_time",
    "revoke_time",
    "block_time",
    "rotate_time",
    "earlier_secrets_expire_time",
    "last_used_time",
)


def key_values(key: ApiKey) -> dict[str, Any]:
    """What is stored of a key, but for its secret."""
    return {
        "key_id": key.key_id,
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
        "metadata": dict(key.metadata),
        "create_time": micros(key.create_time),
        **{name: _optional_micros(getattr(key, name)) for name in _TIMES},
    }


def digest_values(digest: SecretDigest) -> dict[str, Any]:
    """What is stored of a secret."""
    return {"digest": digest.digest, "pepper_version": digest.pepper_version}


def mark_values(mark: RequestMark | None) -> dict[str, Any]:
    """What is stored of the request that made a row."""
    return {
        "request_caller": None if mark is None else mark.caller,
        "request_id": None if mark is None else mark.request_id,
        "request_digest": None if mark is None else mark.body_digest,
    }


def to_key(row: sa.Row[Any]) -> ApiKey:
    """The key in a row that has all columns of `api_keys`."""
    return ApiKey(
        key_id=row.key_id,
        workspace_id=row.workspace_id,
        create_time=row.create_time / MICROS,
        description=row.description,
        user_id=row.user_id or "",
        service_account=row.service_account or "",
        role=Role(row.role),
        tier=row.tier or "",
        scopes=Scopes(**{name: tuple(values) for name, values in row.scopes.items()}),
        metadata=row.metadata,
        **{name: _optional_seconds(row._mapping[name]) for name in _TIMES},
    )


def to_workspace(row: sa.Row[Any]) -> Workspace:
    """The workspace in a row of `workspaces`."""
    return Workspace(row.workspace_id, row.name, row.tier, row.create_time / MICROS)


async def get_key(connection: AsyncConnection, key_id: str, *, lock: bool = False) -> ApiKey | None:
    """The key, or None; with `lock` nobody else changes it before the transaction ends."""
    query = sa.select(api_keys).where(api_keys.c.key_id == key_id)
    # SQLite knows no such locks and needs none: its writers wait for each other from the start.
    row = (await connection.execute(query.with_for_update() if lock else query)).one_or_none()
    return None if row is None else to_key(row)


async def number_invalidation(connection: AsyncConnection, *, key_id: str = "", user_id: str = "", time: float) -> int:
    """Says that a key, or a user, is no longer what it was; returns the number.

    Belongs into the transaction that changes it, and holds the numbering until that commits.
    """
    advance = sa.update(installation).values(sequence=installation.c.sequence + 1).returning(installation.c.sequence)
    sequence = int((await connection.execute(advance)).scalar_one())
    row = {"sequence": sequence, "key_id": key_id, "user_id": user_id or None, "time": micros(time)}
    await connection.execute(sa.insert(invalidations).values(row))
    return sequence


async def keep_an_admin(connection: AsyncConnection, before: User) -> None:
    """Sees to it that `before`, who was changed or deleted, was not the last administrator who is not blocked.

    Comes after `number_invalidation`: two administrators who end each other come one after the other then. Raises NaruError
    FAILED_PRECONDITION.
    """
    if before.role is not Role.ADMIN or before.blocked:
        return
    query = sa.select(sa.func.count()).where(users.c.role == Role.ADMIN.value, users.c.blocked.is_(False))
    if (await connection.execute(query)).scalar_one() == 0:
        raise NaruError(
            Reason.FAILED_PRECONDITION,
            "This is the last administrator.",
            metadata={"resource": "user", "name": before.email},
        )


async def hold_workspace(connection: AsyncConnection, workspace_id: str) -> None:
    """Keeps a workspace from being deleted before the transaction ends. Raises NaruError NOT_FOUND when there is none."""
    which = sa.and_(workspaces.c.workspace_id == workspace_id, workspaces.c.delete_time.is_(None))
    query = sa.select(workspaces.c.workspace_id).where(which).with_for_update(read=True)
    if (await connection.execute(query)).one_or_none() is None:
        raise not_found("workspace", workspace_id)


def used_before(mark: RequestMark) -> NaruError:
    """The request id came with another body."""
    return NaruError(
        Reason.ALREADY_EXISTS,
        "This request_id was used before with another body.",
        metadata={"resource": "request", "name": mark.request_id},
    )


def _optional_micros(seconds: float | None) -> int | None:
    return None if seconds is None else micros(seconds)


def _optional_seconds(stored: int | None) -> float | None:
    return None if stored is None else stored / MICROS
