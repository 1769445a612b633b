"""Resolving a credential to whoever it belongs to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from authsvc.key_owners import Owner
from authsvc.key_store import Redigest
from authsvc.key_usage import KeyUsage
from authsvc.keys import Peppers
from authsvc.records import DEFAULT_TIER, ApiKey, KeyState, Position
from authsvc.store import KeyStore, StoredKey
from naru import api_key
from naru.addresses import is_within
from naru.clock import Clock
from naru.coalescing import Coalescer
from naru.errors import invalid_api_key
from naru.identity import Principal
from naru.lifecycle import Background

CREDENTIAL_CHARACTERS_MAX = 8_192
_KEYS_MAX = 256


@dataclass(frozen=True, slots=True)
class Authentication:
    """Who a credential belongs to, what was known then, and when the credential ends (None: never)."""

    principal: Principal
    position: Position
    expire_time: float | None


class Authenticator:
    """Resolves API keys.

    Args:
        store: Where they are found. Lookups at the same time share one query, and what is asked while it runs goes into
            the next one: an answer is never older than its question.
        peppers: What digests are made with.
        clock: Tells the time.
        usage: Told of each use.
        background: Owns the queries.
    """

    def __init__(
        self, store: KeyStore, peppers: Peppers, clock: Clock, usage: KeyUsage, background: Background
    ) -> None:
        self._store = store
        self._peppers = peppers
        self._clock = clock
        self._usage = usage
        self._stored: Coalescer[str, StoredKey] = Coalescer(self._look_up, background, most=_KEYS_MAX)

    async def resolve(self, credential: str, client_address: str = "") -> Authentication:
        """Who `credential` belongs to, and until when that holds.

        Args:
            credential: What the caller sent, without "Bearer ".
            client_address: The caller's address as the edge trusts it; empty: networks are not checked.

        Raises:
            NaruError: INVALID_API_KEY, one text for every cause; SERVICE_UNAVAILABLE when the database is away.
        """
        if len(credential) > CREDENTIAL_CHARACTERS_MAX:
            raise invalid_api_key()
        parsed = api_key.parse(credential)
        stored = await self._stored.ask(parsed.key_id)
        # The digests come first and are always computed, so that an unknown key takes as long as a wrong secret.
        matching = self._peppers.match(parsed.secret, [secret.digest for secret in stored.secrets])
        key = stored.key
        if matching is None or key is None or not self._usable(key, stored.owner, client_address):
            raise invalid_api_key()
        secret = stored.secrets[matching]
        if secret.expire_time is not None and secret.expire_time <= self._clock.time():
            raise invalid_api_key()
        self._usage.used(key.key_id)
        if matching == 0 and not self._peppers.is_current(secret.digest):
            self._usage.outdated(Redigest(key.key_id, secret.digest, self._peppers.digest(parsed.secret)))
        owner = stored.owner
        principal = Principal(
            workspace_id=key.workspace_id,
            role=key.role if owner is None else owner.at_most(key.role),
            tier=key.tier or ("" if owner is None else owner.tier) or stored.workspace_tier or DEFAULT_TIER,
            key_id=key.key_id,
            user_id=key.user_id,
            service_account=key.service_account,
            scopes=key.scopes,
        )
        ends = [time for time in (key.expire_time, secret.expire_time) if time is not None]
        return Authentication(principal, stored.position, min(ends, default=None))

    async def _look_up(self, key_ids: Sequence[str]) -> Sequence[StoredKey]:
        found = await self._store.look_up(list(dict.fromkeys(key_ids)), self._clock.time())
        return [found[key_id] for key_id in key_ids]

    def _usable(self, key: ApiKey, owner: Owner | None, client_address: str) -> bool:
        if key.state(self._clock.time()) is not KeyState.ACTIVE:
            return False
        # What a user may not do themselves, their keys may not do for them.
        if key.user_id and (owner is None or owner.blocked or owner.role is None):
            return False
        return not client_address or not key.scopes.source_cidrs or is_within(client_address, key.scopes.source_cidrs)
