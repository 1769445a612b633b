"""The SQL of workspaces and of who belongs to them. Each change writes its entry of the audit, in its transaction."""

from __future__ import annotations

from dataclasses import replace

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.people_audit import TellMember, TellWorkspace
from authsvc.records import Workspace
from authsvc.rows import hold_workspace, number_invalidation
from authsvc.tables import api_keys, installation, memberships, users, workspaces
from authsvc.user_records import Membership
from authsvc.user_rows import from_membership, micros, to_membership, to_seat, to_workspace
from naru.database import Database
from naru.errors import NaruError, Reason, not_found
from naru.identity import Role


class WorkspaceStore:
    """Keeps workspaces. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_workspace(self, workspace: Workspace, entry: AuditEntry) -> None:
        """Adds a workspace, and `entry` to the audit. Raises NaruError ALREADY_EXISTS when its name is taken."""
        try:
            async with self._database.writing() as connection:
                await connection.execute(
                    sa.insert(workspaces).values(
                        workspace_id=workspace.workspace_id,
                        name=workspace.name,
                        tier=workspace.tier,
                        create_time=micros(workspace.create_time),
                    )
                )
                await audit.record(connection, entry)
        except IntegrityError:
            raise _name_taken(workspace.name) from None

    async def list_workspaces(self, *, user_id: str, workspace_id: str, after: str, limit: int) -> list[Workspace]:
        """At most `limit` workspaces by name, from after the name `after` on.

        With `user_id` only those the user belongs to; with `workspace_id` only that one.
        """
        query = sa.select(workspaces).where(workspaces.c.delete_time.is_(None))
        query = query.order_by(workspaces.c.name).limit(limit)
        if user_id:
            query = query.join(memberships, memberships.c.workspace_id == workspaces.c.workspace_id)
            query = query.where(memberships.c.user_id == user_id)
        if workspace_id:
            query = query.where(workspaces.c.workspace_id == workspace_id)
        if after:
            query = query.where(workspaces.c.name > after)
        async with self._database.reading() as connection:
            return [to_workspace(row) for row in await connection.execute(query)]

    async def update_workspace(
        self, workspace_id: str, *, name: str, tier: str, now: float, tell: TellWorkspace
    ) -> tuple[Workspace, int | None]:
        """Replaces name and tier. With another tier, its keys and members are no longer what they were.

        What changes nothing leaves no entry.

        Returns:
            The workspace, and the number of the last invalidation; None when there was none.

        Raises:
            NaruError: NOT_FOUND; ALREADY_EXISTS when the name is taken.
        """
        which = sa.and_(workspaces.c.workspace_id == workspace_id, workspaces.c.delete_time.is_(None))
        try:
            async with self._database.writing() as connection:
                found = (await connection.execute(sa.select(workspaces).where(which).with_for_update())).one_or_none()
                if found is None:
                    raise not_found("workspace", workspace_id)
                before = to_workspace(found)
                change = sa.update(workspaces).where(which).values(name=name, tier=tier).returning(*workspaces.c)
                workspace = to_workspace((await connection.execute(change)).one())
                if workspace != before:
                    await audit.record(connection, tell(before, workspace))
                sequence = await _number_all(connection, workspace_id, now) if tier != before.tier else None
                return workspace, sequence
        except IntegrityError:
            raise _name_taken(name) from None

    async def get_member(self, workspace_id: str, user_id: str) -> Membership | None:
        """What a user is in a workspace, or None."""
        query = _members(workspace_id).where(memberships.c.user_id == user_id)
        async with self._database.reading() as connection:
            row = (await connection.execute(query)).one_or_none()
        return None if row is None else to_membership(row)

    async def list_members(self, workspace_id: str, *, after: str, limit: int) -> list[Membership]:
        """At most `limit` members by address, from after the address `after` on."""
        query = _members(workspace_id).order_by(users.c.email).limit(limit)
        if after:
            query = query.where(users.c.email > after)
        async with self._database.reading() as connection:
            return [to_membership(row) for row in await connection.execute(query)]

    async def set_member(self, member: Membership, tell: TellMember, *, may_add: bool = True) -> int:
        """Makes a user a member, or changes what they are; the number of the invalidation. What changes nothing leaves no entry.

        Raises:
            NaruError: NOT_FOUND when there is no such workspace or user, or without `may_add` when they are no member.
        """
        which = (memberships.c.workspace_id == member.workspace_id) & (memberships.c.user_id == member.user_id)
        living = sa.and_(users.c.user_id == member.user_id, users.c.delete_time.is_(None))
        user = sa.select(users.c.user_id).where(living).with_for_update()
        async with self._database.writing() as connection:
            # Of two that make the same member at once, the second waits here.
            if (await connection.execute(user)).one_or_none() is None:
                raise not_found("user", member.user_id)
            await hold_workspace(connection, member.workspace_id)
            found = (await connection.execute(sa.select(memberships).where(which).with_for_update())).one_or_none()
            if found is None and not may_add:
                raise not_found("user", member.user_id)
            before = None if found is None else to_seat(found)
            after = member if before is None else replace(before, role=member.role)
            if before is not None:
                await connection.execute(sa.update(memberships).where(which).values(role=member.role.value))
            else:
                await connection.execute(sa.insert(memberships).values(from_membership(member)))
            if after != before:
                await audit.record(connection, tell(before, after))
            return await number_invalidation(connection, user_id=member.user_id, time=member.create_time)

    async def remove_member(self, workspace_id: str, user_id: str, now: float, tell: TellMember) -> int | None:
        """Ends a membership; the number of the invalidation, or None when there was none to end."""
        which = (memberships.c.workspace_id == workspace_id) & (memberships.c.user_id == user_id)
        end = sa.delete(memberships).where(which).returning(*memberships.c)
        async with self._database.writing() as connection:
            ended = (await connection.execute(end)).one_or_none()
            if ended is None:
                return None
            await audit.record(connection, tell(to_seat(ended), None))
            return await number_invalidation(connection, user_id=user_id, time=now)


def _members(workspace_id: str) -> sa.Select[tuple[object, ...]]:
    return (
        sa.select(*memberships.c, workspaces.c.name.label("workspace_name"), users.c.email)
        .join(workspaces, workspaces.c.workspace_id == memberships.c.workspace_id)
        .join(users, users.c.user_id == memberships.c.user_id)
        .where(memberships.c.workspace_id == workspace_id)
    )


async def _number_all(connection: AsyncConnection, workspace_id: str, now: float) -> int | None:
    """Numbers the workspace's keys and whoever acts in it: its members, and in the installation's first one administrators."""
    members = sa.select(memberships.c.user_id).where(memberships.c.workspace_id == workspace_id)
    # Those whom all workspaces sent away act there; which these are may change at this moment.
    is_first = sa.exists().where(installation.c.first_workspace_id == workspace_id)
    at_home = sa.and_(users.c.role == Role.ADMIN.value, users.c.delete_time.is_(None), is_first)
    acting = sa.select(users.c.user_id).where(sa.or_(users.c.user_id.in_(members), at_home))
    keys = sa.select(api_keys.c.key_id).where(api_keys.c.workspace_id == workspace_id, api_keys.c.revoke_time.is_(None))
    sequence = None
    for user_id in (await connection.execute(acting)).scalars().all():
        sequence = await number_invalidation(connection, user_id=user_id, time=now)
    for key_id in (await connection.execute(keys)).scalars().all():
        sequence = await number_invalidation(connection, key_id=key_id, time=now)
    return sequence


def _name_taken(name: str) -> NaruError:
    return NaruError(
        Reason.ALREADY_EXISTS,
        "There is a workspace of this name already.",
        metadata={"resource": "workspace", "name": name},
    )
