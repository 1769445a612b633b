"""The keys that access tokens are signed with: made, kept encrypted, published before they are used, and kept after.

A key is made when the newest is `rotation` old, published at once, used for signing once every cache of the published keys has
had time to see it, and dropped when no token that it signed can be good any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from authsvc.keys import Peppers
from authsvc.sessions_store import SessionStore
from authsvc.tokens import SKEW_SECONDS, SigningKey
from authsvc.user_records import StoredSigningKey
from naru.clock import Clock
from naru.errors import NaruError, unavailable
from naru.logs import get_logger

PUBLISHED_SECONDS = 300.0
"""How long a copy of the published keys may be kept."""
LEAD_SECONDS = 2 * PUBLISHED_SECONDS
"""How long a new key is published before it signs."""
_RELOAD_SECONDS = 5.0
_CHECK_SECONDS = 60.0
_NONCE_BYTES = 12
_PURPOSE = "naru signing key"
_log = get_logger(__name__)


class KeyRing:
    """Knows the keys of all replicas, by reading the store every minute and when a token names an unknown one.

    Args:
        rotation: Seconds after which a new key is made.
        lifetime: Seconds for which an access token is good.
    """

    def __init__(
        self,
        *,
        store: SessionStore,
        peppers: Peppers,
        clock: Clock,
        random_bytes: Callable[[int], bytes],
        new_id: Callable[[], str],
        rotation: float,
        lifetime: float,
    ) -> None:
        self._store = store
        self._peppers = peppers
        self._clock = clock
        self._random_bytes = random_bytes
        self._new_id = new_id
        self._rotation = rotation
        self._kept = LEAD_SECONDS + lifetime + 2 * SKEW_SECONDS
        self._keys: dict[str, SigningKey] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    @property
    def published(self) -> tuple[SigningKey, ...]:
        """All keys whose tokens may be good, newest first."""
        return tuple(sorted(self._keys.values(), key=lambda key: (-key.create_time, key.kid)))

    def find(self, kid: str) -> SigningKey | None:
        """The key of that id, among those read last."""
        return self._keys.get(kid)

    def signing(self) -> SigningKey:
        """The key to sign with: the newest that was published long enough, or the oldest when none was.

        Raises NaruError SERVICE_UNAVAILABLE before the first one was read.
        """
        if not self._keys:
            raise unavailable("authsvc", "There is no signing key yet.")
        newest_first, before = self.published, self._clock.time() - LEAD_SECONDS
        return next((key for key in newest_first if key.create_time <= before), newest_first[-1])

    async def look_for(self, kid: str) -> None:
        """Reads the store when it does not know `kid`, at most every 5 seconds. Raises NaruError SERVICE_UNAVAILABLE."""
        if self._may_look_for(kid):
            async with self._reading:
                # Whoever was before us may have read it while we waited.
                if self._may_look_for(kid):
                    await self._turn()

    async def turn(self) -> None:
        """Reads the keys, makes one when it is time, drops those that are of no use. Raises NaruError SERVICE_UNAVAILABLE."""
        async with self._reading:
            await self._turn()

    async def run(self) -> None:
        """Turns every minute, for ever."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            try:
                await self.turn()
            except NaruError as error:
                _log.warning("the signing keys could not be read", error=error.message)

    def _may_look_for(self, kid: str) -> bool:
        return kid not in self._keys and self._clock.monotonic() - self._read_at >= _RELOAD_SECONDS

    async def _turn(self) -> None:
        keys = await self._read_or_make()
        self._keys = keys
        self._read_at = self._clock.monotonic()

    async def _read_or_make(self) -> dict[str, SigningKey]:
        now = self._clock.time()
        while True:
            stored = await self._store.list_signing_keys()
            dead = self._dead(stored, now)
            await self._store.delete_signing_keys(dead)
            keys = {key.kid: opened for key in stored if key.kid not in dead and (opened := self._open(key))}
            if any(key.create_time > now - self._rotation for key in keys.values()):
                return keys
            made, sealed = self._make(now)
            # Of replicas that begin at once one makes it: what each signed with its own the others would refuse at first.
            if await self._store.insert_signing_key(sealed, beside={key.kid for key in stored}):
                _log.info("a new signing key", kid=made.kid)
                return keys | {made.kid: made}

    def _dead(self, stored: Sequence[StoredSigningKey], now: float) -> list[str]:
        """Those whose successor has been there for so long that nothing they signed is good any more."""
        times = sorted(key.create_time for key in stored)
        return [
            key.kid
            for key in stored
            if any(key.create_time < time <= now - self._kept - _CHECK_SECONDS for time in times)
        ]

    def _make(self, now: float) -> tuple[SigningKey, StoredSigningKey]:
        kid, version = self._new_id(), self._peppers.current
        private = Ed25519PrivateKey.from_private_bytes(self._random_bytes(32))
        nonce = self._random_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher(version).encrypt(nonce, private.private_bytes_raw(), kid.encode())
        public = private.public_key()
        return SigningKey(kid, private, public, now), StoredSigningKey(
            kid, public.public_bytes_raw(), sealed, version, now
        )

    def _open(self, stored: StoredSigningKey) -> SigningKey | None:
        """None when the pepper that it was sealed under is gone: what it signed is no good any more."""
        if stored.pepper_version not in self._peppers.versions:
            return None
        nonce, sealed = stored.private_key[:_NONCE_BYTES], stored.private_key[_NONCE_BYTES:]
        try:
            raw = self._cipher(stored.pepper_version).decrypt(nonce, sealed, stored.kid.encode())
        except InvalidTag:
            _log.error("a signing key cannot be read", kid=stored.kid)
            return None
        private = Ed25519PrivateKey.from_private_bytes(raw)
        return SigningKey(stored.kid, private, private.public_key(), stored.create_time)

    def _cipher(self, pepper_version: int) -> AESGCM:
        return AESGCM(self._peppers.derive(pepper_version, _PURPOSE))
