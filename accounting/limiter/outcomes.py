"""What became of requests that have an idempotency key: kept encrypted for a while, to be answered again."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from accounting.idempotency import (
    Fate,
    Held,
    HeldState,
    KeptOutcome,
    Replay,
    held_error,
    scope_of,
    unsupported_error,
)
from accounting.limiter.limiter import Limiter
from naru.errors import NaruError
from naru.identity import Principal
from naru.logs import Logger
from naru.metrics import Metrics

_INFO = b"naru accounting outcomes 1"
_NONCE_BYTES = 12


class Sealer:
    """Encrypts outcomes by AES-256-GCM, each bound to its event and to whose it is.

    Args:
        secret: What the key is derived from.
        random_bytes: Makes as many random bytes as it is told to.
    """

    def __init__(self, secret: str, random_bytes: Callable[[int], bytes]) -> None:
        derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=_INFO).derive(secret.encode())
        self._cipher = AESGCM(derived)
        self._random_bytes = random_bytes

    def seal(self, outcome: bytes, event_id: str, scope: str) -> str:
        """The outcome as text that tells nothing of it but about how long it is, compressed."""
        nonce = self._random_bytes(_NONCE_BYTES)
        # Streams repeat themselves: a tenth is left of them.
        ciphertext = self._cipher.encrypt(nonce, zlib.compress(outcome, 1), _bound(event_id, scope))
        return base64.b64encode(nonce + ciphertext).decode()

    def unseal(self, sealed: str, event_id: str, scope: str) -> bytes | None:
        """The outcome; None when it is not what was sealed for this event and scope with this secret."""
        try:
            raw = base64.b64decode(sealed, validate=True)
            return zlib.decompress(
                self._cipher.decrypt(raw[:_NONCE_BYTES], raw[_NONCE_BYTES:], _bound(event_id, scope))
            )
        except (InvalidTag, ValueError, binascii.Error, zlib.error):
            return None


def _bound(event_id: str, scope: str) -> bytes:
    return f"{event_id}\n{scope}".encode()


class Outcomes:
    """Keeps outcomes and answers with them.

    Args:
        sealer: None: there is no secret, and no request may have a key.
    """

    def __init__(self, limiter: Limiter, sealer: Sealer | None, *, logger: Logger, metrics: Metrics) -> None:
        self._limiter = limiter
        self._sealer = sealer
        self._logger = logger
        self._kept = metrics.counter("naru_outcomes_total", "Fates of requests with an idempotency key.", ("fate",))

    @property
    def supported(self) -> bool:
        """Whether requests may have idempotency keys."""
        return self._sealer is not None

    async def keep(self, kept: KeptOutcome) -> bool:
        """Notes what became of a request. Tells whether its key was its own still.

        Raises NaruError NOT_SUPPORTED, or SERVICE_UNAVAILABLE when Redis is away.
        """
        if self._sealer is None:
            raise unsupported_error()
        sealed = ""
        if kept.fate is Fate.ANSWERED:
            sealed = self._sealer.seal(kept.outcome, kept.event_id, scope_of(kept.principal))
        known = await self._limiter.keep(kept, sealed)
        self._kept.labels(kept.fate if known else "unknown").inc()
        return known

    def answer(self, held: Held, principal: Principal) -> Replay | NaruError:
        """What to answer `principal` in place of a request whose key had `held` before."""
        if held.state is HeldState.ANSWERED and self._sealer is not None and held.sealed:
            outcome = self._sealer.unseal(held.sealed, held.event_id, scope_of(principal))
            if outcome is not None:
                return Replay(outcome)
            self._logger.error("a kept outcome cannot be decrypted", event_id=held.event_id)
        return held_error(held)
