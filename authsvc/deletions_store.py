"""The SQL that deletes users and workspaces, with all that ends with them, in one transaction.

What is deleted stays as a row without a name or address, so that both are free again and nothing else that names its id hangs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.people_audit import PeopleAudit
from authsvc.rows import keep_an_admin, number_invalidation, to_key
from authsvc.sessions_store import end_sessions
from authsvc.tables import api_keys, installation, invites, memberships, refresh_tokens, sessions, users, workspaces
from authsvc.user_records import User
from authsvc.user_rows import micros, to_invite, to_seat, to_user, to_workspace
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.identity import Role


@dataclass(frozen=True, slots=True)
class _Ending:
    """One deletion: its transaction, its time, and what makes its entries of the audit."""

    connection: AsyncConnection
    now: float
    tell: PeopleAudit

    async def revoke_keys(self, which: sa.ColumnElement[bool]) -> list[str]:
        """Revokes those of the keys that are not; their ids. Nobody else changes any of the keys until the transaction ends.

        In one order, in which uses are noted too, so that nobody waits for another who waits for them.
        """
        query = sa.select(api_keys).where(which).order_by(self._in_order(api_keys.c.key_id)).with_for_update()
        held = [to_key(row) for row in await self.connection.execute(query)]
        keys = [key for key in held if key.revoke_time is None]
        alive = sa.and_(which, api_keys.c.revoke_time.is_(None))
        await self.connection.execute(sa.update(api_keys).where(alive).values(revoke_time=micros(self.now)))
        for key in keys:
            await self._record(self.tell.key_revoked(key, replace(key, revoke_time=self.now)))
        return [key.key_id for key in keys]

    async def end_memberships(self, user_id: str) -> None:
        """Takes a user out of every workspace."""
        end = sa.delete(memberships).where(memberships.c.user_id == user_id).returning(*memberships.c)
        for row in (await self.connection.execute(end)).all():
            await self._record(self.tell.member(to_seat(row), None))

    async def end_sessions(self, user_id: str) -> int:
        """Ends a user's sessions and leaves nothing of them, as they tell addresses; how many had not ended before."""
        theirs = sessions.c.user_id == user_id
        ids = sa.select(sessions.c.session_id).where(theirs)
        # The sessions first, as whoever spends a refresh token has them: neither waits for the other for ever.
        await self.connection.execute(ids.order_by(sessions.c.session_id).with_for_update())
        ended = await end_sessions(self.connection, theirs, self.now)
        await self.connection.execute(sa.delete(refresh_tokens).where(refresh_tokens.c.session_id.in_(ids)))
        await self.connection.execute(sa.delete(sessions).where(theirs))
        return ended

    async def forget(self, user: User) -> None:
        """Takes a user's address from invites, which end, and what they wrote from their keys."""
        named = invites.c.email == user.email
        # Without an address it would be one for anybody.
        await self.revoke_invites(named)
        await self.connection.execute(sa.update(invites).where(named).values(email=None))
        # Whoever revoked them holds them, those that were revoked before too.
        keys = sa.update(api_keys).where(api_keys.c.user_id == user.user_id)
        await self.connection.execute(keys.values(description="", metadata={}))

    async def revoke_invites(self, which: sa.ColumnElement[bool]) -> None:
        """Ends those of the invites that nobody used."""
        unused = sa.and_(which, invites.c.use_time.is_(None), invites.c.revoke_time.is_(None))
        end = sa.update(invites).where(unused).values(revoke_time=micros(self.now)).returning(*invites.c)
        for row in (await self.connection.execute(end)).all():
            after = to_invite(row)
            await self._record(self.tell.invite_revoked(replace(after, revoke_time=None), after))

    async def bury(self, table: sa.Table, which: sa.ColumnElement[bool], **values: object) -> None:
        """Leaves of the row what others refer to."""
        await self.connection.execute(sa.update(table).where(which).values(delete_time=micros(self.now), **values))

    def _in_order(self, column: sa.Column[str]) -> sa.ColumnElement[str]:
        """As Python sorts: SQLite does so by itself, PostgreSQL by the language that its database was made with."""
        return sa.collate(column, "C") if self.connection.dialect.name == "postgresql" else column

    async def _record(self, entry: AuditEntry) -> None:
        await audit.record(self.connection, entry)


