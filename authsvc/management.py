"""Making and listing API keys, and the first key of an installation."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace

from authsvc.audit import AuditEntry, Auditor, key_facts, workspace_facts
from authsvc.checks import (
    DESCRIPTION_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    USER_ID_CHARACTERS_MAX,
    check_expire_time,
    check_metadata,
    check_request_id,
    check_scopes,
    check_text,
    within_scopes,
)
from authsvc.key_rights import (
    check_may_give_end,
    check_may_give_tier,
    check_may_manage,
    denied,
    maker_of,
    request_mark,
)
from authsvc.keys import Peppers, new_key
from authsvc.records import DEFAULT_TIER, ApiKey, KeyFilters, PageStart, Workspace
from authsvc.store import KeyStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.identity import Principal, Role, Scopes

PAGE_SIZE_DEFAULT = 50
PAGE_SIZE_MAX = 1_000
BOOTSTRAP_WORKSPACE = "default"
BOOTSTRAP_TIER = "unlimited"
BOOTSTRAP, CREATE_KEY = "installation.bootstrap", "api_key.create"
"""Actions of the audit."""

_KEY_ID = re.compile(r"[0-9A-Za-z]{12}")
_TIME_MAX = 253_402_300_800.0  # the year 10000, where timestamps on the wire end


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
    user_id: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


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
    """Decides who may make and see which keys, and does it.

    Args:
        store: Where keys are kept.
        auditor: Makes the audit's entries.
        peppers: What digests are made with.
        clock: Tells the time.
        random_bytes: Source of keys, such as `os.urandom`.
        new_id: Source of workspace ids.
        user_keys: Up to how many keys users without a role make some for themselves: those that work count, and those of the
            last 24 hours.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        auditor: Auditor,
        peppers: Peppers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        new_id: Callable[[], str],
        user_keys: int,
    ) -> None:
        self._user_keys = user_keys
        self._store = store
        self._auditor = auditor
        self._peppers = peppers
        self._clock = clock
        self._random_bytes = random_bytes
        self._new_id = new_id

    async def create(self, caller: Principal, wish: KeyWish) -> MadeKey:
        """Makes a key; a user without a role in the workspace makes one of their own.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; PERMISSION_DENIED when the key would do more than the caller
                may; NOT_FOUND for an unknown workspace or user; ALREADY_EXISTS for a request id used with another body;
                FAILED_PRECONDITION for a user who has too many.
        """
        now = self._clock.time()
        _check_wish(wish, now)
        workspace_id = wish.workspace_id or caller.workspace_id
        check_may_manage(caller, workspace_id, "CreateApiKey")
        if caller.role is Role.USER:
            wish = self._own(caller, wish)
        if wish.role.rank > caller.role.rank or not within_scopes(wish.scopes, caller.scopes):
            raise denied("CreateApiKey", "A key cannot be given more than its maker may do.")
        if wish.user_id and caller.role is not Role.ADMIN and wish.user_id != caller.user_id:
            raise denied("CreateApiKey", "Only an administrator may make a key of another user.")
        check_may_give_end(await maker_of(caller, self._store.get_key), wish.expire_time, "CreateApiKey")
        workspace = await self._store.get_workspace(workspace_id)
        if workspace is None:
            raise not_found("workspace", workspace_id)
        check_may_give_tier(caller, wish.tier, workspace, "CreateApiKey")
        await self._check_owner(wish.user_id, workspace_id)
        made = new_key(self._peppers, self._random_bytes)
        key = ApiKey(
            key_id=made.key_id,
            workspace_id=workspace_id,
            create_time=now,
            description=wish.description,
            user_id=wish.user_id,
            service_account=wish.service_account,
            role=wish.role,
            tier=wish.tier,
            scopes=wish.scopes,
            expire_time=wish.expire_time,
            metadata=wish.metadata,
        )
        mark = request_mark(caller, wish.request_id, asdict(wish))
        most = self._user_keys if caller.role is Role.USER else None
        stored, is_new = await self._store.insert_key(key, made.digest, self._creation(key), mark, user_keys=most)
        return MadeKey(stored, made.text if is_new else "")

    async def list_page(
        self, caller: Principal | None, filters: KeyFilters, *, page_size: int, page_token: str
    ) -> KeyPage:
        """One page of the keys that fit and that the caller may see.

        Args:
            caller: Whoever asks; None: a service, which sees every workspace.
            filters: Which keys.
            page_size: How many keys; 0: 50.
            page_token: Where the page begins; empty: with the newest key.

        Raises:
            NaruError: INVALID_ARGUMENT for a negative page size, a filter that fits no key, or a token that is not of this
                list; PERMISSION_DENIED for somebody else's workspace.
        """
        if page_size < 0:
            raise invalid_argument("page_size", "page_size must not be negative.")
        for name in ("workspace_id", "tier", "user_id", "service_account"):
            check_text(name, getattr(filters, name), NAME_CHARACTERS_MAX)
        check_text("description_contains", filters.description_contains, DESCRIPTION_CHARACTERS_MAX)
        if caller is not None and caller.role is not Role.ADMIN:
            filters = replace(filters, workspace_id=filters.workspace_id or caller.workspace_id)
            check_may_manage(caller, filters.workspace_id, "ListApiKeys")
            if caller.role is Role.USER:
                if filters.user_id not in ("", caller.user_id):
                    raise denied("ListApiKeys", "You may see your own keys only.")
                filters = replace(filters, user_id=caller.user_id)
        limit = min(page_size or PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)
        after = _read_token(page_token, filters) if page_token else None
        keys = await self._store.list_keys(filters, after=after, limit=limit + 1, now=self._clock.time())
        page = tuple(keys[:limit])
        return KeyPage(page, _write_token(page[-1], filters) if len(keys) > limit else "")

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
        facts = {"workspace": workspace_facts(first), "api_key": key_facts(key)}
        entry = self._auditor.entry(BOOTSTRAP, first.workspace_id, workspace_id=first.workspace_id, after=facts)
        if await self._store.bootstrap(first, key, made.digest, entry):
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
        await self._store.insert_key(key, made.digest, self._creation(key))
        return MadeKey(key, made.text)

    def _own(self, caller: Principal, wish: KeyWish) -> KeyWish:
        """A user's wish for a key of their own. Raises NaruError PERMISSION_DENIED."""
        if not self._user_keys:
            raise denied("CreateApiKey", "Users make no keys here; an administrator can make you one.")
        if wish.service_account:
            raise denied(
                "CreateApiKey", "Your keys belong to you; a workspace's admin makes those of service accounts."
            )
        return replace(wish, user_id=wish.user_id or caller.user_id)

    async def _check_owner(self, user_id: str, workspace_id: str) -> None:
        """Raises NaruError NOT_FOUND or INVALID_ARGUMENT for a user whose key in this workspace would never work."""
        if not user_id:
            return
        owner = await self._store.get_owner(user_id, workspace_id)
        if owner is None:
            raise not_found("user", user_id)
        if owner.role is None:
            raise invalid_argument("user_id", "The user does not belong to the workspace of the key.")

    def _creation(self, key: ApiKey) -> AuditEntry:
        return self._auditor.entry(CREATE_KEY, key.key_id, workspace_id=key.workspace_id, after=key_facts(key))


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
    check_text("user_id", wish.user_id, USER_ID_CHARACTERS_MAX)
    if wish.user_id and wish.service_account:
        raise invalid_argument("user_id", "A key belongs to a user or to a service account, not to both.")
    check_metadata(wish.metadata)


def _write_token(last: ApiKey, filters: KeyFilters) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.create_time, last.key_id, *astuple(filters)]).encode()).decode()


def _read_token(token: str, filters: KeyFilters) -> PageStart:
    wrong = invalid_argument(
        "page_token", "page_token must be the next_page_token of the page before, with the same filters."
    )
    try:
        create_time, key_id, *rest = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError):
        raise wrong from None
    if rest != [*astuple(filters)] or not isinstance(create_time, float) or not isinstance(key_id, str):
        raise wrong
    if not 0 <= create_time < _TIME_MAX or not _KEY_ID.fullmatch(key_id):
        raise wrong
    return PageStart(create_time, key_id)
