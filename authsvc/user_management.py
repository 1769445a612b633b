"""Making, listing and changing users, inviting others, and the first administrator of an installation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from authsvc import emails, invites
from authsvc.checks import NAME_CHARACTERS_MAX, check_id, check_request_id, check_text
from authsvc.invalidations import InvalidationFeed
from authsvc.key_rights import check_whole, is_logged_in
from authsvc.keys import Peppers
from authsvc.management import BOOTSTRAP_TIER
from authsvc.pages import Page, PageRequest
from authsvc.passwords import Passwords, check_new, make_password
from authsvc.people_audit import RESET_PASSWORD, PeopleAudit
from authsvc.sessions import SessionManager
from authsvc.store import KeyStore
from authsvc.user_records import Invite, Membership, User
from authsvc.users_store import UserStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.identity import Principal, Role

BOOTSTRAP_EMAIL = "admin@localhost"
_SERVICE = "/naru.api.auth.v1.UserService"


@dataclass(frozen=True, slots=True)
class MadeUser:
    """A user, and the password that was made for them: shown once, left out of the representation."""

    user: User
    password: str

    def __repr__(self) -> str:
        return f"MadeUser(user={self.user!r})"


class UserManager:
    """Decides who may make, see and change which users, and does it.

    Args:
        keys: Knows the workspaces.
        sessions: Ends sessions.
        audit: Makes the audit's entries.
        random_bytes: Source of passwords and codes, such as `os.urandom`.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        keys: KeyStore,
        sessions: SessionManager,
        audit: PeopleAudit,
        feed: InvalidationFeed,
        passwords: Passwords,
        peppers: Peppers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        new_id: Callable[[], str],
    ) -> None:
        self._users = users
        self._keys = keys
        self._sessions = sessions
        self._audit = audit
        self._feed = feed
        self._passwords = passwords
        self._peppers = peppers
        self._clock = clock
        self._random_bytes = random_bytes
        self._new_id = new_id

    async def create(self, caller: Principal, wish: User, password: str, request_id: str) -> MadeUser:
        """Makes a user, with a password of our own where none is given.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; NOT_FOUND for an unknown workspace; ALREADY_EXISTS when the address
                has an account; PERMISSION_DENIED for a narrowed key; OVERLOADED.
        """
        check_request_id(request_id)
        check_whole(caller, f"{_SERVICE}/CreateUser")
        user = _checked(wish)
        if password:
            check_new(password, "password")
        workspace_id = user.default_workspace_id or caller.workspace_id
        if await self._keys.get_workspace(workspace_id) is None:
            raise not_found("workspace", workspace_id)
        user = replace(user, user_id=self._new_id(), create_time=self._clock.time(), default_workspace_id=workspace_id)
        made = "" if password else make_password(self._random_bytes)
        seat = Membership(workspace_id, user.user_id, Role.USER, user.create_time)
        password_hash = await self._passwords.hash(password or made)
        await self._users.insert_user(user, password_hash, seat, self._audit.user_created(user, seat))
        return MadeUser(user, made)

    async def get(self, caller: Principal, user_id: str) -> User:
        """A user. Raises NaruError NOT_FOUND, also for one who is no member of a workspace that the caller manages."""
        check_id("user_id", user_id)
        user = await self._users.get_user(user_id)
        if user is None or not (caller.role is Role.ADMIN or await self._is_member(user_id, caller.workspace_id)):
            raise not_found("user", user_id)
        return user

    async def list_page(
        self, caller: Principal, *, page_size: int, page_token: str, workspace_id: str, email: str
    ) -> Page[User]:
        """One page of the users the caller may see, by address: members of one workspace, or everybody.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for somebody else's workspace.
        """
        check_text("workspace_id", workspace_id, NAME_CHARACTERS_MAX)
        email = emails.normalise(email) if email else ""
        if caller.role is not Role.ADMIN:
            workspace_id = workspace_id or caller.workspace_id
            if workspace_id != caller.workspace_id:
                raise _denied("ListUsers", "You may not see the users of this workspace.")
        request = PageRequest(page_size, page_token, ("users", workspace_id, email))
        found = await self._users.list_users(
            workspace_id=workspace_id, email=email, after=request.after, limit=request.limit
        )
        return request.page(found, lambda user: user.email)

    async def update(self, caller: Principal, wish: User, request_id: str) -> User:
        """Replaces what a user is.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for a narrowed key; NOT_FOUND; ALREADY_EXISTS when the address is
                another user's; FAILED_PRECONDITION for administrators who would shut themselves out, and for the last one.
        """
        check_request_id(request_id)
        check_whole(caller, f"{_SERVICE}/UpdateUser")
        check_id("user_id", wish.user_id)
        user = _checked(wish)
        if user.user_id == caller.user_id and (user.blocked or user.role is not Role.ADMIN):
            raise NaruError(
                Reason.FAILED_PRECONDITION, "You cannot block yourself, or lay down your own role as an administrator."
            )
        updated, sequence = await self._users.update_user(user, self._clock.time(), self._audit.user_updated)
        self._feed.announce(sequence)
        return updated

    async def reset_password(self, caller: Principal, user_id: str, password: str, request_id: str) -> str:
        """Gives a user another password and ends all of their sessions; the password that was made, or nothing.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for a narrowed key; NOT_FOUND; OVERLOADED.
        """
        check_request_id(request_id)
        check_whole(caller, f"{_SERVICE}/ResetPassword")
        check_id("user_id", user_id)
        if password:
            check_new(password, "password")
        made = "" if password else make_password(self._random_bytes)
        password_hash = await self._passwords.hash(password or made)
        sequence = await self._users.set_password(
            user_id, password_hash, self._clock.time(), self._audit.sessions_ended(RESET_PASSWORD, user_id)
        )
        if sequence is None:
            raise not_found("user", user_id)
        self._feed.announce(sequence)
        return made

    async def revoke_sessions(self, caller: Principal, user_id: str, request_id: str) -> int:
        """Logs a user out everywhere; how many sessions that ended.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for anybody else and for a user's key, but to administrators;
                NOT_FOUND.
        """
        check_request_id(request_id)
        check_id("user_id", user_id)
        # A key that was found in a log must not throw its owner out everywhere.
        if caller.role is not Role.ADMIN and not (is_logged_in(caller) and caller.user_id == user_id):
            raise _denied("RevokeSessions", "You may end your own sessions only, and only when you are logged in.")
        if await self._users.get_user(user_id) is None:
            raise not_found("user", user_id)
        return await self._sessions.revoke_all(user_id)

    async def invite(self, caller: Principal, wish: Invite, request_id: str) -> tuple[Invite, str]:
        """Makes an invite and its code.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for somebody else's workspace and for a narrowed key; NOT_FOUND for
                an unknown workspace.
        """
        check_request_id(request_id)
        check_whole(caller, f"{_SERVICE}/CreateInvite")
        check_text("workspace_id", wish.workspace_id, NAME_CHARACTERS_MAX)
        check_seat_role(wish.role)
        email = emails.normalise(wish.email) if wish.email else ""
        workspace_id = wish.workspace_id or caller.workspace_id
        if caller.role is not Role.ADMIN and workspace_id != caller.workspace_id:
            raise _denied("CreateInvite", "You may not invite anybody to this workspace.")
        if await self._keys.get_workspace(workspace_id) is None:
            raise not_found("workspace", workspace_id)
        now = self._clock.time()
        code = invites.new_code(self._new_id(), self._random_bytes)
        invite = Invite(code.invite_id, workspace_id, wish.role, now, now + invites.INVITE_SECONDS, email)
        await self._users.insert_invite(invite, invites.digest(code, self._peppers), self._audit.invite_created(invite))
        return invite, code.text

    async def bootstrap(self, email: str) -> MadeUser:
        """Makes the first administrator, in the first workspace and with the tier of the first key.

        Raises:
            NaruError: INVALID_ARGUMENT; FAILED_PRECONDITION when there is no workspace yet; ALREADY_EXISTS when there is an
                administrator.
        """
        email = emails.normalise(email or BOOTSTRAP_EMAIL)
        first = await self._keys.bootstrapped_workspace("")
        if first is None:
            raise NaruError(Reason.FAILED_PRECONDITION, "This installation has not been bootstrapped yet.")
        now, made = self._clock.time(), make_password(self._random_bytes)
        user = User(
            self._new_id(), email, now, role=Role.ADMIN, tier=BOOTSTRAP_TIER, default_workspace_id=first.workspace_id
        )
        seat = Membership(first.workspace_id, user.user_id, Role.WORKSPACE_ADMIN, now)
        password_hash, entries = await self._passwords.hash(made), self._audit.user_created(user, seat)
        if not await self._users.insert_user(user, password_hash, seat, entries, only_admin=True):
            raise NaruError(
                Reason.ALREADY_EXISTS,
                "This installation has an administrator already; another one can reset the password.",
                metadata={"resource": "user", "name": email},
            )
        return MadeUser(user, made)

    async def _is_member(self, user_id: str, workspace_id: str) -> bool:
        return any(seat.workspace_id == workspace_id for seat in await self._users.memberships_of(user_id))


def check_seat_role(role: Role) -> None:
    """Raises NaruError INVALID_ARGUMENT for a role that nobody has in a workspace."""
    if role is Role.ADMIN:
        raise invalid_argument("role", "role must be user or workspace_admin; administrators are made with the user.")


def _checked(wish: User) -> User:
    """The user with their address as it is kept. Raises NaruError INVALID_ARGUMENT."""
    check_text("name", wish.name, NAME_CHARACTERS_MAX)
    check_text("tier", wish.tier, NAME_CHARACTERS_MAX)
    check_text("default_workspace_id", wish.default_workspace_id, NAME_CHARACTERS_MAX)
    if wish.role is Role.WORKSPACE_ADMIN:
        raise invalid_argument("role", "role must be user or admin; what they are in a workspace is set there.")
    return replace(wish, email=emails.normalise(wish.email))


def _denied(rpc: str, message: str) -> NaruError:
    return NaruError(Reason.PERMISSION_DENIED, message, metadata={"method": f"{_SERVICE}/{rpc}"})
