"""What the audit says of users, workspaces, memberships, invites and sessions: no password, code or token, and no hash of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from authsvc.audit import REVOKE_KEY, AuditEntry, Auditor, Facts, key_entry, workspace_facts
from authsvc.records import ApiKey, Workspace
from authsvc.user_records import Invite, Membership, Session, User

RESET_PASSWORD, CHANGE_PASSWORD, REVOKE_SESSIONS = (
    f"user.{verb}" for verb in ("reset_password", "change_password", "revoke_sessions")
)
"""Actions that end all of a user's sessions."""

TellUser = Callable[[User, User], AuditEntry]
"""The entry about a user before and after."""
TellEnded = Callable[[int], AuditEntry]
"""The entry about a user so many of whose sessions were ended."""
TellWorkspace = Callable[[Workspace, Workspace], AuditEntry]
"""The entry about a workspace before and after."""
TellInvite = Callable[[Invite, Invite], AuditEntry]
"""The entry about an invite before and after."""
TellMember = Callable[[Membership | None, Membership | None], AuditEntry]
"""The entry about a membership before and after; None: there was or is none. Never both."""


class PeopleAudit:
    """Makes the audit's entries about people and where they belong.

    Whoever has no access token yet acts as the edge; where they proved who they are, `actor` names them, and `client_address` is
    where the edge says they are, empty where it does not say.
    """

    def __init__(self, auditor: Auditor) -> None:
        self._auditor = auditor

    def user_created(
        self, user: User, seat: Membership, *, invite_id: str = "", actor: str = "", client_address: str | None = None
    ) -> tuple[AuditEntry, AuditEntry]:
        """A user who came, by an invite perhaps, and where they came to, which that workspace's administrators see."""
        invited = {"invite_id": invite_id} if invite_id else {}
        entry = self._auditor.entry(
            "user.create", user.user_id, after=asdict(user) | invited, actor=actor, client_address=client_address
        )
        return entry, self.member(None, seat, actor=actor, client_address=client_address)

    def user_updated(self, before: User, after: User) -> AuditEntry:
        """A user who is something else now."""
        return self._auditor.entry("user.update", after.user_id, before=asdict(before), after=asdict(after))

    def sessions_ended(
        self, action: str, user_id: str, *, actor: str = "", client_address: str | None = None
    ) -> TellEnded:
        """What ended all sessions of a user. Of a password the entry shows that it changed, and no more."""

        def tell(ended: int) -> AuditEntry:
            return self._auditor.entry(
                action,
                user_id,
                before={"sessions": ended},
                after={"sessions": 0},
                actor=actor,
                client_address=client_address,
            )

        return tell

    def family_revoked(self, session: Session, time: float, client_address: str) -> AuditEntry:
        """A session that the reuse of a refresh token ends. By the edge: whose the token is cannot be told any more."""
        return self._auditor.entry(
            "session.revoke_family",
            session.session_id,
            before=asdict(session),
            after=asdict(replace(session, revoke_time=time)),
            client_address=client_address,
        )

    def invite_created(self, invite: Invite) -> AuditEntry:
        """An invite, without its code."""
        return self._auditor.entry(
            "invite.create", invite.invite_id, workspace_id=invite.workspace_id, after=asdict(invite)
        )

    def invite_revoked(self, before: Invite, after: Invite) -> AuditEntry:
        """An invite whose code lets nobody in any more."""
        return self._auditor.entry(
            "invite.revoke",
            after.invite_id,
            workspace_id=after.workspace_id,
            before=asdict(before),
            after=asdict(after),
        )

    def user_deleted(self, user: User, sessions: int) -> AuditEntry:
        """A user who is gone, and how many of their sessions that ended. Their memberships and keys have entries of their own."""
        return self._auditor.entry("user.delete", user.user_id, before=asdict(user) | {"sessions": sessions})

    def key_revoked(self, before: ApiKey, after: ApiKey) -> AuditEntry:
        """A key that ended with what it belonged to."""
        return key_entry(self._auditor, REVOKE_KEY, before, after)

    def workspace_deleted(self, workspace: Workspace) -> AuditEntry:
        """A workspace that is gone. Its keys and invites have entries of their own."""
        workspace_id = workspace.workspace_id
        return self._auditor.entry(
            "workspace.delete", workspace_id, workspace_id=workspace_id, before=workspace_facts(workspace)
        )

    def workspace_created(self, workspace: Workspace) -> AuditEntry:
        """A new workspace."""
        workspace_id = workspace.workspace_id
        return self._auditor.entry(
            "workspace.create", workspace_id, workspace_id=workspace_id, after=workspace_facts(workspace)
        )

    def workspace_updated(self, before: Workspace, after: Workspace) -> AuditEntry:
        """A workspace that is something else now."""
        return self._auditor.entry(
            "workspace.update",
            after.workspace_id,
            workspace_id=after.workspace_id,
            before=workspace_facts(before),
            after=workspace_facts(after),
        )

    def member(
        self,
        before: Membership | None,
        after: Membership | None,
        *,
        actor: str = "",
        client_address: str | None = None,
    ) -> AuditEntry:
        """A membership, by its user: set, or removed where it is None after. Raises ValueError when it never was."""
        member = after or before
        if member is None:
            raise ValueError("a membership that never was has no entry")
        return self._auditor.entry(
            "member.remove" if after is None else "member.set",
            member.user_id,
            workspace_id=member.workspace_id,
            before=_member_facts(before),
            after=_member_facts(after),
            actor=actor,
            client_address=client_address,
        )


def user_actor(user_id: str) -> str:
    """The actor who is this user."""
    return f"user:{user_id}"


def _member_facts(member: Membership | None) -> Facts | None:
    if member is None:
        return None
    facts = asdict(member)
    # Read beside it where it is shown; they are the workspace's and the user's.
    del facts["workspace_name"], facts["email"]
    return facts
