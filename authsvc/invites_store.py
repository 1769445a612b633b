"""The SQL that lists invites and ends them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import sqlalchemy as sa

from authsvc import audit
from authsvc.people_audit import TellInvite
from authsvc.tables import invites
from authsvc.user_records import Invite
from authsvc.user_rows import micros, to_invite
from naru.database import Database
from naru.errors import NaruError, Reason, not_found


@dataclass(frozen=True, slots=True)
class InviteFilters:
    """Which invites a list has; empty: all. `show_ended`: also those that let nobody in any more."""

    workspace_id: str = ""
    email: str = ""
    show_ended: bool = False


class InviteStore:
    """Keeps invites. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_invites(self, filters: InviteFilters, *, after: str, limit: int, now: float) -> list[Invite]:
        """At most `limit` invites that fit at `now`, newest first, from after the invite `after` on."""
        columns = invites.c
        # Ids begin with the time at which they were made.
        query = sa.select(invites).order_by(columns.invite_id.desc()).limit(limit)
        if filters.workspace_id:
            query = query.where(columns.workspace_id == filters.workspace_id)
        if filters.email:
            query = query.where(columns.email == filters.email)
        if not filters.show_ended:
            unused = columns.use_time.is_(None) & columns.revoke_time.is_(None)
            query = query.where(unused, columns.expire_time > micros(now))
        if after:
            query = query.where(columns.invite_id < after)
        async with self._database.reading() as connection:
            return [to_invite(row) for row in await connection.execute(query)]

    async def revoke(self, invite_id: str, workspace_id: str, now: float, tell: TellInvite) -> Invite:
        """Ends an invite; with `workspace_id` only one to it. One that is revoked stays as it is.

        Raises:
            NaruError: NOT_FOUND; FAILED_PRECONDITION when it was used.
        """
        which = invites.c.invite_id == invite_id
        if workspace_id:
            which &= invites.c.workspace_id == workspace_id
        async with self._database.writing() as connection:
            found = (await connection.execute(sa.select(invites).where(which).with_for_update())).one_or_none()
            if found is None:
                raise not_found("invite", invite_id)
            before = to_invite(found)
            if before.use_time is not None:
                raise NaruError(
                    Reason.FAILED_PRECONDITION,
                    "The invite was used.",
                    metadata={"resource": "invite", "name": invite_id},
                )
            if before.revoke_time is not None:
                return before
            after = replace(before, revoke_time=now)
            await connection.execute(sa.update(invites).where(which).values(revoke_time=micros(now)))
            await audit.record(connection, tell(before, after))
            return after
