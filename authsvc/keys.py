"""Making API keys and checking their secrets: pure, with randomness and peppers passed in.

A secret is stored only as HMAC-SHA-256 under a pepper that is not in the database, so a copy of the database alone lets
nobody test a guess.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from naru import api_key

PEPPER_BYTES_MIN = 32


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


class Peppers:
    """The peppers of an installation: new digests use the first, old ones are checked with the one they name.

    Raises ValueError without a pepper, for a version used twice, and for a pepper shorter than 32 bytes.
    """

    def __init__(self, peppers: Iterable[Pepper]) -> None:
        ordered = tuple(peppers)
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

    def _hmac(self, version: int, secret: str) -> bytes:
        return hmac.digest(self._values[version], secret.encode(), "sha256")


def new_key(peppers: Peppers, random_bytes: Callable[[int], bytes]) -> NewKey:
    """Makes a key from `random_bytes(n)`, such as `os.urandom`."""
    text = api_key.generate(random_bytes)
    parsed = api_key.parse(text)
    return NewKey(parsed.key_id, text, peppers.digest(parsed.secret))
