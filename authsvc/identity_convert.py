"""Between the messages of people, sessions and workspaces and authsvc's own types."""

from __future__ import annotations

import base64

from authsvc.invites_store import InviteFilters
from authsvc.records import Workspace
from authsvc.sessions import GivenTokens
from authsvc.tokens import SigningKey
from authsvc.user_records import Invite, Membership, User
from naru.api.auth.v1 import session_service_pb2, user_pb2, user_service_pb2, workspace_service_pb2
from naru.api.common.v1 import principal_pb2
from naru.convert import role_from_proto, role_to_proto, timestamp_to_proto
from naru.errors import invalid_argument
from naru.identity import Role


def tokens_to_proto(given: GivenTokens) -> session_service_pb2.SessionTokens:
    """The tokens on the wire."""
    return session_service_pb2.SessionTokens(
        access_token=given.access_token,
        token_type="Bearer",  # noqa: S106 -- the kind of token, not one
        expires_in=given.expires_in,
        refresh_token=given.refresh_token,
        refresh_expires_in=given.refresh_expires_in,
    )


def signing_key_to_proto(key: SigningKey) -> session_service_pb2.SigningKey:
    """The public half on the wire."""
    x = base64.urlsafe_b64encode(key.public.public_bytes_raw()).rstrip(b"=").decode()
    return session_service_pb2.SigningKey(kid=key.kid, x=x, create_time=timestamp_to_proto(key.create_time))


def user_to_proto(user: User) -> user_pb2.User:
    """The user on the wire."""
    return user_pb2.User(
        user_id=user.user_id,
        email=user.email,
        name=user.name,
        role=role_to_proto(user.role),
        tier=user.tier,
        default_workspace_id=user.default_workspace_id,
        blocked=user.blocked,
        create_time=timestamp_to_proto(user.create_time),
    )


def user_from_proto(message: user_pb2.User) -> User:
    """The user, made at no time. Raises NaruError INVALID_ARGUMENT for a role that does not exist."""
    return User(
        user_id=message.user_id,
        email=message.email,
        create_time=0.0,
        name=message.name,
        role=_role(message.role),
        tier=message.tier,
        default_workspace_id=message.default_workspace_id,
        blocked=message.blocked,
    )


def membership_to_proto(member: Membership) -> user_pb2.Membership:
    """The membership on the wire."""
    return user_pb2.Membership(
        workspace_id=member.workspace_id,
        workspace_name=member.workspace_name,
        user_id=member.user_id,
        email=member.email,
        role=role_to_proto(member.role),
        create_time=timestamp_to_proto(member.create_time),
    )


def membership_from_proto(message: user_pb2.Membership) -> Membership:
    """The membership, made at no time. Raises NaruError INVALID_ARGUMENT for a role that does not exist."""
    return Membership(message.workspace_id, message.user_id, _role(message.role), 0.0)


def invite_to_proto(invite: Invite) -> user_pb2.Invite:
    """The invite on the wire."""
    use_time, revoke_time = invite.use_time, invite.revoke_time
    return user_pb2.Invite(
        invite_id=invite.invite_id,
        email=invite.email,
        workspace_id=invite.workspace_id,
        role=role_to_proto(invite.role),
        create_time=timestamp_to_proto(invite.create_time),
        expire_time=timestamp_to_proto(invite.expire_time),
        use_time=None if use_time is None else timestamp_to_proto(use_time),
        revoke_time=None if revoke_time is None else timestamp_to_proto(revoke_time),
    )


def invite_from_proto(message: user_pb2.Invite) -> Invite:
    """The invite, without an id and times. Raises NaruError INVALID_ARGUMENT for a role that does not exist."""
    return Invite("", message.workspace_id, _role(message.role), 0.0, 0.0, message.email)


def invite_filters_from_proto(request: user_service_pb2.ListInvitesRequest) -> InviteFilters:
    """Which invites a list has."""
    return InviteFilters(request.workspace_id, request.email, request.show_ended)


def workspace_to_proto(workspace: Workspace) -> workspace_service_pb2.Workspace:
    """The workspace on the wire."""
    return workspace_service_pb2.Workspace(
        workspace_id=workspace.workspace_id,
        name=workspace.name,
        tier=workspace.tier,
        create_time=timestamp_to_proto(workspace.create_time),
    )


def _role(value: principal_pb2.Role.ValueType) -> Role:
    if value not in principal_pb2.Role.values():
        raise invalid_argument("role", f"There is no role with the number {value}.")
    return role_from_proto(value)