class DeletionStore:
    """Deletes. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away.

    Args:
        tell: Makes the audit's entries.
    """

    def __init__(self, database: Database, tell: PeopleAudit) -> None:
        self._database = database
        self._tell = tell

    async def delete_user(self, user_id: str, now: float) -> int:
        """Deletes a user, and ends their sessions, memberships, keys and invites; the number of the last invalidation.

        Raises:
            NaruError: NOT_FOUND; FAILED_PRECONDITION for the last administrator who is not blocked.
        """
        which = sa.and_(users.c.user_id == user_id, users.c.delete_time.is_(None))
        async with self._database.writing() as connection:
            found = (await connection.execute(sa.select(users).where(which).with_for_update())).one_or_none()
            if found is None:
                raise not_found("user", user_id)
            ending, user = _Ending(connection, now, self._tell), to_user(found)
            key_ids = await ending.revoke_keys(api_keys.c.user_id == user_id)
            await ending.end_memberships(user_id)
            ended = await ending.end_sessions(user_id)
            await ending.forget(user)
            await ending.bury(
                users,
                which,
                email=user_id,
                name="",
                role=Role.USER.value,
                tier=None,
                default_workspace_id=None,
                password_hash="",
                blocked=True,
            )
            await audit.record(connection, self._tell.user_deleted(user, ended))
            sequence = await _number(connection, key_ids, user_id, now)
            await keep_an_admin(connection, user)
            return sequence

    async def delete_workspace(self, workspace_id: str, now: float) -> int | None:
        """Deletes a workspace, and ends its keys and invites; the number of the last invalidation, None without keys.

        Raises:
            NaruError: NOT_FOUND; FAILED_PRECONDITION while it has members, and for the installation's first one.
        """
        which = sa.and_(workspaces.c.workspace_id == workspace_id, workspaces.c.delete_time.is_(None))
        first = sa.select(installation.c.first_workspace_id)
        members = sa.select(sa.func.count()).where(memberships.c.workspace_id == workspace_id)
        async with self._database.writing() as connection:
            found = (await connection.execute(sa.select(workspaces).where(which).with_for_update())).one_or_none()
            if found is None:
                raise not_found("workspace", workspace_id)
            workspace = to_workspace(found)
            if (await connection.execute(first)).scalar_one() == workspace_id:
                raise _refused("This is the installation's first workspace.", "workspace", workspace.name)
            count = (await connection.execute(members)).scalar_one()
            if count:
                raise _refused(
                    f"The workspace has {count} members; end their memberships first.", "workspace", workspace.name
                )
            ending = _Ending(connection, now, self._tell)
            key_ids = await ending.revoke_keys(api_keys.c.workspace_id == workspace_id)
            await ending.revoke_invites(invites.c.workspace_id == workspace_id)
            await ending.bury(workspaces, which, name=workspace_id)
            await audit.record(connection, self._tell.workspace_deleted(workspace))
            return await _number(connection, key_ids, "", now) if key_ids else None


async def _number(connection: AsyncConnection, key_ids: list[str], user_id: str, now: float) -> int:
    """Numbers the invalidations; last of all, as whoever changes a key, too, takes the numbering after the key."""
    sequence = 0
    for key_id in key_ids:
        sequence = await number_invalidation(connection, key_id=key_id, time=now)
    return await number_invalidation(connection, user_id=user_id, time=now) if user_id else sequence


def _refused(message: str, resource: str, name: str) -> NaruError:
    return NaruError(Reason.FAILED_PRECONDITION, message, metadata={"resource": resource, "name": name})
