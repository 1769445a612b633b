"""Between rows of the tables of people and the values they stand for."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from authsvc.records import Workspace
from authsvc.user_records import Invite, Membership, Session, User
from naru.identity import Role

_MICROS = 1_000_000


def micros(seconds: float) -> int:
    """Microseconds, as times are kept."""
    return round(seconds * _MICROS)


def seconds(value: int) -> float:
    """Seconds, from what is kept."""
    return value / _MICROS


def from_user(user: User) -> dict[str, Any]:
    """The columns of a user, without the password's."""
    return {
        "user_id": user.user_id,
        "email": user.email,
        "name": user.name,
        "role": user.role.value,
        "tier": user.tier or None,
        "default_workspace_id": user.default_workspace_id or None,
        "blocked": user.blocked,
        "create_time": micros(user.create_time),
    }


def from_membership(seat: Membership) -> dict[str, Any]:
    """The columns of a membership."""
    return {
        "workspace_id": seat.workspace_id,
        "user_id": seat.user_id,
        "role": seat.role.value,
        "create_time": micros(seat.create_time),
    }


def to_user(row: sa.Row[Any]) -> User:
    """The user."""
    return User(
        user_id=row.user_id,
        email=row.email,
        create_time=seconds(row.create_time),
        name=row.name,
        role=Role(row.role),
        tier=row.tier or "",
        default_workspace_id=row.default_workspace_id or "",
        blocked=row.blocked,
    )


def to_session(row: sa.Row[Any]) -> Session:
    """The session."""
    return Session(
        session_id=row.session_id,
        user_id=row.user_id,
        client_address=row.client_address,
        create_time=seconds(row.create_time),
        expire_time=seconds(row.expire_time),
        revoke_time=None if row.revoke_time is None else seconds(row.revoke_time),
    )


def to_workspace(row: sa.Row[Any]) -> Workspace:
    """The workspace."""
    return Workspace(row.workspace_id, row.name, row.tier, seconds(row.create_time))


def to_seat(row: sa.Row[Any]) -> Membership:
    """The membership, as it is kept: without names."""
    return Membership(row.workspace_id, row.user_id, Role(row.role), seconds(row.create_time))


def to_membership(row: sa.Row[Any]) -> Membership:
    """The membership, with the name and the address that were read beside it."""
    return Membership(
        row.workspace_id, row.user_id, Role(row.role), seconds(row.create_time), row.workspace_name, row.email
    )


def to_invite(row: sa.Row[Any]) -> Invite:
    """The invite."""
    return Invite(
        invite_id=row.invite_id,
        workspace_id=row.workspace_id,
        role=Role(row.role),
        create_time=seconds(row.create_time),
        expire_time=seconds(row.expire_time),
        email=row.email or "",
        use_time=None if row.use_time is None else seconds(row.use_time),
        revoke_time=None if row.revoke_time is None else seconds(row.revoke_time),
    )
