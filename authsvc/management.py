"""Making, listing and ending API keys, and the first key of an installation."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from authsvc.checks import (
    DESCRIPTION_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    check_expire_time,
    check_request_id,
    check_scopes,
    check_text,
    within_scopes,
)
from authsvc.invalidations import InvalidationFeed
from authsvc.keys import Peppers, new_key
from authsvc.records import DEFAULT_TIER, ApiKey, PageStart, RequestMark, Workspace
from authsvc.store import KeyStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.identity import Principal, Role, Scopes

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
BOOTSTRAP_WORKSPACE = "default"
BOOTSTRAP_TIER = "unlimited"

_KEY_ID = re.compile(r"[0-9A-Za-z]{12}")
_TIME_MAX = 253_402_300_800.0  # the year 10000, where timestamps on the wire end

_Filters = tuple[str, bool, str]


@dataclass(frozen=True, slots=True)
class KeyWish:
    """What a new key shall be, as `CreateApiKeyRequest` documents it. `expire_time` in seconds since the Unix epoch."""

    request_id: str = ""
    description: str = ""
    workspace_id: str = ""
    service_account: str = ""
    role: Role = Role.USER
    tier: str = ""
    scopes: Scopes = field(default_factory=Scopes)
    expire_time: float | None = None


@dataclass(frozen=True, slots=True)
class MadeKey:
    """A key and its full text; the text is empty when the key was made by the same request before."""

    key: ApiKey
    text: str

    def __repr__(self) -> str:
        return f"MadeKey(key={self.key!r})"


@dataclass(frozen=True, slots=True)
class KeyPage:
    """Keys, newest first, and where the next page begins; an empty token: this was the last."""

    keys: tuple[ApiKey, ...]
    next_page_token: str


class KeyManager:
    """Decides who may make, see and end which keys, and does it.

    Args:
        store: Where keys are kept.
        feed: Told of each revocation.
        peppers: What digests are made with.
        clock: Tells the time.
        random_bytes: Source of keys, such as `os.urandom`.
        new_id: Source of workspace ids.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        feed: InvalidationFeed,
        peppers: Peppers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._feed = feed
        self._peppers = peppers
        self._clock = clock
        self._random_bytes = random_bytes
        self._new_id = new_id

    async def create(self, caller: Principal, wish: KeyWish) -> MadeKey:
        """Makes a key.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; PERMISSION_DENIED when the key would do more than the caller
                may; NOT_FOUND for an unknown workspace; ALREADY_EXISTS for a request id used with another body.
        """
        now = self._clock.time()
        _check_wish(wish, now)
        workspace_id = wish.workspace_id or caller.workspace_id
        _check_may_manage(caller, workspace_id, "CreateApiKey")
        if wish.role.rank > caller.role.rank or not within_scopes(wish.scopes, caller.scopes):
            raise _denied("CreateApiKey", "A key cannot be given more than its maker may do.")
        workspace = await self._store.get_workspace(workspace_id)
        if workspace is None:
            raise not_found("workspace", workspace_id)
        if caller.role is not Role.ADMIN and wish.tier not in ("", workspace.tier):
            raise _denied("CreateApiKey", "Only an administrator may give a key a tier other than its workspace's.")
        made = new_key(self._peppers, self._random_bytes)
        key = ApiKey(
            key_id=made.key_id,
            workspace_id=workspace_id,
            create_time=now,
            description=wish.description,
            service_account=wish.service_account,
            role=wish.role,
            tier=wish.tier,
            scopes=wish.scopes,
            expire_time=wish.expire_time,
        )
        stored, is_new = await self._store.insert_key(key, made.digest, _mark(caller, wish))
        return MadeKey(stored, made.text if is_new else "")

    async def list_page(
        self,
        caller: Principal | None,
        *,
        page_size: int,
        page_token: str,
        workspace_id: str,
        show_revoked: bool,
        tier: str = "",
    ) -> KeyPage:
        """One page of the keys the caller may see: of one workspace or of all of them, of one tier or of any.

        Args:
            caller: Whoever asks; None: a service, which sees every workspace.
            page_size: How many keys; 0: 50.
            page_token: Where the page begins; empty: with the newest key.
            workspace_id: Only keys of this workspace; empty: of all that the caller may see.
            show_revoked: Revoked keys too and, where a tier is asked for, expired ones.
            tier: Only keys of this tier, their own or their workspace's; empty: all.

        Raises:
            NaruError: INVALID_ARGUMENT for a negative page size, a workspace id that cannot be one, or a token that is not
                of this list; PERMISSION_DENIED for somebody else's workspace.
        """
        if page_size < 0:
            raise invalid_argument("page_size", "page_size must not be negative.")
        check_text("workspace_id", workspace_id, NAME_CHARACTERS_MAX)
        check_text("tier", tier, NAME_CHARACTERS_MAX)
        if caller is not None and caller.role is not Role.ADMIN:
            workspace_id = workspace_id or caller.workspace_id
            _check_may_manage(caller, workspace_id, "ListApiKeys")
        limit = min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        filters = (workspace_id, show_revoked, tier)
        keys = await self._store.list_keys(
            workspace_id=workspace_id or None,
            show_revoked=show_revoked,
            tier=tier,
            expire_after=self._clock.time() if tier and not show_revoked else None,
            after=_read_token(page_token, filters) if page_token else None,
            limit=limit + 1,
        )
        page = tuple(keys[:limit])
        return KeyPage(page, _write_token(page[-1], filters) if len(keys) > limit else "")

    async def revoke(self, caller: Principal, key_id: str, request_id: str = "") -> ApiKey:
        """Revokes a key for good; one that is revoked stays as it is.

        Raises:
            NaruError: INVALID_ARGUMENT; NOT_FOUND, also for a key of a workspace the caller does not manage;
                PERMISSION_DENIED for a key that may do more than the caller.
        """
        check_request_id(request_id)
        if not key_id:
            raise invalid_argument("key_id", "key_id is needed.")
        check_text("key_id", key_id, NAME_CHARACTERS_MAX)
        _check_may_manage(caller, caller.workspace_id, "RevokeApiKey")
        key = await self._store.get_key(key_id)
        if key is None or (caller.role is not Role.ADMIN and key.workspace_id != caller.workspace_id):
            raise not_found("api_key", key_id)
        if key.role.rank > caller.role.rank:
            raise _denied("RevokeApiKey", "A key that may do more than you cannot be revoked by you.")
        revoked, sequence = await self._store.revoke_key(key_id, self._clock.time())
        if sequence is not None:
            self._feed.announce(sequence)
        return revoked

    async def bootstrap(self, workspace_name: str, *, additional: bool) -> MadeKey:
        """Makes the first workspace and its admin key; with `additional`, one more admin key where there is one.

        Args:
            workspace_name: Name of the workspace; empty: "default" for the first, else the one that came first.
            additional: Do not mind that the installation was bootstrapped.

        Raises:
            NaruError: INVALID_ARGUMENT; ALREADY_EXISTS when bootstrapped already; NOT_FOUND for an additional key in a
                workspace that does not exist.
        """
        check_text("workspace_name", workspace_name, NAME_CHARACTERS_MAX)
        now = self._clock.time()
        first = Workspace(self._new_id(), workspace_name or BOOTSTRAP_WORKSPACE, DEFAULT_TIER, now)
        made = new_key(self._peppers, self._random_bytes)
        key = _admin_key(made.key_id, first.workspace_id, now)
        if await self._store.bootstrap(first, key, made.digest):
            return MadeKey(key, made.text)
        workspace = await self._store.bootstrapped_workspace(workspace_name)
        if not additional:
            raise NaruError(
                Reason.ALREADY_EXISTS,
                "This installation has been bootstrapped already; ask for an additional key if you need one.",
                metadata={"resource": "workspace", "name": first.name if workspace is None else workspace.name},
            )
        if workspace is None:
            raise not_found("workspace", workspace_name)
        key = _admin_key(made.key_id, workspace.workspace_id, now)
        await self._store.insert_key(key, made.digest)
        return MadeKey(key, made.text)


