"""The rows of /api/auth, /api/users, /api/workspaces and /api/invites."""

from __future__ import annotations

from edge.routes.platform import Row

_PAGE = {"page_size": "page_size", "page_token": "page_token"}
LOGIN = "/api/auth/login"
IDENTITY_ROWS = (
    Row(
        "POST",
        "/api/auth/register",
        "SessionService/Register",
        "Make an account and log in.",
        body="registration",
        answer="tokens",
        open=True,
    ),
    Row("POST", LOGIN, "SessionService/Login", "Log in.", body="login", answer="tokens", open=True),
    Row(
        "POST",
        "/api/auth/refresh",
        "SessionService/Refresh",
        "Change a refresh token for new tokens.",
        body="renewal",
        answer="tokens",
        open=True,
    ),
    Row("POST", "/api/auth/logout", "SessionService/Logout", "Log out, here or everywhere.", body="end", open=True),
    Row("GET", "/api/auth/me", "SessionService/WhoAmI", "Show who you are."),
    Row(
        "POST",
        "/api/auth/password",
        "SessionService/ChangePassword",
        "Change your password; it logs you out everywhere.",
        body="change",
    ),
    Row(
        "GET",
        "/api/users",
        "UserService/ListUsers",
        "List the users that you may see, by address.",
        query=_PAGE | {"workspace_id": "workspace_id", "email": "email"},
    ),
    Row("POST", "/api/users", "UserService/CreateUser", "Make a user; the password is shown once.", body="user"),
    Row("GET", "/api/users/{user_id}", "UserService/GetUser", "Show a user.", answer="user"),
    Row("PUT", "/api/users/{user_id}", "UserService/UpdateUser", "Replace what a user is.", body="user", answer="user"),
    Row("DELETE", "/api/users/{user_id}", "UserService/DeleteUser", "Delete a user, for good."),
    Row(
        "POST",
        "/api/users/{user_id}/password",
        "UserService/ResetPassword",
        "Give a user another password; it logs them out everywhere.",
        body="reset",
    ),
    Row(
        "DELETE",
        "/api/users/{user_id}/sessions",
        "UserService/RevokeSessions",
        "Log a user, or yourself, out everywhere.",
    ),
    Row(
        "GET",
        "/api/invites",
        "UserService/ListInvites",
        "List the invites that you manage, newest first.",
        query=_PAGE | {name: name for name in ("workspace_id", "email", "show_ended")},
    ),
    Row(
        "DELETE",
        "/api/invites/{invite_id}",
        "UserService/RevokeInvite",
        "Revoke an invite; its code lets nobody in any more.",
        answer="invite",
    ),
    Row(
        "POST",
        "/api/invites",
        "UserService/CreateInvite",
        "Make a code that lets one person register; it is shown once.",
        body="invite",
    ),
    Row(
        "GET",
        "/api/workspaces",
        "WorkspaceService/ListWorkspaces",
        "List the workspaces that you belong to, by name.",
        query=_PAGE,
    ),
    Row(
        "POST",
        "/api/workspaces",
        "WorkspaceService/CreateWorkspace",
        "Make a workspace.",
        body="workspace",
        answer="workspace",
    ),
    Row(
        "GET",
        "/api/workspaces/{workspace_id}",
        "WorkspaceService/GetWorkspace",
        "Show a workspace.",
        answer="workspace",
    ),
    Row(
        "PUT",
        "/api/workspaces/{workspace_id}",
        "WorkspaceService/UpdateWorkspace",
        "Replace a workspace's name and tier.",
        body="workspace",
        answer="workspace",
    ),
    Row(
        "DELETE",
        "/api/workspaces/{workspace_id}",
        "WorkspaceService/DeleteWorkspace",
        "Delete a workspace that has no members, for good.",
    ),
    Row(
        "GET",
        "/api/workspaces/{workspace_id}/members",
        "WorkspaceService/ListMembers",
        "List the members of a workspace, by address.",
        query=_PAGE,
    ),
    Row(
        "PUT",
        "/api/workspaces/{workspace_id}/members/{user_id}",
        "WorkspaceService/SetMember",
        "Make a user a member, or change what they are.",
        body="member",
        answer="member",
    ),
    Row(
        "DELETE",
        "/api/workspaces/{workspace_id}/members/{user_id}",
        "WorkspaceService/RemoveMember",
        "End a membership.",
    ),
)
"""What authsvc answers."""
