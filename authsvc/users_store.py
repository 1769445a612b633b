"""The SQL of users and invites. Each change writes its entries of the audit, in its transaction."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.keys import SecretDigest
from authsvc.people_audit import TellEnded, TellUser
from authsvc.rows import hold_workspace, keep_an_admin, number_invalidation
from authsvc.sessions_store import end_sessions
from authsvc.tables import installation, invites, memberships, sessions, users, workspaces
from authsvc.user_records import Invite, Membership, User
from authsvc.user_rows import from_membership, from_user, micros, to_invite, to_membership, to_user
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.identity import Role


class UserStore:
    """Keeps users. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_user(
        self,
        user: User,
        password_hash: str,
        seat: Membership,
        entries: Sequence[AuditEntry],
        *,
        invite_id: str = "",
        only_admin: bool = False,
    ) -> bool:
        """Adds a user, their first membership, and `entries` to the audit, and uses up an invite; all or nothing.

        With `only_admin`, only where there is no administrator yet. Returns whether it was added: False when there is one, or
        when the invite was used before.

        Raises:
            NaruError: ALREADY_EXISTS when the address has a user; NOT_FOUND when the workspace is gone.
        """
        try:
            async with self._database.writing() as connection:
                await hold_workspace(connection, seat.workspace_id)
                if only_admin and await _has_admin(connection):
                    return False
                if invite_id and not await _use_invite(connection, invite_id, user.create_time):
                    return False
                await connection.execute(sa.insert(users).values(**from_user(user), password_hash=password_hash))
                await connection.execute(sa.insert(memberships).values(from_membership(seat)))
                for entry in entries:
                    await audit.record(connection, entry)
        except IntegrityError:
            if await self.find_by_email(user.email) is None:
                raise
            raise _address_taken(user.email) from None
        return True

    async def get_user(self, user_id: str) -> User | None:
        """The user, or None."""
        async with self._database.reading() as connection:
            row = (await connection.execute(sa.select(users).where(_is_living(user_id)))).one_or_none()
        return None if row is None else to_user(row)

    async def find_by_email(self, email: str) -> tuple[User, str] | None:
        """The user with that address and the hash of their password, or None."""
        async with self._database.reading() as connection:
            row = (await connection.execute(sa.select(users).where(users.c.email == email))).one_or_none()
        return None if row is None else (to_user(row), row.password_hash)

    async def list_users(self, *, workspace_id: str, email: str, after: str, limit: int) -> list[User]:
        """At most `limit` users by address, from after the address `after` on.

        With `workspace_id` only its members; with `email` only that address.
        """
        query = sa.select(users).where(users.c.delete_time.is_(None)).order_by(users.c.email).limit(limit)
        if workspace_id:
            query = query.join(memberships, memberships.c.user_id == users.c.user_id)
            query = query.where(memberships.c.workspace_id == workspace_id)
        if email:
            query = query.where(users.c.email == email)
        if after:
            query = query.where(users.c.email > after)
        async with self._database.reading() as connection:
            return [to_user(row) for row in await connection.execute(query)]

    async def update_user(self, user: User, now: float, tell: TellUser) -> tuple[User, int]:
        """Replaces what a user is; whoever is blocked has no session any more. What changes nothing leaves no entry.

        Returns:
            The user, and the number of the invalidation.

        Raises:
            NaruError: NOT_FOUND; ALREADY_EXISTS when the address is another user's; FAILED_PRECONDITION when no administrator
                would be left.
        """
        values = from_user(user)
        del values["user_id"], values["create_time"]
        which = _is_living(user.user_id)
        change = sa.update(users).where(which).values(values).returning(*users.c)
        try:
            async with self._database.writing() as connection:
                found = (await connection.execute(sa.select(users).where(which).with_for_update())).one_or_none()
                if found is None:
                    raise not_found("user", user.user_id)
                before, after = to_user(found), to_user((await connection.execute(change)).one())
                if user.blocked:
                    await end_sessions(connection, sessions.c.user_id == user.user_id, now)
                if after != before:
                    await audit.record(connection, tell(before, after))
                sequence = await number_invalidation(connection, user_id=user.user_id, time=now)
                await keep_an_admin(connection, before)
                return after, sequence
        except IntegrityError:
            raise _address_taken(user.email) from None

    async def set_password(
        self, user_id: str, password_hash: str, now: float, tell: TellEnded, *, instead_of: str = ""
    ) -> int | None:
        """Replaces a password and ends all sessions; the number of the invalidation.

        None, and nothing changed, when there is no such user or, with `instead_of`, when that is not the hash any more.
        """
        change = sa.update(users).where(_is_living(user_id)).values(password_hash=password_hash)
        if instead_of:
            change = change.where(users.c.password_hash == instead_of)
        async with self._database.writing() as connection:
            if (await connection.execute(change)).rowcount != 1:
                return None
            ended = await end_sessions(connection, sessions.c.user_id == user_id, now)
            await audit.record(connection, tell(ended))
            return await number_invalidation(connection, user_id=user_id, time=now)

    async def refresh_hash(self, user_id: str, password_hash: str, *, instead_of: str) -> bool:
        """Replaces the hash of an unchanged password; False when the password was changed meanwhile."""
        change = (
            sa.update(users)
            .where(users.c.user_id == user_id, users.c.password_hash == instead_of)
            .values(password_hash=password_hash)
        )
        async with self._database.writing() as connection:
            return (await connection.execute(change)).rowcount == 1

    async def memberships_of(self, user_id: str) -> list[Membership]:
        """What a user is where, by the workspace's name."""
        query = (
            sa.select(*memberships.c, workspaces.c.name.label("workspace_name"), users.c.email)
            .join(workspaces, workspaces.c.workspace_id == memberships.c.workspace_id)
            .join(users, users.c.user_id == memberships.c.user_id)
            .where(memberships.c.user_id == user_id)
            .order_by(workspaces.c.name)
        )
        async with self._database.reading() as connection:
            return [to_membership(row) for row in await connection.execute(query)]

    async def insert_invite(self, invite: Invite, digest: SecretDigest, entry: AuditEntry) -> None:
        """Adds an invite, and `entry` to the audit. Raises NaruError NOT_FOUND when the workspace is gone."""
        async with self._database.writing() as connection:
            await hold_workspace(connection, invite.workspace_id)
            await connection.execute(
                sa.insert(invites).values(
                    invite_id=invite.invite_id,
                    digest=digest.digest,
                    pepper_version=digest.pepper_version,
                    email=invite.email or None,
                    workspace_id=invite.workspace_id,
                    role=invite.role.value,
                    create_time=micros(invite.create_time),
                    expire_time=micros(invite.expire_time),
                )
            )
            await audit.record(connection, entry)

    async def find_invite(self, invite_id: str) -> tuple[Invite, SecretDigest] | None:
        """An invite that was not used or revoked, and the digest of its code; or None."""
        query = sa.select(invites).where(_is_open(invite_id))
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else (to_invite(row), SecretDigest(row.pepper_version, row.digest))


def _is_living(user_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(users.c.user_id == user_id, users.c.delete_time.is_(None))


def _is_open(invite_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(invites.c.invite_id == invite_id, invites.c.use_time.is_(None), invites.c.revoke_time.is_(None))


async def _has_admin(connection: AsyncConnection) -> bool:
    # Two that ask at once ask one after the other.
    await connection.execute(sa.update(installation).values(sequence=installation.c.sequence))
    query = sa.select(sa.func.count()).select_from(users).where(users.c.role == Role.ADMIN.value)
    return bool((await connection.execute(query)).scalar_one())


async def _use_invite(connection: AsyncConnection, invite_id: str, now: float) -> bool:
    change = sa.update(invites).where(_is_open(invite_id)).values(use_time=micros(now))
    return (await connection.execute(change)).rowcount == 1


def _address_taken(email: str) -> NaruError:
    return NaruError(
        Reason.ALREADY_EXISTS,
        "There is an account with this address already.",
        metadata={"resource": "user", "name": email},
    )
