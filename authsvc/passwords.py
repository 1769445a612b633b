"""Passwords: argon2id in a few threads of its own, so that neither the event loop nor the memory is anybody's to take."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
from argon2.exceptions import InvalidHashError, VerificationError

from naru import api_key
from naru.errors import NaruError, Reason, invalid_argument

PASSWORD_CHARACTERS_MIN = 8
PASSWORD_CHARACTERS_MAX = 1_024
_QUEUE_MAX = 32
_MADE_CHARACTERS = 24
Result = TypeVar("Result")


def check_length(password: str, field: str) -> None:
    """At most 1,024 characters: what a log-in may try. Raises NaruError INVALID_ARGUMENT naming `field`, not its text."""
    if len(password) > PASSWORD_CHARACTERS_MAX:
        raise invalid_argument(field, f"{field} has more than {PASSWORD_CHARACTERS_MAX} characters.")


def check_new(password: str, field: str) -> None:
    """8 to 1,024 characters: what a new password must have. Raises NaruError INVALID_ARGUMENT naming `field`."""
    check_length(password, field)
    if len(password) < PASSWORD_CHARACTERS_MIN:
        raise invalid_argument(field, f"{field} needs at least {PASSWORD_CHARACTERS_MIN} characters.")


def make_password(random_bytes: Callable[[int], bytes]) -> str:
    """A password of 24 letters and digits, 142 random bits, from `random_bytes(n)` such as `os.urandom`."""
    return api_key.base62(random_bytes, _MADE_CHARACTERS)


class Passwords:
    """Hashes and checks passwords.

    Args:
        threads: How many at the same time; each takes `memory_kib` while it works.
        memory_kib: Memory of one hash in KiB. Default: 46 MiB, OWASP's first recommendation for one pass.
        time_cost: Passes over it.
    """

    def __init__(self, *, threads: int = 2, memory_kib: int = 47_104, time_cost: int = 1) -> None:
        self._hasher = argon2.PasswordHasher(time_cost=time_cost, memory_cost=memory_kib, parallelism=1)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="argon2")
        self._most = threads + _QUEUE_MAX
        self._running = 0
        self._nobody = self._hasher.hash("nobody's password")

    async def hash(self, password: str) -> str:
        """What to store of a password. Raises NaruError OVERLOADED when too many wait."""
        return await self._work(lambda: self._hasher.hash(_normal(password)))

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether `stored` was made from `password`; without a stored hash it does the same work and says no.

        Raises NaruError OVERLOADED when too many wait.
        """
        equal = await self._work(lambda: self._verify(password, stored or self._nobody))
        return equal and stored is not None

    def is_outdated(self, stored: str) -> bool:
        """Whether `stored` was made with other parameters than these, and is to be made again."""
        return self._hasher.check_needs_rehash(stored)

    def close(self) -> None:
        """Ends the threads, after what they are at."""
        self._pool.shutdown(cancel_futures=True)

    def _verify(self, password: str, stored: str) -> bool:
        try:
            return self._hasher.verify(stored, _normal(password))
        except (VerificationError, InvalidHashError):
            return False

    async def _work(self, work: Callable[[], Result]) -> Result:
        if self._running >= self._most:
            raise NaruError(
                Reason.OVERLOADED,
                "Too many log-ins at the same time.",
                metadata={"service": "authsvc"},
                retry_after=1.0,
            )
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._running -= 1


def _normal(password: str) -> bytes:
    """The same password typed on another keyboard is the same bytes."""
    return unicodedata.normalize("NFKC", password).encode()
