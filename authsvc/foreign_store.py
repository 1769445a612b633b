"""The SQL of users whom others vouch for: found by one query, and made when they come for the first time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from authsvc import audit
from authsvc.audit import AuditEntry
from authsvc.records import Position
from authsvc.rows import hold_workspace
from authsvc.tables import installation, memberships, users, workspaces
from authsvc.user_records import Membership, User
from authsvc.user_rows import from_membership, from_user
from naru.database import Database
from naru.errors import NaruError, Reason

NO_PASSWORD = "!"  # noqa: S105 -- no hash of any password, so nobody can log in with one
"""What is kept in place of a password's hash."""


@dataclass(frozen=True, slots=True)
class Place:
    """A workspace that was asked for, and whether the user is a member."""

    workspace_id: str
    tier: str
    member: bool


@dataclass(frozen=True, slots=True)
class StoredPerson:
    """What one consistent look at the database says of a user and of the workspaces that were asked for, in that order."""

    position: Position
    known: bool
    tier: str
    blocked: bool
    places: tuple[Place, ...]


class ForeignStore:
    """Keeps them. Every method raises NaruError SERVICE_UNAVAILABLE when the database is away."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def look_up(self, user_id: str, wanted: Sequence[str]) -> StoredPerson:
        """The user, and the workspaces that `wanted` names by id or name; without any, the installation's first."""
        # One statement sees one snapshot: an invalidation that the position counts is also seen in the rest.
        asked_for = (
            sa.or_(workspaces.c.workspace_id.in_(wanted), workspaces.c.name.in_(wanted))
            if wanted
            else workspaces.c.workspace_id == installation.c.first_workspace_id
        )
        member = sa.and_(
            memberships.c.workspace_id == workspaces.c.workspace_id, memberships.c.user_id == users.c.user_id
        )
        query = sa.select(
            installation.c.epoch,
            installation.c.sequence,
            users.c.user_id,
            users.c.tier.label("user_tier"),
            users.c.blocked,
            users.c.delete_time,
            workspaces.c.workspace_id,
            workspaces.c.name,
            workspaces.c.tier,
            memberships.c.user_id.label("member"),
        ).select_from(
            installation.outerjoin(users, users.c.user_id == user_id)
            .outerjoin(workspaces, sa.and_(asked_for, workspaces.c.delete_time.is_(None)))
            .outerjoin(memberships, member)
        )
        async with self._database.reading() as connection:
            rows = (await connection.execute(query)).all()
        first = rows[0]
        found = {name: row for row in rows if row.workspace_id for name in (row.name, "")}
        # An id wins over a name that is the same.
        found |= {row.workspace_id: row for row in rows if row.workspace_id}
        chosen = dict.fromkeys(found[name] for name in (wanted or ("",)) if name in found)
        return StoredPerson(
            Position(first.epoch, first.sequence),
            first.user_id is not None,
            first.user_tier or "",
            # Deleting is final: the issuer goes on to vouch for the same person, who does not come back by that.
            bool(first.blocked) or first.delete_time is not None,
            tuple(Place(row.workspace_id, row.tier, row.member is not None) for row in chosen),
        )

    async def insert(self, user: User, seat: Membership, made: Sequence[AuditEntry], joined: AuditEntry) -> None:
        """Makes the user, and a member; nothing where somebody else did at the same time, or where either was deleted.

        `made` are the audit's entries when there is no such user yet, `joined` is its entry when there is.
        """
        query = sa.select(users.c.delete_time).where(users.c.user_id == user.user_id)
        try:
            async with self._database.writing() as connection:
                # Nobody deletes them before they are a member.
                found = (await connection.execute(query.with_for_update(read=True, key_share=True))).one_or_none()
                if found is not None and found.delete_time is not None:
                    return  # which the next look tells
                await hold_workspace(connection, seat.workspace_id)
                if found is None:
                    values = {**from_user(user), "password_hash": NO_PASSWORD}
                    await connection.execute(sa.insert(users).values(values))
                await connection.execute(sa.insert(memberships).values(from_membership(seat)))
                for entry in made if found is None else (joined,):
                    await audit.record(connection, entry)
        except IntegrityError:
            return  # two first requests at once
        except NaruError as error:
            if error.reason is not Reason.NOT_FOUND:
                raise
            # The workspace is gone, which the next look tells.
