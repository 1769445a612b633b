"""SessionService, UserService and WorkspaceService over gRPC."""

from __future__ import annotations

import grpc

from authsvc import identity_convert as convert
from authsvc.caller import current_principal
from authsvc.deletions import Deletions
from authsvc.invite_management import InviteManager
from authsvc.sessions import SessionManager
from authsvc.signing import PUBLISHED_SECONDS, KeyRing
from authsvc.user_management import UserManager
from authsvc.users_store import UserStore
from authsvc.workspace_management import WorkspaceManager
from naru.api.auth.v1 import (
    session_service_pb2,
    session_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)
from naru.context import current
from naru.convert import duration_to_proto, principal_to_proto


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Logs people in and out.

    Args:
        manager: Decides and does it.
        users: Knows who the caller is.
        ring: Knows the signing keys.
    """

    def __init__(self, manager: SessionManager, users: UserStore, ring: KeyRing) -> None:
        self._manager = manager
        self._users = users
        self._ring = ring

    async def Register(
        self,
        request: session_service_pb2.RegisterRequest,
        context: grpc.aio.ServicerContext[session_service_pb2.RegisterRequest, session_service_pb2.RegisterResponse],
    ) -> session_service_pb2.RegisterResponse:
        wish = request.registration
        given = await self._manager.register(
            email=wish.email,
            password=wish.password,
            name=wish.name,
            invite_code=wish.invite_code,
            client_address=request.client_address,
        )
        return session_service_pb2.RegisterResponse(tokens=convert.tokens_to_proto(given))

    async def Login(
        self,
        request: session_service_pb2.LoginRequest,
        context: grpc.aio.ServicerContext[session_service_pb2.LoginRequest, session_service_pb2.LoginResponse],
    ) -> session_service_pb2.LoginResponse:
        given = await self._manager.login(
            email=request.login.email, password=request.login.password, client_address=request.client_address
        )
        return session_service_pb2.LoginResponse(tokens=convert.tokens_to_proto(given))

    async def Refresh(
        self,
        request: session_service_pb2.RefreshRequest,
        context: grpc.aio.ServicerContext[session_service_pb2.RefreshRequest, session_service_pb2.RefreshResponse],
    ) -> session_service_pb2.RefreshResponse:
        given = await self._manager.refresh(request.renewal.refresh_token, request.client_address)
        return session_service_pb2.RefreshResponse(tokens=convert.tokens_to_proto(given))

    async def Logout(
        self,
        request: session_service_pb2.LogoutRequest,
        context: grpc.aio.ServicerContext[session_service_pb2.LogoutRequest, session_service_pb2.LogoutResponse],
    ) -> session_service_pb2.LogoutResponse:
        await self._manager.logout(
            request.end.refresh_token, everywhere=request.end.everywhere, client_address=request.client_address
        )
        return session_service_pb2.LogoutResponse()

    async def WhoAmI(
        self,
        request: session_service_pb2.WhoAmIRequest,
        context: grpc.aio.ServicerContext[session_service_pb2.WhoAmIRequest, session_service_pb2.WhoAmIResponse],
    ) -> session_service_pb2.WhoAmIResponse:
        caller = current_principal()
        user = await self._users.get_user(caller.user_id) if caller.user_id else None
        seats = [] if user is None else await self._users.memberships_of(user.user_id)
        return session_service_pb2.WhoAmIResponse(
            principal=principal_to_proto(caller),
            user=None if user is None else convert.user_to_proto(user),
            memberships=map(convert.membership_to_proto, seats),
        )

    async def ChangePassword(
        self,
        request: session_service_pb2.ChangePasswordRequest,
        context: grpc.aio.ServicerContext[
            session_service_pb2.ChangePasswordRequest, session_service_pb2.ChangePasswordResponse
        ],
    ) -> session_service_pb2.ChangePasswordResponse:
        change = request.change
        await self._manager.change_password(
            current_principal(), change.current_password, change.new_password, current().client_address
        )
        return session_service_pb2.ChangePasswordResponse()

    async def GetSigningKeys(
        self,
        request: session_service_pb2.GetSigningKeysRequest,
        context: grpc.aio.ServicerContext[
            session_service_pb2.GetSigningKeysRequest, session_service_pb2.GetSigningKeysResponse
        ],
    ) -> session_service_pb2.GetSigningKeysResponse:
        return session_service_pb2.GetSigningKeysResponse(
            keys=map(convert.signing_key_to_proto, self._ring.published), max_age=duration_to_proto(PUBLISHED_SECONDS)
        )


class UserServicer(user_service_pb2_grpc.UserServiceServicer):
    """Manages people.

    Args:
        manager: Decides and does it.
        invites: Lists and revokes invites.
        deletions: Deletes users.
    """

    def __init__(self, manager: UserManager, invites: InviteManager, deletions: Deletions) -> None:
        self._manager = manager
        self._invites = invites
        self._deletions = deletions

    async def CreateUser(
        self,
        request: user_service_pb2.CreateUserRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.CreateUserRequest, user_service_pb2.CreateUserResponse],
    ) -> user_service_pb2.CreateUserResponse:
        made = await self._manager.create(
            current_principal(), convert.user_from_proto(request.user), request.password, request.request_id
        )
        return user_service_pb2.CreateUserResponse(user=convert.user_to_proto(made.user), password=made.password)

    async def GetUser(
        self,
        request: user_service_pb2.GetUserRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.GetUserRequest, user_service_pb2.GetUserResponse],
    ) -> user_service_pb2.GetUserResponse:
        user = await self._manager.get(current_principal(), request.user_id)
        return user_service_pb2.GetUserResponse(user=convert.user_to_proto(user))

    async def ListUsers(
        self,
        request: user_service_pb2.ListUsersRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.ListUsersRequest, user_service_pb2.ListUsersResponse],
    ) -> user_service_pb2.ListUsersResponse:
        page = await self._manager.list_page(
            current_principal(),
            page_size=request.page_size,
            page_token=request.page_token,
            workspace_id=request.workspace_id,
            email=request.email,
        )
        return user_service_pb2.ListUsersResponse(
            users=map(convert.user_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def UpdateUser(
        self,
        request: user_service_pb2.UpdateUserRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.UpdateUserRequest, user_service_pb2.UpdateUserResponse],
    ) -> user_service_pb2.UpdateUserResponse:
        user = await self._manager.update(
            current_principal(), convert.user_from_proto(request.user), request.request_id
        )
        return user_service_pb2.UpdateUserResponse(user=convert.user_to_proto(user))

    async def ResetPassword(
        self,
        request: user_service_pb2.ResetPasswordRequest,
        context: grpc.aio.ServicerContext[
            user_service_pb2.ResetPasswordRequest, user_service_pb2.ResetPasswordResponse
        ],
    ) -> user_service_pb2.ResetPasswordResponse:
        password = await self._manager.reset_password(
            current_principal(), request.user_id, request.reset.password, request.request_id
        )
        return user_service_pb2.ResetPasswordResponse(password=password)

    async def RevokeSessions(
        self,
        request: user_service_pb2.RevokeSessionsRequest,
        context: grpc.aio.ServicerContext[
            user_service_pb2.RevokeSessionsRequest, user_service_pb2.RevokeSessionsResponse
        ],
    ) -> user_service_pb2.RevokeSessionsResponse:
        ended = await self._manager.revoke_sessions(current_principal(), request.user_id, request.request_id)
        return user_service_pb2.RevokeSessionsResponse(sessions=ended)

    async def CreateInvite(
        self,
        request: user_service_pb2.CreateInviteRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.CreateInviteRequest, user_service_pb2.CreateInviteResponse],
    ) -> user_service_pb2.CreateInviteResponse:
        invite, code = await self._manager.invite(
            current_principal(), convert.invite_from_proto(request.invite), request.request_id
        )
        return user_service_pb2.CreateInviteResponse(invite=convert.invite_to_proto(invite), code=code)

    async def ListInvites(
        self,
        request: user_service_pb2.ListInvitesRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.ListInvitesRequest, user_service_pb2.ListInvitesResponse],
    ) -> user_service_pb2.ListInvitesResponse:
        filters = convert.invite_filters_from_proto(request)
        page = await self._invites.list_page(
            current_principal(), filters, page_size=request.page_size, page_token=request.page_token
        )
        return user_service_pb2.ListInvitesResponse(
            invites=map(convert.invite_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def RevokeInvite(
        self,
        request: user_service_pb2.RevokeInviteRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.RevokeInviteRequest, user_service_pb2.RevokeInviteResponse],
    ) -> user_service_pb2.RevokeInviteResponse:
        invite = await self._invites.revoke(current_principal(), request.invite_id, request.request_id)
        return user_service_pb2.RevokeInviteResponse(invite=convert.invite_to_proto(invite))

    async def DeleteUser(
        self,
        request: user_service_pb2.DeleteUserRequest,
        context: grpc.aio.ServicerContext[user_service_pb2.DeleteUserRequest, user_service_pb2.DeleteUserResponse],
    ) -> user_service_pb2.DeleteUserResponse:
        await self._deletions.delete_user(current_principal(), request.user_id, request.request_id)
        return user_service_pb2.DeleteUserResponse()

    async def BootstrapAdmin(
        self,
        request: user_service_pb2.BootstrapAdminRequest,
        context: grpc.aio.ServicerContext[
            user_service_pb2.BootstrapAdminRequest, user_service_pb2.BootstrapAdminResponse
        ],
    ) -> user_service_pb2.BootstrapAdminResponse:
        made = await self._manager.bootstrap(request.email)
        return user_service_pb2.BootstrapAdminResponse(user=convert.user_to_proto(made.user), password=made.password)


class WorkspaceServicer(workspace_service_pb2_grpc.WorkspaceServiceServicer):
    """Manages workspaces and who belongs to them.

    Args:
        manager: Decides and does it.
        deletions: Deletes workspaces.
    """

    def __init__(self, manager: WorkspaceManager, deletions: Deletions) -> None:
        self._manager = manager
        self._deletions = deletions

    async def CreateWorkspace(
        self,
        request: workspace_service_pb2.CreateWorkspaceRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.CreateWorkspaceRequest, workspace_service_pb2.CreateWorkspaceResponse
        ],
    ) -> workspace_service_pb2.CreateWorkspaceResponse:
        wish = request.workspace
        workspace = await self._manager.create(
            current_principal(), name=wish.name, tier=wish.tier, request_id=request.request_id
        )
        return workspace_service_pb2.CreateWorkspaceResponse(workspace=convert.workspace_to_proto(workspace))

    async def GetWorkspace(
        self,
        request: workspace_service_pb2.GetWorkspaceRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.GetWorkspaceRequest, workspace_service_pb2.GetWorkspaceResponse
        ],
    ) -> workspace_service_pb2.GetWorkspaceResponse:
        workspace = await self._manager.get(current_principal(), request.workspace_id)
        return workspace_service_pb2.GetWorkspaceResponse(workspace=convert.workspace_to_proto(workspace))

    async def ListWorkspaces(
        self,
        request: workspace_service_pb2.ListWorkspacesRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.ListWorkspacesRequest, workspace_service_pb2.ListWorkspacesResponse
        ],
    ) -> workspace_service_pb2.ListWorkspacesResponse:
        page = await self._manager.list_page(
            current_principal(), page_size=request.page_size, page_token=request.page_token
        )
        return workspace_service_pb2.ListWorkspacesResponse(
            workspaces=map(convert.workspace_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def UpdateWorkspace(
        self,
        request: workspace_service_pb2.UpdateWorkspaceRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.UpdateWorkspaceRequest, workspace_service_pb2.UpdateWorkspaceResponse
        ],
    ) -> workspace_service_pb2.UpdateWorkspaceResponse:
        wish = request.workspace
        workspace = await self._manager.update(
            workspace_id=wish.workspace_id, name=wish.name, tier=wish.tier, request_id=request.request_id
        )
        return workspace_service_pb2.UpdateWorkspaceResponse(workspace=convert.workspace_to_proto(workspace))

    async def DeleteWorkspace(
        self,
        request: workspace_service_pb2.DeleteWorkspaceRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.DeleteWorkspaceRequest, workspace_service_pb2.DeleteWorkspaceResponse
        ],
    ) -> workspace_service_pb2.DeleteWorkspaceResponse:
        await self._deletions.delete_workspace(request.workspace_id, request.request_id)
        return workspace_service_pb2.DeleteWorkspaceResponse()

    async def ListMembers(
        self,
        request: workspace_service_pb2.ListMembersRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.ListMembersRequest, workspace_service_pb2.ListMembersResponse
        ],
    ) -> workspace_service_pb2.ListMembersResponse:
        page = await self._manager.list_members(
            current_principal(), request.workspace_id, page_size=request.page_size, page_token=request.page_token
        )
        return workspace_service_pb2.ListMembersResponse(
            members=map(convert.membership_to_proto, page.items), next_page_token=page.next_page_token
        )

    async def SetMember(
        self,
        request: workspace_service_pb2.SetMemberRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.SetMemberRequest, workspace_service_pb2.SetMemberResponse
        ],
    ) -> workspace_service_pb2.SetMemberResponse:
        member = await self._manager.set_member(
            current_principal(), convert.membership_from_proto(request.member), request.request_id
        )
        return workspace_service_pb2.SetMemberResponse(member=convert.membership_to_proto(member))

    async def RemoveMember(
        self,
        request: workspace_service_pb2.RemoveMemberRequest,
        context: grpc.aio.ServicerContext[
            workspace_service_pb2.RemoveMemberRequest, workspace_service_pb2.RemoveMemberResponse
        ],
    ) -> workspace_service_pb2.RemoveMemberResponse:
        await self._manager.remove_member(
            current_principal(), request.workspace_id, request.user_id, request.request_id
        )
        return workspace_service_pb2.RemoveMemberResponse()
