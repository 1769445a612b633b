"""The users that keys belong to: what of them decides whether a key works and what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from authsvc.tables import memberships, users
from naru.identity import Role

_Column = sa.ColumnElement[Any] | str

OWNER_COLUMNS = (
    users.c.user_id.label("owner_id"),
    users.c.tier.label("owner_tier"),
    users.c.role.label("owner_role"),
    users.c.blocked.label("owner_blocked"),
    memberships.c.role.label("owner_seat_role"),
)
"""What `to_owner` reads, of `users` and of `memberships` joined by `is_seat`."""


@dataclass(frozen=True, slots=True)
class Owner:
    """A user, as a key of theirs in one workspace has them. `tier` empty: the workspace's.

    `role`: what they are there; None where they are no member. Administrators are that everywhere.
    """

    tier: str = ""
    blocked: bool = False
    role: Role | None = Role.USER

    def at_most(self, role: Role) -> Role:
        """What a key with this role may do for them: the lower of its role and theirs."""
        return min(role, self.role or Role.USER, key=lambda one: one.rank)


def is_owner(user_id: _Column) -> sa.ColumnElement[bool]:
    """Joins or finds the user, who was not deleted."""
    return sa.and_(users.c.user_id == user_id, users.c.delete_time.is_(None))


def is_seat(workspace_id: _Column) -> sa.ColumnElement[bool]:
    """Joins what that user is in a workspace, if anything."""
    return sa.and_(memberships.c.user_id == users.c.user_id, memberships.c.workspace_id == workspace_id)


def to_owner(row: sa.Row[Any]) -> Owner | None:
    """The owner in a row that has `OWNER_COLUMNS`; None where there is no such user."""
    if row.owner_id is None:
        return None
    role = row.owner_role if row.owner_role == Role.ADMIN.value else row.owner_seat_role
    return Owner(row.owner_tier or "", row.owner_blocked, None if role is None else Role(role))
