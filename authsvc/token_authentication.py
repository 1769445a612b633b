"""Resolving what a caller sent, a user's access token or an API key, to whoever it belongs to."""

from __future__ import annotations

from authsvc.authentication import Authentication, Authenticator
from authsvc.foreign_authentication import ForeignAuthenticator
from authsvc.sessions_store import SessionStore
from authsvc.signing import KeyRing
from authsvc.tokens import InvalidTokenError, TokenPolicy, read_kid, verify
from authsvc.user_records import Seat
from naru import access_token
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_api_key
from naru.identity import Principal, Role
from naru.logs import get_logger
from naru.refusals import WrongKeyLimit

_log = get_logger(__name__)


class TokenAuthenticator:
    """Resolves access tokens. A signature is checked before the database is asked."""

    def __init__(self, *, store: SessionStore, ring: KeyRing, policy: TokenPolicy, clock: Clock) -> None:
        self._store = store
        self._ring = ring
        self._policy = policy
        self._clock = clock

    async def resolve(self, token: str, workspace_id: str = "") -> Authentication:
        """Who a token belongs to, and until when that holds.

        Args:
            token: A JWT.
            workspace_id: Where to act; empty, or where the user does not belong to it: in the user's default workspace.

        Raises:
            NaruError: INVALID_API_KEY, one text for every cause; PERMISSION_DENIED for a user who belongs to no workspace;
                SERVICE_UNAVAILABLE when the database is away.
        """
        try:
            await self._ring.look_for(read_kid(token))
            claims = verify(token, self._ring.find, self._policy, self._clock.time())
        except InvalidTokenError as error:
            _log.debug("a token was refused", why=str(error))
            raise invalid_api_key() from None
        stored = await self._store.look_up_session(claims.session_id)
        session = stored.session
        if session is None or session.user_id != claims.user_id or stored.blocked:
            raise invalid_api_key()
        if not session.lives(self._clock.time()):
            raise invalid_api_key()
        if not stored.seats:
            raise NaruError(Reason.PERMISSION_DENIED, "You do not belong to any workspace.")
        seat = _seat(stored.seats, workspace_id)
        principal = Principal(
            workspace_id=seat.workspace_id,
            role=Role.ADMIN if stored.role is Role.ADMIN else seat.role,
            tier=stored.tier or seat.tier,
            user_id=claims.user_id,
        )
        return Authentication(principal, stored.position, min(claims.expire_time, session.expire_time))


class CredentialAuthenticator:
    """Resolves whatever a caller may send.

    Args:
        keys: Resolves API keys.
        tokens: Resolves our tokens.
        foreign: Resolves the tokens of others that it recognises; all other tokens are ours, or nobody's.
        clock: Tells the time.
    """

    def __init__(
        self, keys: Authenticator, tokens: TokenAuthenticator, foreign: ForeignAuthenticator, clock: Clock
    ) -> None:
        self._keys = keys
        self._tokens = tokens
        self._foreign = foreign
        self._wrong_keys = WrongKeyLimit(clock)

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        """Who `credential`, which came here directly, belongs to.

        Raises NaruError as `resolve` does, and RATE_LIMIT_EXCEEDED when too many wrong keys and tokens came from the address;
        the services that ask by `resolve` count for themselves.
        """
        access_token.check_credential(credential)
        self._wrong_keys.check(client_address)
        try:
            return (await self.resolve(credential, client_address)).principal
        except NaruError as error:
            if error.reason is Reason.INVALID_API_KEY:
                self._wrong_keys.note(client_address)
            raise

    async def resolve(self, credential: str, client_address: str = "", workspace_id: str = "") -> Authentication:
        """Who `credential` belongs to, and until when that holds; as those who resolve each kind of them have it."""
        if access_token.looks_like(credential):
            face = self._foreign.recognise(credential)
            if face is not None:
                return await self._foreign.resolve(credential, face, workspace_id, client_address)
            return await self._tokens.resolve(credential, workspace_id)
        return await self._keys.resolve(credential, client_address)

    async def attribute(self, user_token: str, workspace_id: str) -> str:
        """The user a front end makes a request for; as `ForeignAuthenticator` has it."""
        return await self._foreign.attribute(user_token, workspace_id)


def _seat(seats: tuple[Seat, ...], workspace_id: str) -> Seat:
    return next((seat for seat in seats if seat.workspace_id == workspace_id), seats[0])
