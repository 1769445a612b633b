"""Making and changing workspaces, and who belongs to them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from authsvc.checks import NAME_CHARACTERS_MAX, check_id, check_request_id, check_text
from authsvc.invalidations import InvalidationFeed
from authsvc.key_rights import check_whole
from authsvc.pages import Page, PageRequest
from authsvc.people_audit import PeopleAudit
from authsvc.records import DEFAULT_TIER, Workspace
from authsvc.user_management import check_seat_role
from authsvc.user_records import Membership
from authsvc.workspaces_store import WorkspaceStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.identity import Principal, Role

_SERVICE = "/naru.api.auth.v1.WorkspaceService"


class WorkspaceManager:
    """Decides who may make, see and change which workspaces, and does it.

    Args:
        audit: Makes the audit's entries.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        store: WorkspaceStore,
        audit: PeopleAudit,
        feed: InvalidationFeed,
        clock: Clock,
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._audit = audit
        self._feed = feed
        self._clock = clock
        self._new_id = new_id

    async def create(self, caller: Principal, *, name: str, tier: str, request_id: str) -> Workspace:
        """Makes a workspace; a user who makes one becomes its admin.

        Raises:
            NaruError: INVALID_ARGUMENT; ALREADY_EXISTS when the name is taken.
        """
        check_request_id(request_id)
        _check_workspace(name, tier)
        workspace = Workspace(self._new_id(), name, tier or DEFAULT_TIER, self._clock.time())
        await self._store.insert_workspace(workspace, self._audit.workspace_created(workspace))
        if caller.user_id and not caller.key_id:
            maker = Membership(workspace.workspace_id, caller.user_id, Role.WORKSPACE_ADMIN, workspace.create_time)
            self._feed.announce(await self._store.set_member(maker, self._audit.member))
        return workspace

    async def get(self, caller: Principal, workspace_id: str) -> Workspace:
        """A workspace. Raises NaruError NOT_FOUND, also for one that the caller does not belong to."""
        check_id("workspace_id", workspace_id)
        found = await self._visible(caller, workspace_id=workspace_id, after="", limit=1)
        if not found:
            raise not_found("workspace", workspace_id)
        return found[0]

    async def list_page(self, caller: Principal, *, page_size: int, page_token: str) -> Page[Workspace]:
        """One page of the workspaces that the caller belongs to, or of all, by name. Raises NaruError INVALID_ARGUMENT."""
        request = PageRequest(page_size, page_token, ("workspaces",))
        found = await self._visible(caller, workspace_id="", after=request.after, limit=request.limit)
        return request.page(found, lambda workspace: workspace.name)

    async def update(self, *, workspace_id: str, name: str, tier: str, request_id: str) -> Workspace:
        """Replaces a workspace's name and tier.

        Raises:
            NaruError: INVALID_ARGUMENT; NOT_FOUND; ALREADY_EXISTS when the name is taken.
        """
        check_request_id(request_id)
        check_id("workspace_id", workspace_id)
        _check_workspace(name, tier)
        workspace, sequence = await self._store.update_workspace(
            workspace_id,
            name=name,
            tier=tier or DEFAULT_TIER,
            now=self._clock.time(),
            tell=self._audit.workspace_updated,
        )
        self._announce(sequence)
        return workspace

    async def list_members(
        self, caller: Principal, workspace_id: str, *, page_size: int, page_token: str
    ) -> Page[Membership]:
        """One page of a workspace's members, by address.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for a workspace that the caller does not manage; NOT_FOUND.
        """
        _check_manages(caller, workspace_id, "ListMembers")
        request = PageRequest(page_size, page_token, ("members", workspace_id))
        found = await self._store.list_members(workspace_id, after=request.after, limit=request.limit)
        if not found:
            await self.get(caller, workspace_id)
        return request.page(found, lambda member: member.email)

    async def set_member(self, caller: Principal, wish: Membership, request_id: str) -> Membership:
        """Makes a user a member, or changes what they are. A workspace's admin can change members; others are invited.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for a workspace that the caller does not manage, and for a narrowed
                key; NOT_FOUND.
        """
        check_request_id(request_id)
        check_id("user_id", wish.user_id)
        check_seat_role(wish.role)
        _check_manages(caller, wish.workspace_id, "SetMember")
        check_whole(caller, f"{_SERVICE}/SetMember")
        wish = replace(wish, create_time=self._clock.time())
        may_add = caller.role is Role.ADMIN
        self._announce(await self._store.set_member(wish, self._audit.member, may_add=may_add))
        member = await self._store.get_member(wish.workspace_id, wish.user_id)
        if member is None:
            raise not_found("user", wish.user_id)
        return member

    async def remove_member(self, caller: Principal, workspace_id: str, user_id: str, request_id: str) -> None:
        """Ends a membership.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for a workspace that the caller does not manage; NOT_FOUND.
        """
        check_request_id(request_id)
        check_id("user_id", user_id)
        _check_manages(caller, workspace_id, "RemoveMember")
        sequence = await self._store.remove_member(workspace_id, user_id, self._clock.time(), self._audit.member)
        if sequence is None:
            raise not_found("member", user_id)
        self._announce(sequence)

    async def _visible(self, caller: Principal, *, workspace_id: str, after: str, limit: int) -> list[Workspace]:
        if caller.role is Role.ADMIN:
            user_id = ""
        elif caller.user_id and not caller.key_id:
            user_id = caller.user_id
        elif workspace_id in ("", caller.workspace_id):
            # A key belongs to one workspace.
            user_id, workspace_id = "", caller.workspace_id
        else:
            return []
        return await self._store.list_workspaces(user_id=user_id, workspace_id=workspace_id, after=after, limit=limit)

    def _announce(self, sequence: int | None) -> None:
        if sequence is not None:
            self._feed.announce(sequence)


def _check_workspace(name: str, tier: str) -> None:
    if not name:
        raise invalid_argument("name", "name is needed.")
    check_text("name", name, NAME_CHARACTERS_MAX)
    check_text("tier", tier, NAME_CHARACTERS_MAX)


def _check_manages(caller: Principal, workspace_id: str, rpc: str) -> None:
    check_id("workspace_id", workspace_id)
    if caller.role is not Role.ADMIN and workspace_id != caller.workspace_id:
        raise NaruError(
            Reason.PERMISSION_DENIED,
            "You may not manage this workspace.",
            metadata={"method": f"{_SERVICE}/{rpc}"},
        )
