"""Resolving tokens that others made: whose they are, and the account here that stands for that person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from authsvc.authentication import Authentication
from authsvc.foreign_store import ForeignStore, Place, StoredPerson
from authsvc.foreign_tokens import (
    OPEN_WEBUI,
    ClaimPolicy,
    Face,
    Person,
    SharedSecret,
    read_face,
    read_identity,
    read_session,
    read_user,
)
from authsvc.people_audit import PeopleAudit, user_actor
from authsvc.provider_keys import PERIOD_SECONDS, ProviderKeys
from authsvc.tokens import InvalidTokenError
from authsvc.user_records import Membership, User
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_api_key, unavailable
from naru.identity import Principal, Role
from naru.logs import get_logger

_LOOKS_MAX = 3
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Home:
    """Where people of an issuer belong, unless their tokens say otherwise.

    Attributes:
        workspace: By id or name; empty: the first one.
        tier: For those whose user here has none; empty: the workspace's.
        block_new: Whether those who come for the first time are blocked until somebody unblocks them.
    """

    workspace: str = ""
    tier: str = ""
    block_new: bool = False


@dataclass(frozen=True, slots=True)
class Provider:
    """An OpenID provider."""

    policy: ClaimPolicy
    keys: ProviderKeys
    home: Home


@dataclass(frozen=True, slots=True)
class OpenWebui:
    """An Open WebUI: what its sessions, and what its tokens about users, are signed with; None: not believed."""

    sessions: SharedSecret | None
    users: SharedSecret | None
    home: Home


@dataclass(frozen=True, slots=True)
class _Account:
    stored: StoredPerson
    place: Place


class ForeignAuthenticator:
    """Resolves them. A signature is checked before the database is asked.

    Args:
        store: Where accounts are; one is made when somebody comes for the first time.
        audit: Makes the audit's entries about that.
        new_id: Source of ids.
    """

    def __init__(
        self,
        *,
        store: ForeignStore,
        audit: PeopleAudit,
        clock: Clock,
        new_id: Callable[[], str],
        openwebui: OpenWebui,
        provider: Provider | None,
    ) -> None:
        self._store = store
        self._audit = audit
        self._clock = clock
        self._new_id = new_id
        self._openwebui = openwebui
        self._provider = provider

    def recognise(self, token: str) -> Face | None:
        """What a token says of itself, when that is what a token of one of the others says; None: it is for somebody else."""
        if self._provider is None and self._openwebui.sessions is None:
            return None
        try:
            face = read_face(token)
        except InvalidTokenError:
            return None
        if self._provider is not None and face.issuer == self._provider.policy.issuer:
            return face
        session = self._openwebui.sessions is not None and face.algorithm == "HS256" and not face.issuer
        return face if session else None

    async def resolve(self, token: str, face: Face, workspace_id: str = "", client_address: str = "") -> Authentication:
        """Who a token belongs to, and until when that holds: for a provider's no longer than its keys are kept.

        Args:
            token: A token that was recognised.
            face: What it says of itself.
            workspace_id: Where to act, if the token names several workspaces; empty, or none of them: in the first.
            client_address: Where the person is, for the audit; empty: not known.

        Raises:
            NaruError: INVALID_API_KEY, one text for every cause, also for a blocked user; PERMISSION_DENIED when there is no
                such workspace; SERVICE_UNAVAILABLE when the database is away, or the issuer with a key that is unknown here.
        """
        try:
            person, home = await self._read(token, face)
        except InvalidTokenError as error:
            _log.debug("a token of others was refused", why=str(error))
            raise invalid_api_key() from None
        wanted = person.workspaces or _named(home.workspace)
        account = await self._account(person, home, wanted, workspace_id, client_address)
        if account.stored.blocked:
            raise invalid_api_key()
        principal = Principal(
            workspace_id=account.place.workspace_id,
            role=person.role,
            tier=account.stored.tier or home.tier or account.place.tier,
            user_id=person.user_id,
        )
        return Authentication(principal, account.stored.position, self._known_until(person))

    async def attribute(self, token: str, workspace_id: str) -> str:
        """The user for whom a front end makes a request in a workspace.

        Raises:
            NaruError: INVALID_CREDENTIALS, which says what is wrong with the token; PERMISSION_DENIED for a blocked user;
                SERVICE_UNAVAILABLE.
        """
        if self._openwebui.users is None:
            raise _bad_user("this installation has no secret to check it with")
        try:
            person = read_user(token, self._openwebui.users, self._clock.time())
        except InvalidTokenError as error:
            raise _bad_user(str(error)) from None
        account = await self._account(person, Home(), (workspace_id,), workspace_id)
        if account.stored.blocked:
            raise NaruError(Reason.PERMISSION_DENIED, "This user is blocked.")
        return person.user_id

    async def _read(self, token: str, face: Face) -> tuple[Person, Home]:
        now = self._clock.time()
        if self._provider is None or face.issuer != self._provider.policy.issuer:
            if self._openwebui.sessions is None:
                raise InvalidTokenError("its issuer is unknown")
            return read_session(token, self._openwebui.sessions, now), self._openwebui.home
        key = await self._provider.keys.find(face.kid, face.algorithm)
        if key is None:
            raise InvalidTokenError("the algorithm is not allowed, or the key is unknown")
        return read_identity(token, key, face.algorithm, self._provider.policy, now), self._provider.home

    def _known_until(self, person: Person) -> float | None:
        """Until when an answer about a person may be kept."""
        if person.issuer == OPEN_WEBUI or person.expire_time is None:
            return person.expire_time
        # Nobody is told that a provider withdrew the key, so whoever keeps the answer has to ask anew.
        return min(person.expire_time, self._clock.time() + PERIOD_SECONDS)

    async def _account(
        self, person: Person, home: Home, wanted: tuple[str, ...], workspace_id: str, client_address: str = ""
    ) -> _Account:
        """The account of a person in a workspace, made where there is none."""
        for _ in range(_LOOKS_MAX):
            stored = await self._store.look_up(person.user_id, wanted)
            if not stored.places:
                _log.warning("there is no workspace for a user of others", issuer=person.issuer, wanted=wanted)
                raise NaruError(Reason.PERMISSION_DENIED, "You do not belong to any workspace.")
            place = next((one for one in stored.places if one.workspace_id == workspace_id), stored.places[0])
            if stored.blocked or (stored.known and place.member):
                return _Account(stored, place)
            await self._make(person, place.workspace_id, client_address, blocked=home.block_new)
        raise unavailable("authsvc")

    async def _make(self, person: Person, workspace_id: str, client_address: str, *, blocked: bool) -> None:
        kind = "open-webui" if person.issuer == OPEN_WEBUI else "oidc"
        user = User(
            user_id=person.user_id,
            # The column is everybody's, and an address that can be told beforehand could be taken by somebody else.
            email=f"{self._new_id()}@{kind}.invalid",
            create_time=self._clock.time(),
            name=person.name,
            default_workspace_id=workspace_id,
            blocked=blocked,
        )
        seat = Membership(workspace_id, user.user_id, Role.USER, user.create_time)
        actor = user_actor(user.user_id)
        made = self._audit.user_created(user, seat, actor=actor, client_address=client_address)
        joined = self._audit.member(None, seat, actor=actor, client_address=client_address)
        await self._store.insert(user, seat, made, joined)


def _named(workspace: str) -> tuple[str, ...]:
    return (workspace,) if workspace else ()


def _bad_user(why: str) -> NaruError:
    return NaruError(Reason.INVALID_CREDENTIALS, f"The X-OpenWebUI-User-Jwt header is no good: {why}.")
