"""Puts together what tokens that others make need: the part of `app.py` that is about them."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from authsvc.config import AuthsvcConfig
from authsvc.fetching import fetching
from authsvc.foreign_authentication import ForeignAuthenticator, Home, OpenWebui, Provider
from authsvc.foreign_store import ForeignStore
from authsvc.foreign_tokens import SharedSecret
from authsvc.people_audit import PeopleAudit
from authsvc.provider_keys import ProviderKeys
from authsvc.shared import Shared
from naru.clock import Clock
from naru.ids import uuid7
from naru.lifecycle import Background


@dataclass(frozen=True, slots=True)
class Foreign:
    """What the rest of the service uses of it. `keys` None: there is no OpenID provider."""

    authenticator: ForeignAuthenticator
    keys: ProviderKeys | None

    def start(self, background: Background) -> None:
        """Keeps the provider's keys fresh."""
        if self.keys is not None:
            _ = background.start("OpenID provider's keys", self.keys.run())


async def open_foreign(shared: Shared, stack: AsyncExitStack) -> Foreign:
    """Makes it, whatever of it is switched on; `stack` ends what it opened."""
    config = shared.config
    sessions, users = config.openwebui_secret_key, config.openwebui_user_jwt_secret
    provider = await _provider(config, shared.clock, stack)
    authenticator = ForeignAuthenticator(
        store=ForeignStore(shared.database),
        audit=PeopleAudit(shared.auditor),
        clock=shared.clock,
        new_id=uuid7,
        openwebui=OpenWebui(
            SharedSecret(sessions) if sessions else None,
            SharedSecret(users) if users else None,
            Home(config.openwebui_workspace, config.openwebui_tier, config.openwebui_new_users == "blocked"),
        ),
        provider=provider,
    )
    return Foreign(authenticator, None if provider is None else provider.keys)


async def _provider(config: AuthsvcConfig, clock: Clock, stack: AsyncExitStack) -> Provider | None:
    policy = config.claim_policy()
    if policy is None:
        return None
    fetch = await stack.enter_async_context(fetching(insecure_http=config.oidc_insecure_http))
    keys = ProviderKeys(policy.issuer, config.oidc_algorithms, fetch, clock)
    stack.push_async_callback(keys.close)
    return Provider(policy, keys, Home(config.oidc_workspace, config.oidc_tier))
