"""The Lua script against a model that counts by brute force."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from accounting.limiter.answers import Taken
from accounting.limiter.limiter import Limiter, connect
from accounting.quota import EventRef, Grant, Limit, LimitKind, LimitScope, LimitWindow, Reservation, Work
from accounting.settlement import Exact
from naru.clock import SystemClock
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.testing.redis_server import redis_server
from naru.usage import Evidence, Usage
from tests.support.copies import replace

SECOND = 1_000_000
START = 1_800_000_000 * SECOND
LEASE, LIFETIME = 60 * SECOND, 3_600 * SECOND
HOUR, DAY = 3_600 * SECOND, 86_400 * SECOND
ZONE = ZoneInfo("America/New_York")
KEY, WORKSPACE = LimitScope.KEY, LimitScope.WORKSPACE
LIMITS = (
    Limit(KEY, "k", LimitKind.REQUESTS, LimitWindow.MINUTE, 5),
    # On the same thing as the one before: counted once.
    Limit(KEY, "k", LimitKind.REQUESTS, LimitWindow.MINUTE, 2, shadow=True),
    Limit(KEY, "k", LimitKind.REQUESTS, LimitWindow.HOUR, 12),
    Limit(KEY, "k", LimitKind.INPUT_TOKENS, LimitWindow.MINUTE, 100),
    Limit(KEY, "k", LimitKind.TOTAL_TOKENS, LimitWindow.HOUR, 400, model="m"),
    Limit(KEY, "k", LimitKind.CONCURRENCY, LimitWindow.NONE, 3),
    Limit(WORKSPACE, "ws", LimitKind.OUTPUT_TOKENS, LimitWindow.DAY, 700),
    # Far above what JSON in Lua would keep exact.
    Limit(WORKSPACE, "ws", LimitKind.COST, LimitWindow.MONTH, 8_000_000_000_000_007),
    Limit(KEY, "k", LimitKind.REQUESTS, LimitWindow.DAY, 30),
    Limit(KEY, "k", LimitKind.OUTPUT_TOKENS, LimitWindow.TOTAL, 900),
    # A prepaid balance; above what doubles hold exactly.
    Limit(WORKSPACE, "ws", LimitKind.COST, LimitWindow.TOTAL, 9_007_199_254_740_995),
)
ROOMY = tuple(
    limit if limit.window is LimitWindow.MONTH else replace(limit, limit=limit.limit * 320) for limit in LIMITS
)
"""The same with room for spares, as far as doubles hold it exactly."""
TOKEN_PRICE = 3_333_333_333_333
WORK = Work(Principal("ws", key_id="k"))
TOKENS, FEW_TOKENS = st.integers(0, 120), st.integers(0, 9)


def cost_of(tokens: tuple[int, int]) -> int:
    """What so many tokens cost."""
    return sum(tokens) * TOKEN_PRICE


@lru_cache(maxsize=100_000)
def period(window: LimitWindow, hour: int) -> tuple[int, ...]:
    """The day or month of an hour since the Unix epoch."""
    date = datetime.fromtimestamp(hour * 3_600, ZONE)
    return (date.year, date.month, date.day) if window is LimitWindow.DAY else (date.year, date.month)


def ref(event: int, attempt: int) -> EventRef:
    """An event's name."""
    return EventRef(f"00000000-0000-7000-8000-{event:012d}", attempt)


@dataclass
class Made:
    """What the model remembers of one reservation."""

    state: str
    revision: int
    reserved: int
    lease: int
    counted: bool
    # Tokens in each window: when they were taken, and how many of each kind.
    taken: int = 0
    tokens: tuple[int, int] = (0, 0)
    rank: int = -1
    # What a repetition of a refused replacement is told.
    refusal: tuple[str, int | None] | None = None
    # A later attempt holds what this one held.
    over: bool = False
    # It has ended, and is not settled yet.
    finished: bool = False
    # Nobody is known to have used it.
    spare: bool = False