def _admin_key(key_id: str, workspace_id: str, now: float) -> ApiKey:
    return ApiKey(
        key_id=key_id,
        workspace_id=workspace_id,
        create_time=now,
        description="bootstrap admin key",
        service_account="operator",
        role=Role.ADMIN,
        tier=BOOTSTRAP_TIER,
    )


def _check_wish(wish: KeyWish, now: float) -> None:
    check_request_id(wish.request_id)
    check_text("description", wish.description, DESCRIPTION_CHARACTERS_MAX)
    check_text("workspace_id", wish.workspace_id, NAME_CHARACTERS_MAX)
    check_text("service_account", wish.service_account, NAME_CHARACTERS_MAX)
    check_text("tier", wish.tier, NAME_CHARACTERS_MAX)
    check_scopes(wish.scopes)
    check_expire_time(wish.expire_time, now)


def _check_may_manage(caller: Principal, workspace_id: str, rpc: str) -> None:
    if caller.role is Role.ADMIN:
        return
    if caller.role is not Role.WORKSPACE_ADMIN or workspace_id != caller.workspace_id:
        raise _denied(rpc, "You may not manage the keys of this workspace.")


def _denied(rpc: str, message: str) -> NaruError:
    return NaruError(Reason.PERMISSION_DENIED, message, metadata={"method": f"/naru.api.auth.v1.ApiKeyService/{rpc}"})


def _mark(caller: Principal, wish: KeyWish) -> RequestMark | None:
    if not wish.request_id:
        return None
    who = f"key:{caller.key_id}" if caller.key_id else f"user:{caller.user_id}"
    body = json.dumps(asdict(wish), sort_keys=True).encode()
    return RequestMark(who, wish.request_id, hashlib.sha256(body).digest())


def _write_token(last: ApiKey, filters: _Filters) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.create_time, last.key_id, *filters]).encode()).decode()


def _read_token(token: str, filters: _Filters) -> PageStart:
    wrong = invalid_argument(
        "page_token", "page_token must be the next_page_token of the page before, with the same filters."
    )
    try:
        create_time, key_id, *rest = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise wrong from None
    if rest != [*filters] or not isinstance(create_time, float) or not isinstance(key_id, str):
        raise wrong
    if not 0 <= create_time < _TIME_MAX or not _KEY_ID.fullmatch(key_id):
        raise wrong
    return PageStart(create_time, key_id)
