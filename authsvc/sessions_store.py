"""The SQL of sessions, their refresh tokens, and the keys that access tokens are signed with."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.keys import SecretDigest
from authsvc.people_audit import TellEnded
from authsvc.records import Position
from authsvc.rows import number_invalidation
from authsvc.tables import installation, memberships, refresh_tokens, sessions, signing_keys, users, workspaces
from authsvc.user_records import Seat, Session, StoredRefresh, StoredSession, StoredSigningKey
from authsvc.user_rows import micros, seconds, to_session
from naru.addresses import network_of
from naru.database import Database
from naru.identity import Role

KEPT_SECONDS = 7 * 24 * 3600.0
"""How long a session that has expired is kept."""


class SessionStore:
    """Keeps sessions. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_session(self, session: Session, digest: SecretDigest, password_hash: str) -> bool:
        """Begins a session, if its user is not blocked and still has the password that was checked.

        Also forgets the user's sessions that expired a week ago.
        """
        query = sa.select(users.c.password_hash, users.c.blocked).where(users.c.user_id == session.user_id)
        async with self._database.writing() as connection:
            # A password that changes at this moment ends all sessions before it or after it, not around it.
            row = (await connection.execute(query.with_for_update())).one_or_none()
            if row is None or row.blocked or row.password_hash != password_hash:
                return False
            await _forget(connection, session.user_id, session.create_time - KEPT_SECONDS)
            await connection.execute(
                sa.insert(sessions).values(
                    session_id=session.session_id,
                    user_id=session.user_id,
                    client_address=session.client_address,
                    create_time=micros(session.create_time),
                    expire_time=micros(session.expire_time),
                )
            )
            await connection.execute(_refresh(session.session_id, 1, digest))
        return True

    async def began_from(self, email: str, client_address: str) -> bool:
        """Whether a session of that account, which may have ended since, began from this address, or from its IPv6 /64."""
        theirs = sa.select(sessions.c.client_address).join(users, users.c.user_id == sessions.c.user_id)
        rows = await self._database.read_rows(theirs.where(users.c.email == email).distinct())
        return network_of(client_address) in {network_of(row.client_address) for row in rows}

    async def look_up_refresh(self, session_id: str, generation: int) -> StoredRefresh | None:
        """The refresh token of a session with that number, or None."""
        newest = sa.select(sa.func.max(refresh_tokens.c.generation)).where(refresh_tokens.c.session_id == session_id)
        query = (
            sa.select(
                *sessions.c,
                users.c.blocked,
                refresh_tokens.c.digest,
                refresh_tokens.c.pepper_version,
                refresh_tokens.c.spend_time,
                newest.scalar_subquery().label("newest"),
            )
            .join(sessions, sessions.c.session_id == refresh_tokens.c.session_id)
            .join(users, users.c.user_id == sessions.c.user_id)
            .where(refresh_tokens.c.session_id == session_id, refresh_tokens.c.generation == generation)
        )
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        if row is None:
            return None
        return StoredRefresh(
            session=to_session(row),
            generation=generation,
            digest=SecretDigest(row.pepper_version, row.digest),
            spend_time=None if row.spend_time is None else seconds(row.spend_time),
            newest=row.newest,
            blocked=row.blocked,
        )

    async def spend_refresh(self, session_id: str, generation: int, successor: SecretDigest, now: float) -> bool:
        """Changes a token for its successor; False when it was spent before, or is gone."""
        change = (
            sa.update(refresh_tokens)
            .where(
                refresh_tokens.c.session_id == session_id,
                refresh_tokens.c.generation == generation,
                refresh_tokens.c.spend_time.is_(None),
            )
            .values(spend_time=micros(now))
        )
        kept = sa.select(sessions.c.session_id).where(sessions.c.session_id == session_id)
        async with self._database.writing() as connection:
            # Before the token, as whoever deletes its user has them.
            if (await connection.execute(kept.with_for_update(read=True, key_share=True))).one_or_none() is None:
                return False
            # Of two at once, the second waits here for the first to commit and then changes no row.
            if (await connection.execute(change)).rowcount != 1:
                return False
            await connection.execute(_refresh(session_id, generation + 1, successor))
        return True

    async def revoke_session(self, session: Session, now: float, entry: AuditEntry | None = None) -> int | None:
        """Ends a session; the number of the invalidation, or None when it had ended before.

        With `entry` the audit tells of it; a plain log-out is nothing that it tells.
        """
        async with self._database.writing() as connection:
            if not await end_sessions(connection, sessions.c.session_id == session.session_id, now):
                return None
            if entry is not None:
                await audit.record(connection, entry)
            return await number_invalidation(connection, user_id=session.user_id, time=now)

    async def revoke_sessions(self, user_id: str, now: float, tell: TellEnded) -> tuple[int, int | None]:
        """Ends all sessions of a user; how many, and the number of the invalidation, None when there was none."""
        async with self._database.writing() as connection:
            ended = await end_sessions(connection, sessions.c.user_id == user_id, now)
            if not ended:
                return 0, None
            await audit.record(connection, tell(ended))
            return ended, await number_invalidation(connection, user_id=user_id, time=now)

    async def look_up_session(self, session_id: str) -> StoredSession:
        """Session, user, what the user is where, and position of the numbering, as they were at one moment."""
        # One statement sees one snapshot: an invalidation that the position counts is also seen in the rest.
        home = workspaces.alias("home")
        default_first = sa.case((memberships.c.workspace_id == users.c.default_workspace_id, 0), else_=1)
        query = (
            sa.select(
                installation.c.epoch,
                installation.c.sequence,
                *sessions.c,
                users.c.role.label("user_role"),
                users.c.tier.label("user_tier"),
                users.c.blocked,
                memberships.c.workspace_id,
                memberships.c.role.label("seat_role"),
                workspaces.c.tier.label("workspace_tier"),
                home.c.workspace_id.label("home_workspace_id"),
                home.c.tier.label("home_tier"),
            )
            .select_from(
                installation.outerjoin(sessions, sessions.c.session_id == session_id)
                .outerjoin(users, users.c.user_id == sessions.c.user_id)
                .outerjoin(memberships, memberships.c.user_id == users.c.user_id)
                .outerjoin(workspaces, workspaces.c.workspace_id == memberships.c.workspace_id)
                .outerjoin(
                    home,
                    sa.and_(home.c.workspace_id == installation.c.first_workspace_id, users.c.role == Role.ADMIN.value),
                )
            )
            .order_by(default_first, memberships.c.create_time, memberships.c.workspace_id)
        )
        rows = await self._database.read_rows(query)
        first = rows[0]
        position = Position(first.epoch, first.sequence)
        if first.session_id is None:
            return StoredSession(position)
        return StoredSession(
            position, to_session(first), Role(first.user_role), first.user_tier or "", first.blocked, _seats(rows)
        )

    async def list_signing_keys(self) -> list[StoredSigningKey]:
        """All signing keys."""
        async with self._database.reading() as connection:
            rows = await connection.execute(sa.select(signing_keys))
            return [
                StoredSigningKey(row.kid, row.public_key, row.private_key, row.pepper_version, seconds(row.create_time))
                for row in rows
            ]

    async def insert_signing_key(self, key: StoredSigningKey, *, beside: Collection[str]) -> bool:
        """Adds a signing key, unless another one was added to those that `beside` names. Says whether it was added."""
        others = sa.select(sa.exists().where(signing_keys.c.kid.not_in(beside)))
        async with self._database.writing() as connection:
            # One after the other.
            await connection.execute(sa.select(installation.c.epoch).with_for_update())
            if (await connection.execute(others)).scalar_one():
                return False
            await connection.execute(
                sa.insert(signing_keys).values(
                    kid=key.kid,
                    public_key=key.public_key,
                    private_key=key.private_key,
                    pepper_version=key.pepper_version,
                    create_time=micros(key.create_time),
                )
            )
            return True

    async def delete_signing_keys(self, kids: Sequence[str]) -> None:
        """Deletes signing keys, if there are any to delete."""
        if kids:
            async with self._database.writing() as connection:
                await connection.execute(sa.delete(signing_keys).where(signing_keys.c.kid.in_(kids)))


