"""Resolving a credential to whoever it belongs to."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from authsvc.keys import Peppers
from authsvc.records import DEFAULT_TIER, ApiKey, Position
from authsvc.store import KeyStore
from naru import api_key
from naru.clock import Clock
from naru.errors import invalid_api_key
from naru.identity import Principal

CREDENTIAL_CHARACTERS_MAX = 8_192


@dataclass(frozen=True, slots=True)
class Authentication:
    """Who a credential belongs to, what was known then, and when the credential ends (None: never)."""

    principal: Principal
    position: Position
    expire_time: float | None


class Authenticator:
    """Resolves API keys."""

    def __init__(self, store: KeyStore, peppers: Peppers, clock: Clock) -> None:
        self._store = store
        self._peppers = peppers
        self._clock = clock

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        """Who `credential` belongs to; raises as `resolve` does."""
        return (await self.resolve(credential, client_address)).principal

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
        stored = await self._store.look_up(parsed.key_id)
        # The digest comes first and is always computed, so that an unknown key takes as long as a wrong secret.
        matches = self._peppers.matches(parsed.secret, stored.digest)
        key = stored.key
        if not matches or key is None or not self._usable(key, client_address):
            raise invalid_api_key()
        principal = Principal(
            workspace_id=key.workspace_id,
            role=key.role,
            tier=key.tier or stored.workspace_tier or DEFAULT_TIER,
            key_id=key.key_id,
            user_id=key.user_id,
            service_account=key.service_account,
            scopes=key.scopes,
        )
        return Authentication(principal, stored.position, key.expire_time)

    def _usable(self, key: ApiKey, client_address: str) -> bool:
        if key.revoke_time is not None:
            return False
        if key.expire_time is not None and key.expire_time <= self._clock.time():
            return False
        return not client_address or not key.scopes.source_cidrs or _within(client_address, key.scopes.source_cidrs)


def _within(client_address: str, cidrs: tuple[str, ...]) -> bool:
    try:
        address = ipaddress.ip_address(client_address)
    except ValueError:
        return False
    # A dual-stack socket shows an IPv4 caller as ::ffff:a.b.c.d.
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(cidr) for cidr in cidrs)
