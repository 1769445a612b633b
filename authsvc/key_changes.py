"""Showing one key and changing it: who may, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from authsvc.audit import REVOKE_KEY, AuditEntry, Auditor, key_entry
from authsvc.checks import (
    DESCRIPTION_CHARACTERS_MAX,
    NAME_CHARACTERS_MAX,
    check_expire_time,
    check_id,
    check_metadata,
    check_request_id,
    check_scopes,
    check_text,
    within_scopes,
)
from authsvc.invalidations import InvalidationFeed
from authsvc.key_rights import (
    check_may_change,
    check_may_give_end,
    check_may_give_tier,
    check_may_manage,
    check_may_manage_all,
    check_may_rotate,
    check_may_stop,
    check_own_update,
    check_sees,
    denied,
    maker_of,
    request_mark,
)
from authsvc.key_store import Change, KeyChanges
from authsvc.keys import Peppers, new_secret
from authsvc.management import MadeKey
from authsvc.records import ApiKey
from authsvc.store import KeyStore
from naru.clock import Clock
from naru.errors import NaruError, Reason, invalid_argument, not_found
from naru.identity import Principal, Scopes

GRACE_SECONDS = 24 * 3600.0
"""How long earlier secrets work on where a rotation does not say."""
GRACE_SECONDS_MAX = 30 * 24 * 3600.0
_UPDATE, _ROTATE, _REVOKE, _BLOCK, _UNBLOCK = (
    f"{verb}ApiKey" for verb in ("Update", "Rotate", "Revoke", "Block", "Unblock")
)


@dataclass(frozen=True, slots=True)
class KeyUpdate:
    """What of a key shall be other than it is; None: stays. `expire_time` as (time or None for never,)."""

    description: str | None = None
    tier: str | None = None
    expire_time: tuple[float | None] | None = None
    models: tuple[str, ...] | None = None
    endpoints: tuple[str, ...] | None = None
    source_cidrs: tuple[str, ...] | None = None
    metadata: Mapping[str, str] | None = None

    def of(self, key: ApiKey) -> ApiKey:
        """The key as it shall be."""
        scopes = Scopes(
            key.scopes.models if self.models is None else self.models,
            key.scopes.endpoints if self.endpoints is None else self.endpoints,
            key.scopes.source_cidrs if self.source_cidrs is None else self.source_cidrs,
        )
        return replace(
            key,
            description=key.description if self.description is None else self.description,
            tier=key.tier if self.tier is None else self.tier,
            expire_time=key.expire_time if self.expire_time is None else self.expire_time[0],
            scopes=scopes,
            metadata=key.metadata if self.metadata is None else self.metadata,
        )


class KeyChanger:
    """Decides who may see and change a key, and does it.

    A caller who manages no keys is refused before anything is looked up, and a key that the caller does not manage is as one
    that is not there. Users manage their own keys.

    Args:
        store: Where keys are found.
        changes: Where they are changed.
        feed: Told of each change.
        auditor: Makes the audit's entries.
        peppers: What digests are made with.
        clock: Tells the time.
        random_bytes: Source of secrets, such as `os.urandom`.
    """

    def __init__(
        self,
        *,
        store: KeyStore,
        changes: KeyChanges,
        feed: InvalidationFeed,
        auditor: Auditor,
        peppers: Peppers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._store = store
        self._changes = changes
        self._feed = feed
        self._auditor = auditor
        self._peppers = peppers
        self._clock = clock
        self._random_bytes = random_bytes

    async def get(self, caller: Principal, key_id: str) -> ApiKey:
        """The key. Raises NaruError INVALID_ARGUMENT, PERMISSION_DENIED or NOT_FOUND."""
        _check_asked(caller, key_id, "GetApiKey")
        key = await self._store.get_key(key_id)
        if key is None:
            raise not_found("api_key", key_id)
        check_sees(caller, key)
        return key

    async def update(self, caller: Principal, key_id: str, update: KeyUpdate, request_id: str = "") -> ApiKey:
        """Changes what the update names.

        Raises:
            NaruError: INVALID_ARGUMENT naming the field; NOT_FOUND; PERMISSION_DENIED for a key that may do more than the
                caller, or would; FAILED_PRECONDITION for a revoked key.
        """
        _check_asked(caller, key_id, _UPDATE, request_id)
        _check_update(update, self._clock.time())
        workspace = await self._store.get_workspace(caller.workspace_id)
        maker = await maker_of(caller, self._store.get_key)

        def change(key: ApiKey) -> ApiKey:
            check_sees(caller, key)
            check_may_change(caller, key, _UPDATE)
            changed = update.of(key)
            check_own_update(caller, key, changed, _UPDATE)
            if changed.scopes != key.scopes and not within_scopes(changed.scopes, caller.scopes):
                raise denied(_UPDATE, "A key cannot be given more than you may do.")
            if changed.tier != key.tier:
                check_may_give_tier(caller, changed.tier, workspace, _UPDATE)
            if changed.expire_time != key.expire_time:
                check_may_give_end(maker, changed.expire_time, _UPDATE)
            _check_not_revoked(key)
            return changed

        return await self._change(key_id, change, "api_key.update")

    async def revoke(self, caller: Principal, key_id: str, request_id: str = "") -> ApiKey:
        """Revokes a key for good; one that is revoked stays as it is.

        Raises:
            NaruError: INVALID_ARGUMENT; NOT_FOUND; PERMISSION_DENIED for a key whose role is above the caller's.
        """
        _check_asked(caller, key_id, _REVOKE, request_id)

        def change(key: ApiKey) -> ApiKey:
            check_sees(caller, key)
            check_may_stop(caller, key, _REVOKE)
            return key if key.revoke_time is not None else replace(key, revoke_time=self._clock.time())

        return await self._change(key_id, change, REVOKE_KEY)

    async def block(self, caller: Principal, key_id: str, request_id: str = "") -> ApiKey:
        """Blocks a key; one that is blocked stays as it is. Raises NaruError as `revoke`, and FAILED_PRECONDITION."""
        check_may_manage_all(caller, _BLOCK)
        _check_asked(caller, key_id, _BLOCK, request_id)

        def change(key: ApiKey) -> ApiKey:
            check_sees(caller, key)
            check_may_stop(caller, key, _BLOCK)
            _check_not_revoked(key)
            return key if key.block_time is not None else replace(key, block_time=self._clock.time())

        return await self._change(key_id, change, "api_key.block")

    async def unblock(self, caller: Principal, key_id: str, request_id: str = "") -> ApiKey:
        """Unblocks a key; one that is not blocked stays as it is. Raises NaruError as `update`."""
        check_may_manage_all(caller, _UNBLOCK)
        _check_asked(caller, key_id, _UNBLOCK, request_id)

        def change(key: ApiKey) -> ApiKey:
            check_sees(caller, key)
            check_may_change(caller, key, _UNBLOCK)
            _check_not_revoked(key)
            return replace(key, block_time=None)

        return await self._change(key_id, change, "api_key.unblock")

    async def rotate(self, caller: Principal, key_id: str, grace: float | None = None, request_id: str = "") -> MadeKey:
        """Gives a key another secret.

        Args:
            caller: Whoever asks.
            key_id: Which key.
            grace: Seconds for which its secrets go on working, at most 30 days; None: 24 hours.
            request_id: A UUID; the same within 24 hours rotates nothing.

        Returns:
            The key and its new text; the text is empty when the same request rotated it before.

        Raises:
            NaruError: As `update`, PERMISSION_DENIED for a key of others that the caller could not make, and ALREADY_EXISTS
                for a request id used with another body.
        """
        _check_asked(caller, key_id, _ROTATE, request_id)
        grace = GRACE_SECONDS if grace is None else grace
        if not 0 <= grace <= GRACE_SECONDS_MAX:
            raise invalid_argument("grace_period", "grace_period must be between 0 and 30 days.")
        workspace = await self._store.get_workspace(caller.workspace_id)
        maker = await maker_of(caller, self._store.get_key)

        def check(key: ApiKey) -> None:
            check_sees(caller, key)
            check_may_change(caller, key, _ROTATE)
            check_may_rotate(caller, key, workspace, maker, _ROTATE)
            _check_not_revoked(key)

        made = new_secret(key_id, self._peppers, self._random_bytes)
        mark = request_mark(caller, request_id, {"rotate": key_id, "grace": grace})
        key, sequence = await self._changes.rotate(
            key_id, check, made.digest, self._tell("api_key.rotate"), time=self._clock.time(), grace=grace, mark=mark
        )
        if sequence is None:
            return MadeKey(key, "")
        self._feed.announce(sequence)
        return MadeKey(key, made.text)

    async def _change(self, key_id: str, change: Change, action: str) -> ApiKey:
        key, sequence = await self._changes.change(key_id, change, self._tell(action), self._clock.time())
        if sequence is not None:
            self._feed.announce(sequence)
        return key

    def _tell(self, action: str) -> Callable[[ApiKey, ApiKey], AuditEntry]:
        def tell(before: ApiKey, after: ApiKey) -> AuditEntry:
            return key_entry(self._auditor, action, before, after)

        return tell


def _check_asked(caller: Principal, key_id: str, rpc: str, request_id: str = "") -> None:
    check_may_manage(caller, caller.workspace_id, rpc)
    check_request_id(request_id)
    check_id("key_id", key_id)


def _check_update(update: KeyUpdate, now: float) -> None:
    check_text("api_key.description", update.description or "", DESCRIPTION_CHARACTERS_MAX)
    check_text("api_key.tier", update.tier or "", NAME_CHARACTERS_MAX)
    check_scopes(Scopes(update.models or (), update.endpoints or (), update.source_cidrs or ()))
    check_metadata(update.metadata or {})
    if update.expire_time is not None:
        check_expire_time(update.expire_time[0], now)


def _check_not_revoked(key: ApiKey) -> None:
    if key.revoke_time is not None:
        raise NaruError(
            Reason.FAILED_PRECONDITION,
            "The key is revoked, for good.",
            metadata={"resource": "api_key", "name": key.key_id},
        )