async def end_sessions(connection: AsyncConnection, which: sa.ColumnElement[bool], now: float) -> int:
    """Ends the sessions for which `which` holds and that have not ended; how many."""
    change = sa.update(sessions).where(which, sessions.c.revoke_time.is_(None)).values(revoke_time=micros(now))
    return (await connection.execute(change)).rowcount


def _refresh(session_id: str, generation: int, digest: SecretDigest) -> sa.Insert:
    return sa.insert(refresh_tokens).values(
        session_id=session_id,
        generation=generation,
        digest=digest.digest,
        pepper_version=digest.pepper_version,
    )


def _seats(rows: Sequence[sa.Row[Any]]) -> tuple[Seat, ...]:
    """What the user is where. An administrator whom all workspaces sent away acts in the installation's first one."""
    seats = tuple(
        Seat(row.workspace_id, Role(row.seat_role), row.workspace_tier) for row in rows if row.workspace_id is not None
    )
    home = rows[0]
    if seats or home.home_workspace_id is None:
        return seats
    return (Seat(home.home_workspace_id, Role.USER, home.home_tier),)


async def _forget(connection: AsyncConnection, user_id: str, before: float) -> None:
    old = sa.and_(sessions.c.user_id == user_id, sessions.c.expire_time < micros(before))
    ids = sa.select(sessions.c.session_id).where(old)
    await connection.execute(sa.delete(refresh_tokens).where(refresh_tokens.c.session_id.in_(ids)))
    await connection.execute(sa.delete(sessions).where(old))
