"""Logging in and out: accounts, sessions and their tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from authsvc import emails, invites, refresh, tokens
from authsvc.checks import NAME_CHARACTERS_MAX, check_text
from authsvc.invalidations import InvalidationFeed
from authsvc.key_rights import is_logged_in
from authsvc.keys import Peppers
from authsvc.passwords import Passwords, check_length, check_new
from authsvc.people_audit import CHANGE_PASSWORD, REVOKE_SESSIONS, PeopleAudit, user_actor
from authsvc.refresh import RefreshToken
from authsvc.sessions_store import SessionStore
from authsvc.signing import KeyRing
from authsvc.store import KeyStore
from authsvc.throttle import LoginThrottle
from authsvc.user_records import Invite, Membership, Session, StoredRefresh, User
from authsvc.users_store import UserStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Principal, Role
from naru.logs import get_logger

_REFRESH_CHARACTERS_MAX = 256
_log = get_logger(__name__)


class RegistrationMode(StrEnum):
    """Who may register: anybody, whoever has an invite, or nobody."""

    OPEN = "open"
    INVITE = "invite"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """What an operator may choose. Seconds.

    Attributes:
        session_lifetime: How long a session goes on at most.
        refresh_grace: How long a spent refresh token is answered with its successor again.
    """

    tokens: tokens.TokenPolicy
    registration: RegistrationMode
    session_lifetime: float
    refresh_grace: float


@dataclass(frozen=True, slots=True)
class GivenTokens:
    """What a session is used with: left out of the representation. Lifetimes in whole seconds."""

    access_token: str
    expires_in: int
    refresh_token: str
    refresh_expires_in: int

    def __repr__(self) -> str:
        return "GivenTokens()"


def invalid_credentials() -> NaruError:
    """One text for every cause, so that nothing can be probed."""
    return NaruError(Reason.INVALID_CREDENTIALS, "Address and password do not fit, or the session is over.")


class SessionManager:
    """Registers people, logs them in and out, and renews their tokens.

    Args:
        keys: Knows the installation's first workspace, which those who register without an invite join.
        audit: Makes the audit's entries.
        random_bytes: Source of secrets, such as `os.urandom`.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        users: UserStore,
        sessions: SessionStore,
        keys: KeyStore,
        audit: PeopleAudit,
        feed: InvalidationFeed,
        ring: KeyRing,
        passwords: Passwords,
        throttle: LoginThrottle,
        peppers: Peppers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        new_id: Callable[[], str],
        policy: SessionPolicy,
    ) -> None:
        self._users = users
        self._sessions = sessions
        self._keys = keys
        self._audit = audit
        self._feed = feed
        self._ring = ring
        self._passwords = passwords
        self._throttle = throttle
        self._peppers = peppers
        self._clock = clock
        self._random_bytes = random_bytes
        self._new_id = new_id
        self._policy = policy

    async def register(
        self, *, email: str, password: str, name: str, invite_code: str, client_address: str
    ) -> GivenTokens:
        """Makes an account and logs it in.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED where registration is off or the invite does not fit; ALREADY_EXISTS
                when the address has an account; RATE_LIMIT_EXCEEDED after many attempts from the address.
        """
        if self._policy.registration is RegistrationMode.OFF:
            raise _denied("Registration is off; an administrator can make you an account.")
        email = emails.normalise(email)
        check_new(password, "password")
        check_text("name", name, NAME_CHARACTERS_MAX)
        # Not given back: an address may make so many accounts, and no more.
        self._throttle.attempt(f"register {email}", client_address)
        invite = await self._invite(invite_code, email)
        now = self._clock.time()
        user, seat = await self._newcomer(email, name, invite, now)
        password_hash = await self._passwords.hash(password)
        invite_id = "" if invite is None else invite.invite_id
        entries = self._audit.user_created(
            user, seat, invite_id=invite_id, actor=user_actor(user.user_id), client_address=client_address
        )
        added = await self._users.insert_user(user, password_hash, seat, entries, invite_id=invite_id)
        if not added:
            raise _denied("This invite was used already.")
        return await self._begin(user.user_id, password_hash, client_address)

    async def login(self, *, email: str, password: str, client_address: str) -> GivenTokens:
        """Begins a session. An unknown address takes the same work and gets the same answer as a wrong password.

        Raises:
            NaruError: INVALID_ARGUMENT for what no account can have; RATE_LIMIT_EXCEEDED after too many failures;
                INVALID_CREDENTIALS; OVERLOADED.
        """
        email = emails.normalise(email)
        check_length(password, "password")
        user, password_hash = await self._check_password(email, password, client_address)
        if self._passwords.is_outdated(password_hash):
            renewed = await self._passwords.hash(password)
            if await self._users.refresh_hash(user.user_id, renewed, instead_of=password_hash):
                password_hash = renewed
        return await self._begin(user.user_id, password_hash, client_address)

    async def refresh(self, text: str, client_address: str = "") -> GivenTokens:
        """Changes a refresh token for its successor and a new access token.

        Within the grace a spent one gives the same successor again, as its answer may have been lost. Later it ends the
        session: two hold it, and nobody can tell which of them is the user.

        Raises:
            NaruError: INVALID_CREDENTIALS.
        """
        token, stored = await self._read_refresh(text)
        now = self._clock.time()
        if stored.blocked or not stored.session.lives(now):
            raise invalid_credentials()
        successor = refresh.successor(token, self._peppers, stored.digest.pepper_version)
        if stored.spend_time is None:
            digest = refresh.digest(successor, self._peppers)
            if not await self._sessions.spend_refresh(token.session_id, token.generation, digest, now):
                # Somebody else spent it since it was read; the next look sees when.
                return await self.refresh(text, client_address)
        elif stored.newest != successor.generation or now - stored.spend_time > self._policy.refresh_grace:
            _log.warning("a refresh token was used twice; its session ends", session_id=token.session_id)
            entry = self._audit.family_revoked(stored.session, now, client_address)
            self._announce(await self._sessions.revoke_session(stored.session, now, entry))
            raise invalid_credentials()
        return self._tokens(stored.session, successor, now)

    async def logout(self, text: str, *, everywhere: bool, client_address: str = "") -> None:
        """Ends the session of a refresh token, or all of its user's; a token that is no good ends nothing."""
        try:
            _, stored = await self._read_refresh(text)
        except NaruError as error:
            if error.reason is Reason.INVALID_CREDENTIALS:
                return
            raise
        now = self._clock.time()
        if not everywhere:
            self._announce(await self._sessions.revoke_session(stored.session, now))
        elif stored.session.lives(now):
            # Whoever holds the token of a session that is over has no say in the others.
            user_id = stored.session.user_id
            await self.revoke_all(user_id, actor=user_actor(user_id), client_address=client_address)

    async def revoke_all(self, user_id: str, *, actor: str = "", client_address: str | None = None) -> int:
        """Ends all sessions of a user; how many. Without `actor` and `client_address` the audit names the caller's."""
        tell = self._audit.sessions_ended(REVOKE_SESSIONS, user_id, actor=actor, client_address=client_address)
        ended, sequence = await self._sessions.revoke_sessions(user_id, self._clock.time(), tell)
        self._announce(sequence)
        return ended

    async def change_password(self, caller: Principal, current: str, new: str, client_address: str) -> None:
        """Changes the caller's password and ends all of their sessions, this one too.

        Raises:
            NaruError: INVALID_ARGUMENT; PERMISSION_DENIED for an API key; INVALID_CREDENTIALS for a wrong password;
                RATE_LIMIT_EXCEEDED; OVERLOADED.
        """
        user = await self._users.get_user(caller.user_id) if is_logged_in(caller) else None
        if user is None:
            raise _denied("Only a user who is logged in can change their password.")
        check_length(current, "current_password")
        check_new(new, "new_password")
        _, before = await self._check_password(user.email, current, client_address)
        after = await self._passwords.hash(new)
        tell = self._audit.sessions_ended(CHANGE_PASSWORD, user.user_id)
        sequence = await self._users.set_password(user.user_id, after, self._clock.time(), tell, instead_of=before)
        if sequence is None:
            raise invalid_credentials()
        self._announce(sequence)

    async def _check_password(self, email: str, password: str, client_address: str) -> tuple[User, str]:
        known = self._throttle.knows(email, client_address)
        # Another replica may have logged them in, or this one before it was started.
        if not known and await self._sessions.began_from(email, client_address):
            self._throttle.remember(email, client_address)
        self._throttle.attempt(email, client_address)
        try:
            found = await self._users.find_by_email(email)
            good = await self._passwords.matches(password, None if found is None else found[1])
        except NaruError:
            # Nobody looked at the password: what is busy or away here must not keep anybody out for longer.
            self._throttle.give_back(email, client_address)
            raise
        if found is None or not good or found[0].blocked:
            raise invalid_credentials()
        self._throttle.succeeded(email, client_address)
        return found

    async def _invite(self, code: str, email: str) -> Invite | None:
        """The invite of a code; None without one where registration is open. Raises NaruError PERMISSION_DENIED."""
        if not code and self._policy.registration is RegistrationMode.OPEN:
            return None
        parsed = invites.parse_code(code)
        found = None if parsed is None else await self._users.find_invite(parsed.invite_id)
        fits = parsed is not None and invites.matches(parsed, self._peppers, None if found is None else found[1])
        if found is None or not fits or found[0].expire_time <= self._clock.time() or found[0].email not in ("", email):
            raise _denied("Registration needs an invite that is good for this address.")
        return found[0]

    async def _newcomer(self, email: str, name: str, invite: Invite | None, now: float) -> tuple[User, Membership]:
        workspace_id, role = ("", Role.USER) if invite is None else (invite.workspace_id, invite.role)
        if not workspace_id:
            first = await self._keys.bootstrapped_workspace("")
            if first is None:
                raise NaruError(Reason.FAILED_PRECONDITION, "This installation has not been bootstrapped yet.")
            workspace_id = first.workspace_id
        user = User(self._new_id(), email, now, name, default_workspace_id=workspace_id)
        return user, Membership(workspace_id, user.user_id, role, now)

    async def _begin(self, user_id: str, password_hash: str, client_address: str) -> GivenTokens:
        now = self._clock.time()
        session = Session(
            session_id=self._new_id(),
            user_id=user_id,
            client_address=client_address[:45],
            create_time=now,
            expire_time=now + self._policy.session_lifetime,
        )
        token = refresh.first(session.session_id, self._random_bytes)
        if not await self._sessions.insert_session(session, refresh.digest(token, self._peppers), password_hash):
            raise invalid_credentials()
        return self._tokens(session, token, now)

    async def _read_refresh(self, text: str) -> tuple[RefreshToken, StoredRefresh]:
        if len(text) > _REFRESH_CHARACTERS_MAX:
            raise invalid_argument("refresh_token", "refresh_token is not one of ours.")
        token = refresh.parse(text)
        if token is None:
            raise invalid_credentials()
        stored = await self._sessions.look_up_refresh(token.session_id, token.generation)
        matches = refresh.matches(token, self._peppers, None if stored is None else stored.digest)
        if stored is None or not matches:
            raise invalid_credentials()
        return token, stored

    def _tokens(self, session: Session, token: RefreshToken, now: float) -> GivenTokens:
        access_token = tokens.issue(
            self._ring.signing(),
            self._policy.tokens,
            user_id=session.user_id,
            session_id=session.session_id,
            token_id=self._new_id(),
            now=now,
        )
        return GivenTokens(
            access_token=access_token,
            expires_in=int(self._policy.tokens.lifetime),
            refresh_token=token.text,
            refresh_expires_in=max(round(session.expire_time - now), 0),
        )

    def _announce(self, sequence: int | None) -> None:
        if sequence is not None:
            self._feed.announce(sequence)


def _denied(message: str) -> NaruError:
    return NaruError(Reason.PERMISSION_DENIED, message)
