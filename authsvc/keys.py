"""Making API keys and checking their secrets: pure, with randomness and peppers passed in.

A secret is stored only as HMAC-SHA-256 under a pepper that is not in the database, so a copy of the database alone lets
nobody test a guess.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from naru import api_key

PEPPER_BYTES_MIN = 32
EARLIER_SECRETS_MAX = 2
"""How many secrets of a key before its current one may work at the same time."""

Hmac = Callable[[bytes, bytes], bytes]
"""HMAC-SHA-256 of a key and a message."""


@dataclass(frozen=True, slots=True)
class SecretDigest:
    """What is stored of a secret: the HMAC, and the version of the pepper it was made with."""

    pepper_version: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Pepper:
    """One pepper. `value` is a secret: it is left out of the representation."""

    version: int
    value: bytes

    def __repr__(self) -> str:
        return f"Pepper(version={self.version})"


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key just made. `text` is the whole key, shown once: it is left out of the representation."""

    key_id: str
    text: str
    digest: SecretDigest

    def __repr__(self) -> str:
        return f"NewKey(key_id={self.key_id!r})"


def _hmac_sha256(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


class Peppers:
    """The peppers of an installation: new digests use the first, old ones are checked with the one they name.

    `hmac_sha256` does the work that both ways to fail have to do. Raises ValueError without a pepper, for a version used
    twice, and for a pepper shorter than 32 bytes.
    """

    def __init__(self, peppers: Iterable[Pepper], hmac_sha256: Hmac = _hmac_sha256) -> None:
        ordered = tuple(peppers)
        self._hmac_sha256 = hmac_sha256
        if not ordered:
            raise ValueError("at least one pepper is needed")
        self._values = {pepper.version: pepper.value for pepper in ordered}
        if len(self._values) != len(ordered):
            raise ValueError("each pepper needs a version of its own")
        for pepper in ordered:
            size = len(pepper.value)
            if size < PEPPER_BYTES_MIN:
                raise ValueError(f"pepper {pepper.version} has {size} bytes; at least {PEPPER_BYTES_MIN} are needed")
        self._current = ordered[0].version
        self._nobody = SecretDigest(self._current, bytes(hashlib.sha256().digest_size))

    @property
    def versions(self) -> frozenset[int]:
        """The versions a stored digest may name."""
        return frozenset(self._values)

    @property
    def current(self) -> int:
        """The version that new digests are made with."""
        return self._current

    def digest(self, secret: str) -> SecretDigest:
        """The digest to store for a new secret, under the current pepper."""
        return SecretDigest(self._current, self._hmac(self._current, secret))

    def matches(self, secret: str, stored: SecretDigest | None) -> bool:
        """Whether `stored` was made from `secret`, in constant time.

        Without a stored digest, or with one whose pepper is gone, it does the same work and says no.
        """
        known = stored is not None and stored.pepper_version in self._values
        expected = stored if stored is not None and known else self._nobody
        equal = hmac.compare_digest(self._hmac(expected.pepper_version, secret), expected.digest)
        return equal and known

    def match(self, secret: str, stored: Sequence[SecretDigest]) -> int | None:
        """Which of at most three digests was made from `secret`, in constant time; None: none of them.

        However many there are, it does the work of three.
        """
        found = None
        for index in range(1 + EARLIER_SECRETS_MAX):
            if self.matches(secret, stored[index] if index < len(stored) else None):
                found = index
        return found

    def is_current(self, digest: SecretDigest) -> bool:
        """Whether the digest was made under the current pepper."""
        return digest.pepper_version == self._current

    def derive(self, version: int, purpose: str, text: str = "") -> bytes:
        """32 bytes that only this pepper makes of `text`, others for each purpose. Raises KeyError for an unknown version."""
        return hmac.digest(self._values[version], f"{purpose}\0{text}".encode(), "sha256")

    def _hmac(self, version: int, secret: str) -> bytes:
        return self._hmac_sha256(self._values[version], secret.encode())


def new_key(peppers: Peppers, random_bytes: Callable[[int], bytes]) -> NewKey:
    """Makes a key from `random_bytes(n)`, such as `os.urandom`."""
    parsed = api_key.parse(api_key.generate(random_bytes))
    return _made(parsed.key_id, parsed.secret, peppers)


def new_secret(key_id: str, peppers: Peppers, random_bytes: Callable[[int], bytes]) -> NewKey:
    """As `new_key`, for a key that keeps its id."""
    return _made(key_id, api_key.parse(api_key.generate(random_bytes)).secret, peppers)


def _made(key_id: str, secret: str, peppers: Peppers) -> NewKey:
    # Not taken apart again: an id of no key is not found later, and is no wrong credential.
    return NewKey(key_id, api_key.format_key(key_id, secret), peppers.digest(secret))
