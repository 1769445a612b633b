"""What counts as a failed log-in."""

from __future__ import annotations

import os

import pytest

from authsvc.invalidations import InvalidationFeed
from authsvc.keys import Pepper, Peppers
from authsvc.passwords import Passwords
from authsvc.sessions import RegistrationMode, SessionManager, SessionPolicy
from authsvc.sessions_store import SessionStore
from authsvc.store import KeyStore
from authsvc.throttle import LoginThrottle
from authsvc.tokens import TokenPolicy
from authsvc.user_records import User
from authsvc.users_store import UserStore
from naru.database import Database
from naru.errors import NaruError, Reason, unavailable
from naru.ids import uuid7
from naru.testing.clock import FakeClock
from tests.support.auth_store import people_audit
from tests.support.signing import key_ring

EMAIL, ADDRESS = "ann@example.com", "192.0.2.1"


class BusyPasswords(Passwords):
    """Has too many waiting, while it is busy."""

    busy = True

    async def matches(self, password: str, stored: str | None) -> bool:
        if self.busy:
            raise NaruError(Reason.OVERLOADED, "Too many log-ins at the same time.")
        return await super().matches(password, stored)


class AwayUsers(UserStore):
    """Has no database, while it is away."""

    away = False

    async def find_by_email(self, email: str) -> tuple[User, str] | None:
        if self.away:
            raise unavailable("database")
        return await super().find_by_email(email)


async def test_what_nobody_looked_at_is_no_failure(database: Database) -> None:
    """While hashing is busy or the database away, log-ins use nothing up, and make no address the account's."""
    clock, keys, sessions = FakeClock(), KeyStore(database), SessionStore(database)
    users, passwords, throttle = AwayUsers(database), BusyPasswords(memory_kib=8), LoginThrottle(clock)
    peppers, lifetime = Peppers([Pepper(1, b"p" * 32)]), 60.0
    manager = SessionManager(
        users=users,
        sessions=sessions,
        keys=keys,
        audit=people_audit(clock),
        feed=InvalidationFeed(keys, clock),
        ring=key_ring(sessions, peppers, clock),
        passwords=passwords,
        throttle=throttle,
        peppers=peppers,
        clock=clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        policy=SessionPolicy(TokenPolicy("naru", "naru", lifetime), RegistrationMode.OFF, lifetime, lifetime),
    )

    async def reasons(number: int) -> list[Reason]:
        """How so many log-ins end."""
        ends = []
        for _ in range(number):
            with pytest.raises(NaruError) as failure:
                await manager.login(email=EMAIL, password="guess-guess", client_address=ADDRESS)
            ends.append(failure.value.reason)
        return ends

    assert await reasons(9) == [Reason.OVERLOADED] * 9
    passwords.busy, users.away = False, True
    assert await reasons(9) == [Reason.SERVICE_UNAVAILABLE] * 9
    users.away = False
    assert not throttle.knows(EMAIL, ADDRESS)
    assert await reasons(7) == [Reason.INVALID_CREDENTIALS] * 5 + [Reason.RATE_LIMIT_EXCEEDED] * 2
    passwords.close()
