"""How long a log-in of an unknown address takes, against one with a wrong password: `python -m bench.login_times`.

Pairs are made one after the other, in turns, through SessionManager on SQLite; medians and how far they are apart are printed.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time

from authsvc.audit import Auditor, Origin
from authsvc.invalidations import InvalidationFeed
from authsvc.keys import Pepper, Peppers, SecretDigest
from authsvc.migrations import MIGRATIONS
from authsvc.passwords import Passwords
from authsvc.people_audit import PeopleAudit
from authsvc.records import ApiKey, Workspace
from authsvc.sessions import RegistrationMode, SessionManager, SessionPolicy
from authsvc.sessions_store import SessionStore
from authsvc.signing import KeyRing
from authsvc.store import KeyStore
from authsvc.throttle import Allowance, LoginThrottle, ThrottlePolicy
from authsvc.tokens import TokenPolicy
from authsvc.user_records import Membership, User
from authsvc.users_store import UserStore
from naru.clock import SystemClock
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.identity import Role
from naru.ids import uuid7

KNOWN, UNKNOWN = "known@example.com", "nobody@example.com"


async def measure(pairs: int, folder: str) -> tuple[float, float]:
    """The medians in seconds: of an unknown address, of a wrong password."""
    clock, database = SystemClock(), Database(f"sqlite+aiosqlite:///{folder}/authsvc.db")
    await MIGRATIONS.upgrade(database)
    keys, users, sessions = KeyStore(database), UserStore(database), SessionStore(database)
    peppers, passwords = Peppers([Pepper(1, os.urandom(32))]), Passwords()
    ring = KeyRing(
        store=sessions,
        peppers=peppers,
        clock=clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        rotation=1e9,
        lifetime=900.0,
    )
    auditor = Auditor(origin=lambda: Origin("service:bench"), clock=clock, new_id=uuid7)
    audit = PeopleAudit(auditor)
    free = Allowance(1_000_000, 1e-9)
    manager = SessionManager(
        users=users,
        sessions=sessions,
        keys=keys,
        audit=audit,
        feed=InvalidationFeed(keys, clock),
        ring=ring,
        passwords=passwords,
        throttle=LoginThrottle(clock, ThrottlePolicy(free, free, free)),
        peppers=peppers,
        clock=clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        policy=SessionPolicy(TokenPolicy("naru", "naru", 900.0), RegistrationMode.OFF, 3_600.0, 10.0),
    )
    entry = auditor.entry("installation.bootstrap", "w")
    await keys.bootstrap(
        Workspace("w", "w", "free", 1.0), ApiKey("k" * 12, "w", 1.0), SecretDigest(1, bytes(32)), entry
    )
    user = User(uuid7(), KNOWN, 1.0, default_workspace_id="w")
    password_hash = await passwords.hash("the right one")
    seat = Membership("w", user.user_id, Role.USER, 1.0)
    await users.insert_user(user, password_hash, seat, audit.user_created(user, seat))
    taken: dict[str, list[float]] = {UNKNOWN: [], KNOWN: []}
    for number in range(pairs + 5):
        for email in (UNKNOWN, KNOWN) if number % 2 else (KNOWN, UNKNOWN):
            started = time.perf_counter()
            try:
                await manager.login(email=email, password="a wrong one", client_address="")
            except NaruError as error:
                if error.reason is not Reason.INVALID_CREDENTIALS:
                    raise
            if number >= 5:
                taken[email].append(time.perf_counter() - started)
    await database.close()
    passwords.close()
    return statistics.median(taken[UNKNOWN]), statistics.median(taken[KNOWN])


def main() -> None:
    """Prints the medians of 300 pairs, or as many as are named."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    with tempfile.TemporaryDirectory() as folder:
        unknown, wrong = asyncio.run(measure(pairs, folder))
    apart = abs(unknown - wrong) / wrong * 100
    print(
        f"{pairs} pairs: unknown address {unknown * 1000:.2f} ms, wrong password {wrong * 1000:.2f} ms, {apart:.1f} % apart"
    )


if __name__ == "__main__":
    main()
