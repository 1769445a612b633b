"""Listing and revoking invites."""

from __future__ import annotations

from dataclasses import replace

from authsvc import emails
from authsvc.checks import NAME_CHARACTERS_MAX, check_id, check_request_id, check_text
from authsvc.invites_store import InviteFilters, InviteStore
from authsvc.pages import Page, PageRequest
from authsvc.people_audit import PeopleAudit
from authsvc.user_records import Invite
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Principal, Role


class InviteManager:
    """Decides who may see and end which invites, and does it. An invite to somebody else's workspace is as one there is not.

    Args:
        audit: Makes the audit's entries.
    """

    def __init__(self, *, store: InviteStore, audit: PeopleAudit, clock: Clock) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock

    async def list_page(
        self, caller: Principal, filters: InviteFilters, *, page_size: int, page_token: str
    ) -> Page[Invite]:
        """One page of the invites that fit, newest first; a workspace's admin sees those to it.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for somebody else's workspace.
        """
        check_text("workspace_id", filters.workspace_id, NAME_CHARACTERS_MAX)
        filters = replace(filters, email=emails.normalise(filters.email) if filters.email else "")
        if caller.role is not Role.ADMIN:
            filters = replace(filters, workspace_id=filters.workspace_id or caller.workspace_id)
            if filters.workspace_id != caller.workspace_id:
                raise NaruError(
                    Reason.PERMISSION_DENIED,
                    "You may not see the invites to this workspace.",
                    metadata={"method": "/naru.api.auth.v1.UserService/ListInvites"},
                )
        asked = ("invites", filters.workspace_id, filters.email, str(filters.show_ended))
        request = PageRequest(page_size, page_token, asked)
        found = await self._store.list_invites(
            filters, after=request.after, limit=request.limit, now=self._clock.time()
        )
        return request.page(found, lambda invite: invite.invite_id)

    async def revoke(self, caller: Principal, invite_id: str, request_id: str) -> Invite:
        """Ends an invite. Raises NaruError INVALID_ARGUMENT, NOT_FOUND, and FAILED_PRECONDITION when it was used."""
        check_request_id(request_id)
        check_id("invite_id", invite_id)
        workspace_id = "" if caller.role is Role.ADMIN else caller.workspace_id
        return await self._store.revoke(invite_id, workspace_id, self._clock.time(), self._audit.invite_revoked)
