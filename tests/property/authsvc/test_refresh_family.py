"""A session's refresh tokens against a model of them, one after the other and many at once, on a real database."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from authsvc.invalidations import InvalidationFeed
from authsvc.keys import Pepper, Peppers, SecretDigest
from authsvc.migrations import MIGRATIONS
from authsvc.passwords import Passwords
from authsvc.records import ApiKey, Workspace
from authsvc.sessions import GivenTokens, RegistrationMode, SessionManager, SessionPolicy
from authsvc.sessions_store import SessionStore
from authsvc.signing import KeyRing
from authsvc.store import KeyStore
from authsvc.throttle import LoginThrottle
from authsvc.token_authentication import TokenAuthenticator
from authsvc.tokens import SKEW_SECONDS, TokenPolicy
from authsvc.user_records import Membership, User
from authsvc.users_store import UserStore
from naru.database import Database
from naru.errors import NaruError, Reason
from naru.identity import Role
from naru.ids import uuid7
from naru.testing.clock import FakeClock
from tests.support.auth_store import bootstrap, people_audit

GRACE = 10.0
EMAIL, PASSWORD = "ann@example.com", "correct horse battery"
POLICY = TokenPolicy("naru", "naru", 900.0)
PASSWORDS = Passwords(memory_kib=8)


class World:
    """Everything that sessions need, on a database of its own."""

    def __init__(self, folder: str) -> None:
        self.clock = FakeClock()
        self.database = Database(f"sqlite+aiosqlite:///{folder}/authsvc.db")
        peppers = Peppers([Pepper(1, b"p" * 32)])
        self.store, self.users, keys = SessionStore(self.database), UserStore(self.database), KeyStore(self.database)
        self.keys = keys
        self.ring = KeyRing(
            store=self.store,
            peppers=peppers,
            clock=self.clock,
            random_bytes=os.urandom,
            new_id=uuid7,
            rotation=1e9,
            lifetime=900.0,
        )
        self.manager = SessionManager(
            users=self.users,
            sessions=self.store,
            keys=keys,
            audit=people_audit(self.clock),
            feed=InvalidationFeed(keys, self.clock),
            ring=self.ring,
            passwords=PASSWORDS,
            throttle=LoginThrottle(self.clock),
            peppers=peppers,
            clock=self.clock,
            random_bytes=os.urandom,
            new_id=uuid7,
            policy=SessionPolicy(POLICY, RegistrationMode.OFF, 3_600.0, GRACE),
        )
        self.tokens = TokenAuthenticator(store=self.store, ring=self.ring, policy=POLICY, clock=self.clock)

    async def prepare(self) -> None:
        await MIGRATIONS.upgrade(self.database)
        await self.ring.turn()
        workspace = Workspace("w", "default", "free", 1.0)
        await bootstrap(self.keys, workspace, ApiKey("k" * 12, "w", 1.0), SecretDigest(1, bytes(32)))
        user = User(uuid7(), EMAIL, 1.0, default_workspace_id="w")
        seat = Membership("w", user.user_id, Role.USER, 1.0)
        await self.users.insert_user(user, await PASSWORDS.hash(PASSWORD), seat, ())

    async def login(self) -> GivenTokens:
        return await self.manager.login(email=EMAIL, password=PASSWORD, client_address="")


class Family:
    """The model of one session: the tokens it gave, oldest first, and when each was spent."""

    def __init__(self, token: str, ends: float) -> None:
        self.tokens = [token]
        self.spent: list[float] = []
        self.ends = ends
        self.revoked = False
        self.access: list[tuple[str, float]] = []

    def refresh(self, index: int, now: float) -> str:
        """What becomes of a refresh: "new", "again", or "refused"."""
        if self.revoked or now >= self.ends:
            return "refused"
        if index == len(self.tokens) - 1:
            return "new"
        if index == len(self.tokens) - 2 and now - self.spent[index] <= GRACE:
            return "again"
        self.revoked = True
        return "refused"


class RefreshFamilies(RuleBasedStateMachine):
    """Sessions that are refreshed, replayed, ended, and left alone."""

    families = Bundle("families")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._runner = asyncio.Runner()
        self.world = World(self._folder.name)
        self.all: list[Family] = []
        self.do(self.world.prepare())

    def do(self, work: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await work

        return self._runner.run(run())

    def teardown(self) -> None:
        self.do(self.world.database.close())
        self._runner.close()
        self._folder.cleanup()

    async def attempt(self, token: str) -> GivenTokens | None:
        """The tokens; None when refused, for which there is one reason only."""
        try:
            return await self.world.manager.refresh(token)
        except NaruError as error:
            if error.reason is not Reason.INVALID_CREDENTIALS:
                raise
            return None

    @rule(target=families)
    def log_in(self) -> Family:
        given = self.do(self.world.login())
        family = Family(given.refresh_token, self.world.clock.time() + 3_600.0)
        family.access.append((given.access_token, self.world.clock.time()))
        self.all.append(family)
        return family

    @rule(family=families, back=st.integers(0, 3), times=st.integers(1, 4))
    def refresh(self, family: Family, back: int, times: int) -> None:
        """One token of the family, the newest or one before, once or several times at the same moment."""
        index = max(len(family.tokens) - 1 - back, 0)
        now = self.world.clock.time()
        expected = family.refresh(index, now)

        async def together() -> list[GivenTokens | None]:
            return list(await asyncio.gather(*(self.attempt(family.tokens[index]) for _ in range(times))))

        answers = self.do(together())
        if expected == "refused":
            assert answers == [None] * times
            return
        given = {answer.refresh_token for answer in answers if answer is not None}
        assert None not in answers
        assert len(given) == 1, "all that raced have one successor"
        family.access += [(answer.access_token, now) for answer in answers if answer is not None]
        if expected == "new":
            (token,) = given
            assert token not in family.tokens
            family.tokens.append(token)
            family.spent.append(now)
        else:
            assert given == {family.tokens[index + 1]}

    @rule(family=families, everywhere=st.booleans(), back=st.integers(0, 2))
    def log_out(self, family: Family, everywhere: bool, back: int) -> None:
        token = family.tokens[max(len(family.tokens) - 1 - back, 0)]
        lives = not family.revoked and self.world.clock.time() < family.ends
        self.do(self.world.manager.logout(token, everywhere=everywhere))
        if not everywhere:
            family.revoked = True
        elif lives:
            for one in self.all:
                one.revoked = True

    @rule(seconds=st.sampled_from([0.5, GRACE - 0.5, GRACE + 0.5, 1_000.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)

    @rule(family=families)
    def forge(self, family: Family) -> None:
        """A token with a wrong secret is refused and does nothing to the session."""
        token = family.tokens[-1]
        assert self.do(self.attempt(token[:-1] + ("A" if token[-1] != "A" else "B"))) is None

    @invariant()
    def access_follows_the_session(self) -> None:
        """The last access token works just while its session goes on and it is young enough."""
        now = self.world.clock.time()
        for family in self.all[-2:]:
            token, made = family.access[-1]
            good = not family.revoked and now < family.ends and now < int(made) + POLICY.lifetime + SKEW_SECONDS
            assert self.do(self.works(token)) is good

    async def works(self, token: str) -> bool:
        """Whether an access token is good."""
        try:
            await self.world.tokens.resolve(token)
        except NaruError as error:
            if error.reason is not Reason.INVALID_API_KEY:
                raise
            return False
        return True


TestRefreshFamilies = RefreshFamilies.TestCase
TestRefreshFamilies.settings = settings(max_examples=8, stateful_step_count=15, suppress_health_check=list(HealthCheck))