@dataclass
class Model:
    """Counts everything again for every question."""

    limits: tuple[Limit, ...]
    now: int = START
    made: dict[EventRef, Made] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)

    # Limits in shadow that would have refused, since the last look.
    shadows: list[Limit] = field(default_factory=list)

    def amount(self, kind: LimitKind, tokens: tuple[int, int]) -> int:
        return {
            LimitKind.INPUT_TOKENS: tokens[0],
            LimitKind.OUTPUT_TOKENS: tokens[1],
            LimitKind.TOTAL_TOKENS: sum(tokens),
            LimitKind.COST: cost_of(tokens),
        }[kind]

    def in_flight(self) -> set[EventRef]:
        return {name for name, one in self.made.items() if one.state == "open" and not one.over and not one.finished}

    def bucket(self, limit: Limit, time: int) -> Any:
        """The bucket or period that a time is in."""
        if limit.window.bucket_seconds:
            return time // (limit.window.bucket_seconds * SECOND)
        if limit.window is LimitWindow.TOTAL:
            return None
        return period(limit.window, time // HOUR)

    def entries(self, limit: Limit) -> list[tuple[Any, int]]:
        """Bucket and amount of all that was ever taken of a limit."""
        if limit.kind is LimitKind.REQUESTS:
            return [(self.bucket(limit, time), 1) for time in self.requests]
        made = [one for one in self.made.values() if not one.over]
        return [(self.bucket(limit, one.taken), self.amount(limit.kind, one.tokens)) for one in made]

    def used(self, limit: Limit, now: int) -> int:
        if limit.kind is LimitKind.CONCURRENCY:
            return len(self.in_flight())
        current = self.bucket(limit, now)
        if not limit.window.bucket_seconds:
            return sum(amount for bucket, amount in self.entries(limit) if bucket == current)
        return sum(amount for bucket, amount in self.entries(limit) if current - 60 <= bucket <= current)

    def refusal(self, tokens: tuple[int, int], *, counts: bool, place: bool) -> tuple[str, int | None] | None:
        """Why it does not fit: the reason, and how long until it would."""
        worst: tuple[str, int | None] | None = None
        for limit in self.limits:
            if limit.kind is LimitKind.CONCURRENCY:
                amount = 1 if place else 0
            elif limit.kind is LimitKind.REQUESTS:
                amount = 1 if counts else 0
            else:
                amount = self.amount(limit.kind, tokens)
            if amount == 0 or self.used(limit, self.now) + amount <= limit.limit:
                continue
            if limit.shadow:
                self.shadows.append(limit)
                continue
            if amount > limit.limit:
                too_large = limit.kind is not LimitKind.COST
                return (Reason.REQUEST_EXCEEDS_LIMIT if too_large else Reason.INSUFFICIENT_QUOTA), None
            if limit.window is LimitWindow.TOTAL:
                return Reason.INSUFFICIENT_QUOTA, None
            if limit.kind is LimitKind.CONCURRENCY:
                found: tuple[str, int] = (Reason.CONCURRENCY_LIMIT_EXCEEDED, SECOND)
            else:
                reason = Reason.INSUFFICIENT_QUOTA if limit.kind is LimitKind.COST else Reason.RATE_LIMIT_EXCEEDED
                found = (reason, self.fits_at(limit, amount) - self.now)
            if worst is None or found[1] > (worst[1] or 0):
                worst = found
        return worst

    def room_for_spares(self, tokens: tuple[int, int]) -> int:
        """How many spares of so many tokens there is room for: 64 times as much is left of every limit."""
        room = 1_000_000
        for limit in self.limits:
            counted = limit.kind in (LimitKind.REQUESTS, LimitKind.CONCURRENCY)
            amount = 1 if counted else self.amount(limit.kind, tokens)
            if amount:
                room = min(room, max(limit.limit - self.used(limit, self.now), 0) // (64 * amount))
        return room

    def fits_at(self, limit: Limit, amount: int) -> int:
        """The first beginning of a bucket at which the amount fits if nothing more is taken."""
        if not limit.window.bucket_seconds:
            hour, current = self.now // HOUR, self.bucket(limit, self.now)
            while period(limit.window, hour) == current:
                hour += 1
            return max(hour * HOUR, self.now + SECOND)
        width = limit.window.bucket_seconds * SECOND
        bucket = self.now // width + 1
        while self.used(limit, bucket * width) + amount > limit.limit:
            bucket += 1
        return bucket * width


class QuotaMachine(RuleBasedStateMachine):
    """Does the same to both, and compares every answer."""

    loop: asyncio.AbstractEventLoop
    limiter: Limiter
    redis: Any
    limits = LIMITS

    names = Bundle("names")
    batches = Bundle("batches")
    """Of spares that were taken together."""

    def run(self, coroutine: Any) -> Any:
        """Waits for the real one."""
        return self.loop.run_until_complete(coroutine)

    @initialize()
    def begin(self) -> None:
        self.run(self.redis.flushall())
        self.model = Model(self.limits)
        self.limiter.now = self.model.now
        self.run(self.limiter.begin_epoch("e", 0))
        self.events = 0

    @rule(
        seconds=st.one_of(
            st.integers(0, 90),
            st.integers(300, 3_700),
            st.sampled_from([0.4, 60, 61, 3_600, 40_000, 86_400, 3_000_000]),
        )
    )
    def wait(self, seconds: float) -> None:
        """Time passes; reservations are renewed or not by other rules."""
        self.model.now += round(seconds * SECOND)
        self.limiter.now = self.model.now
        # The script remembers the times it has seen.
        assert self.run(self.limiter.claim_expired(0, 30)) == []

    @rule(seconds=st.integers(1, 100))
    def clock_goes_back(self, seconds: int) -> None:
        """The clock of the machine is set back: nothing is decided by a time that is earlier than one seen."""
        self.limiter.now = self.model.now - seconds * SECOND

    @rule(target=names, tokens=st.tuples(TOKENS, TOKENS))
    def new_event(self, tokens: tuple[int, int]) -> Any:
        self.events += 1
        name = ref(self.events, 0)
        self.reserve((name, 0, tokens))
        return name

    @rule(target=names, tokens=st.tuples(TOKENS, TOKENS), name=names)
    def next_attempt(self, tokens: tuple[int, int], name: EventRef) -> Any:
        event_id = name.event_id
        attempt = max(known.attempt for known in [*self.model.made, name] if known.event_id == event_id) + 1
        if attempt > 3:
            return multiple()
        self.reserve((EventRef(event_id, attempt), 0, tokens))
        return EventRef(event_id, attempt)

    @rule(name=names, revision=st.integers(0, 3), tokens=st.tuples(TOKENS, TOKENS))
    def again(self, name: EventRef, revision: int, tokens: tuple[int, int]) -> None:
        self.reserve((name, revision, tokens))

    @rule(
        target=names,
        fresh=st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=4),
        known=st.lists(st.tuples(names, st.integers(0, 3), st.tuples(TOKENS, TOKENS)), max_size=3),
        order=st.randoms(use_true_random=False),
    )
    def batch(
        self, fresh: list[tuple[int, int]], known: list[tuple[EventRef, int, tuple[int, int]]], order: Any
    ) -> Any:
        """One call with several items: each is decided by what the ones before it left."""
        new = [(ref(self.events + index, 0), 0, tokens) for index, tokens in enumerate(fresh, 1)]
        self.events += len(new)
        # The first one's figures may get better in the same call.
        wanted = [*new, (new[0][0], 1, fresh[-1]), *known]
        order.shuffle(wanted)
        self.reserve(*wanted)
        return multiple(*(name for name, _, _ in new))

    def reserve(self, *wanted: tuple[EventRef, int, tuple[int, int]]) -> None:
        """Reserves in both, in one call; the model says what the answers must be."""
        items = [
            (Reservation(name, revision, WORK, *tokens, cost=cost_of(tokens)), self.limits)
            for name, revision, tokens in wanted
        ]
        verdict = self.run(self.limiter.reserve(items))
        for (name, revision, tokens), taken in zip(wanted, verdict.taken, strict=True):
            self.compare(name, revision, tokens, taken)

    def compare(self, name: EventRef, revision: int, tokens: tuple[int, int], taken: Taken) -> None:
        """One answer with that of the model."""
        self.model.shadows.clear()
        expected = self.expect(name, revision, tokens)
        if isinstance(expected, Made):
            assert taken.outcome == Grant(expected.reserved, expected.lease)
        else:
            reason, wait = expected
            assert isinstance(taken.outcome, NaruError)
            assert taken.outcome.reason == reason
            assert taken.outcome.retry_after == (None if wait is None else wait / SECOND)
        assert [notice.limit for notice in taken.notices] == self.model.shadows
        if not (isinstance(taken.outcome, NaruError) and taken.outcome.reason is Reason.FAILED_PRECONDITION):
            remaining = {state.limit: state.remaining for state in taken.limits}
            assert remaining == self.remaining()

    def expect(self, name: EventRef, revision: int, tokens: tuple[int, int]) -> Made | tuple[str, int | None]:
        """The grant or the refusal that the answer must be; the model changes as Redis does."""
        made = self.model.made.get(name)
        if made is None:
            return self.expect_first(name, revision, tokens)
        if made.over or made.finished:
            return Reason.FAILED_PRECONDITION, None
        if made.state == "refused" and revision <= made.revision:
            assert made.refusal is not None
            return made.refusal
        if made.state == "open" and revision <= made.revision:
            return made
        if made.state != "open" or self.model.now >= made.reserved + LIFETIME:
            return Reason.FAILED_PRECONDITION, None
        return self.expect_replacement(made, revision, tokens)

    def expect_first(self, name: EventRef, revision: int, tokens: tuple[int, int]) -> Made | tuple[str, int | None]:
        model = self.model
        earlier = [known for known in model.made if known.event_id == name.event_id and known.attempt < name.attempt]
        counts = not any(model.made[known].counted for known in earlier)
        before = [(model.made[known], model.made[known].spare) for known in earlier if not model.made[known].over]
        for one, _ in before:
            one.over, one.spare = True, False
        refusal = model.refusal(tokens, counts=counts, place=True)
        if refusal is not None:
            for one, spare in before:
                one.over, one.spare = False, spare
            return refusal
        if counts:
            model.requests.append(model.now)
        model.made[name] = Made("open", revision, model.now, model.now + LEASE, True, model.now, tokens)
        return model.made[name]

    def expect_replacement(self, made: Made, revision: int, tokens: tuple[int, int]) -> Made | tuple[str, int | None]:
        made.tokens, made.revision, made.spare = (0, 0), revision, False
        made.refusal = self.model.refusal(tokens, counts=False, place=False)
        if made.refusal is not None:
            made.state = "refused"
            return made.refusal
        made.tokens, made.taken = tokens, self.model.now
        made.lease = min(self.model.now + LEASE, made.reserved + LIFETIME)
        return made

    @rule(released=st.lists(names, min_size=1, max_size=3))
    def release(self, released: list[EventRef]) -> None:
        answers = self.run(self.limiter.release(released))
        assert answers == [self.expect_release(name) for name in released]

    def expect_release(self, name: EventRef) -> bool:
        made = self.model.made.get(name)
        expected = made is not None and made.state == "open"
        if made is None:
            self.model.made[name] = Made("released", 0, 0, 0, False)
        elif expected:
            made.state, made.tokens, made.spare = "released", (0, 0), False
        return expected

    @rule(target=batches, number=st.integers(1, 20), tokens=st.tuples(FEW_TOKENS, FEW_TOKENS))
    def spares(self, number: int, tokens: tuple[int, int]) -> Any:
        """As many as there is room for; asked again, they are the same."""
        model = self.model
        made = [ref(self.events + index, 0) for index in range(1, number + 1)]
        self.events += number
        ids = tuple(name.event_id for name in made)
        wanted = Reservation(made[0], 0, WORK, *tokens, cost=cost_of(tokens), spares=ids)
        room = min(model.room_for_spares(tokens), number)
        remaining = self.remaining()
        (taken,) = self.run(self.limiter.reserve([(wanted, self.limits)])).taken
        assert isinstance(taken.outcome, Grant)
        assert (taken.outcome.reserve_time, taken.outcome.spares) == (model.now, room)
        assert {state.limit: state.remaining for state in taken.limits} == remaining
        for name in made[:room]:
            model.requests.append(model.now)
            model.made[name] = Made("open", 0, model.now, model.now + LEASE, True, model.now, tokens, spare=True)
        if room:
            (again,) = self.run(self.limiter.reserve([(wanted, self.limits)])).taken
            assert again.outcome == taken.outcome
        return tuple(made[:room])

    @rule(target=names, batch=batches)
    def use_spares(self, batch: tuple[EventRef, ...]) -> Any:
        """From here on any of them may be what a request's reservation may be."""
        return multiple(*batch)

    @rule(batch=batches, others=st.lists(names, max_size=3, unique=True))
    def drop_spares(self, batch: tuple[EventRef, ...], others: list[EventRef]) -> None:
        """Spares that nobody used are as if they had never been; everything else stays."""
        unused = list(dict.fromkeys([*batch, *others]))
        known = [self.model.made.get(name) for name in unused]
        expected = [made is not None and made.spare and made.state == "open" and not made.finished for made in known]
        assert self.run(self.limiter.release(unused, unused_spares=True)) == expected
        for name, dropped in zip(unused, expected, strict=True):
            if dropped:
                self.forget(name)
        self.compare_limits()

    def compare_limits(self) -> None:
        """Where limits stand, with the model."""
        remaining = {state.limit: state.remaining for state in self.run(self.limiter.inspect(self.limits))}
        assert remaining == self.remaining()

    def remaining(self) -> dict[Limit, int]:
        """What the model says is left."""
        return {limit: max(limit.limit - self.model.used(limit, self.model.now), 0) for limit in self.limits}

    def forget(self, name: EventRef) -> None:
        """Takes a spare out of the model."""
        self.model.requests.remove(self.model.made.pop(name).reserved)

    @rule(name=names)
    def finish(self, name: EventRef) -> None:
        """A request has ended: its place is free, and it is open until it is settled."""
        self.run(self.limiter.finish([name]))
        made = self.model.made.get(name)
        if made is not None and made.state == "open":
            made.finished = True

    @rule(name=names)
    def renew(self, name: EventRef) -> None:
        made = self.model.made.get(name)
        (lease,) = self.run(self.limiter.renew([name]))
        if made is None or made.state != "open" or self.model.now >= made.reserved + LIFETIME:
            assert lease is None
        else:
            made.lease, made.spare = min(self.model.now + LEASE, made.reserved + LIFETIME), False
            assert lease == made.lease

    @rule(
        reports=st.lists(st.tuples(names, st.sampled_from(Evidence), st.tuples(TOKENS, TOKENS)), min_size=1, max_size=3)
    )
    def settle(self, reports: list[tuple[EventRef, Evidence, tuple[int, int]]]) -> None:
        exact = [Exact(name, evidence, Usage(*tokens), cost_of(tokens)) for name, evidence, tokens in reports]
        self.run(self.limiter.settle(exact))
        for name, evidence, tokens in reports:
            self.expect_settled(name, evidence, tokens)

    def expect_settled(self, name: EventRef, evidence: Evidence, tokens: tuple[int, int]) -> None:
        made = self.model.made.get(name)
        if made is None or evidence.value <= made.rank:
            return
        made.rank = evidence.value
        if made.state in ("open", "expiring"):
            made.state, made.spare = "settled", False
        if made.state != "refused" and made.taken:
            made.tokens = tokens

    @rule()
    def sweep(self) -> None:
        claimed = self.run(self.limiter.claim_expired(1_000, 30))
        expected = {
            name
            for name, made in self.model.made.items()
            if made.state in ("open", "expiring") and made.lease <= self.model.now
        }
        unused = {name for name in expected if self.model.made[name].spare and not self.model.made[name].finished}
        for name in unused:
            self.forget(name)
        expected -= unused
        assert {one.ref for one in claimed} == expected
        for one in claimed:
            made = self.model.made[one.ref]
            assert (one.reserve_time, one.work) == (made.reserved, WORK)
            made.state, made.lease = "expiring", self.model.now + 30 * SECOND
        self.compare_limits()

    @invariant()
    def no_window_holds_more_than_its_limit(self) -> None:
        """What is decided on never exceeds a limit; only exact figures that came later may."""
        for limit in self.limits:
            if limit.kind in (LimitKind.REQUESTS, LimitKind.CONCURRENCY) and not limit.shadow:
                assert self.model.used(limit, self.model.now) <= limit.limit


@pytest.fixture(params=[LIMITS, ROOMY], ids=["tight", "roomy"])
def machine(request: pytest.FixtureRequest) -> Iterator[type[QuotaMachine]]:
    """The machine, on a Redis of its own."""
    loop = asyncio.new_event_loop()
    with redis_server() as url:
        redis = connect(url)
        limiter = Limiter(redis, lease_seconds=60, lifetime_seconds=3_600, zone=ZONE, clock=SystemClock())

        class Machine(QuotaMachine):
            limits = request.param

        Machine.loop, Machine.limiter, Machine.redis = loop, limiter, redis
        yield Machine
        loop.run_until_complete(limiter.close())
    loop.close()


def test_the_script_decides_as_the_model_does(machine: type[QuotaMachine]) -> None:
    """Whatever happens in whatever order, the script's answers are those of a model that counts everything again."""
    run_state_machine_as_test(  # type: ignore[no-untyped-call] # hypothesis does not type it
        machine,
        settings=settings(max_examples=150, stateful_step_count=40, suppress_health_check=list(HealthCheck)),
    )
