"""The limiter on a real Redis: races, retries, windows, leases."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime
from typing import Any

from accounting.limiter.answers import Taken
from accounting.limiter.limiter import Limiter, Standing, connect
from accounting.quota import (
    EventRef,
    Grant,
    Limit,
    LimitKind,
    LimitNotice,
    LimitScope,
    LimitState,
    LimitWindow,
    Reservation,
)
from accounting.settlement import Exact
from naru.errors import NaruError, Reason
from naru.testing.redis_server import free_port
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import (
    SECOND,
    START,
    WORK,
    ZONE,
    in_flight,
    new_limiter,
    new_ref,
    per_minute,
    refused,
    reservation,
)


async def ask(limiter: Limiter, wanted: Reservation, *limits: Limit) -> Taken:
    """The answer to one reservation."""
    (taken,) = (await limiter.reserve([(wanted, limits)])).taken
    return taken


def reason(taken: Taken) -> Reason | None:
    """Why it was refused; None when it was granted."""
    return taken.outcome.reason if isinstance(taken.outcome, NaruError) else None


async def test_racing_reservations_never_exceed_a_limit(limiter: Limiter) -> None:
    """Of 1,000 reservations, 50 at once, against a limit of 10, exactly 10 are granted."""

    async def ask_on() -> list[Taken]:
        return [await ask(limiter, reservation(), per_minute(10)) for _ in range(20)]

    # More at once would wait for a connection longer than a busy machine lets them.
    answers = [taken for many in await asyncio.gather(*(ask_on() for _ in range(50))) for taken in many]
    assert [reason(answer) for answer in answers].count(None) == 10
    assert {reason(answer) for answer in answers} == {None, Reason.RATE_LIMIT_EXCEEDED}


async def test_a_batch_is_decided_in_order(limiter: Limiter) -> None:
    """The items of one call are decided one after the other, each all or nothing."""
    items = [(reservation(), [per_minute(2)]) for _ in range(3)]
    verdict = await limiter.reserve(items)
    assert [reason(taken) for taken in verdict.taken] == [None, None, Reason.RATE_LIMIT_EXCEEDED]


async def test_an_answer_that_was_lost_is_given_again(limiter: Limiter) -> None:
    """The same attempt and revision gets the same grant a hundred times and takes once."""
    wanted = reservation()
    limits = per_minute(2), per_minute(50, LimitKind.INPUT_TOKENS), in_flight(2)
    answers = [await ask(limiter, wanted, *limits) for _ in range(100)]
    assert {answer.outcome for answer in answers} == {Grant(START, START + 60 * SECOND)}
    assert {state.limit.kind: state.remaining for state in answers[-1].limits} == {
        LimitKind.REQUESTS: 1,
        LimitKind.INPUT_TOKENS: 40,
        LimitKind.CONCURRENCY: 1,
    }


async def test_a_refusal_takes_nothing_of_any_limit(limiter: Limiter) -> None:
    """When one limit refuses, the others are as they were."""
    taken = await ask(limiter, reservation(), per_minute(5), in_flight(5), per_minute(9, LimitKind.INPUT_TOKENS))
    assert reason(taken) is Reason.REQUEST_EXCEEDS_LIMIT
    assert [state.remaining for state in taken.limits] == [5, 5, 9]


async def test_a_refusal_names_the_limit_and_when_to_come_back(limiter: Limiter) -> None:
    """After the time it says, and not a bucket sooner, the same request fits."""
    await ask(limiter, reservation(), per_minute(1))
    limiter.now = START + round(10.5 * SECOND)
    error = (await ask(limiter, reservation(), per_minute(1))).outcome
    assert error == NaruError(
        Reason.RATE_LIMIT_EXCEEDED,
        "The key's limit of 1 requests per minute is used up.",
        metadata={"scope": "key", "kind": "requests", "window": "minute", "limit": "1"},
        retry_after=50.5,
    )
    limiter.now = START + 61 * SECOND - 1
    assert reason(await ask(limiter, reservation(), per_minute(1))) is Reason.RATE_LIMIT_EXCEEDED
    limiter.now = START + 61 * SECOND
    assert reason(await ask(limiter, reservation(), per_minute(1))) is None


async def test_waiting_does_not_help_a_request_that_is_too_large(limiter: Limiter) -> None:
    """A request larger than a whole limit is told how large, and nothing about waiting."""
    error = (await ask(limiter, reservation(input_tokens=11), per_minute(10, LimitKind.INPUT_TOKENS))).outcome
    assert isinstance(error, NaruError)
    assert error.reason is Reason.REQUEST_EXCEEDS_LIMIT
    assert error.metadata == {"scope": "key", "kind": "input_tokens", "limit": "10", "requested": "11"}
    assert error.retry_after is None


async def test_too_many_in_flight(limiter: Limiter) -> None:
    """The next request is refused for a second, until one of those in flight is released."""
    first = reservation()
    await ask(limiter, first, in_flight(1))
    error = (await ask(limiter, reservation(), in_flight(1))).outcome
    assert isinstance(error, NaruError)
    assert (error.reason, error.retry_after) == (Reason.CONCURRENCY_LIMIT_EXCEEDED, 1.0)
    assert error.metadata == {"scope": "key", "limit": "1"}
    assert await limiter.release([first.ref]) == [True]
    assert reason(await ask(limiter, reservation(), in_flight(1))) is None


async def test_a_higher_revision_replaces_the_figures(limiter: Limiter) -> None:
    """Better figures take the place of the earlier ones, also when both together would not fit."""
    ref, limit = new_ref(), per_minute(100, LimitKind.INPUT_TOKENS)
    await ask(limiter, reservation(ref, input_tokens=60), limit)
    taken = await ask(limiter, reservation(ref, input_tokens=90, revision=1), limit)
    assert reason(taken) is None
    assert [state.remaining for state in taken.limits] == [10]


async def test_a_lower_revision_that_comes_late_changes_nothing(limiter: Limiter) -> None:
    """An earlier revision that was held up on its way gets the grant that stands."""
    ref, limit = new_ref(), per_minute(100, LimitKind.INPUT_TOKENS)
    await ask(limiter, reservation(ref, input_tokens=10, revision=1), limit)
    taken = await ask(limiter, reservation(ref, input_tokens=60), limit)
    assert reason(taken) is None
    assert [state.remaining for state in taken.limits] == [90]


async def test_a_replacement_that_does_not_fit_closes_the_reservation(limiter: Limiter) -> None:
    """The request count stays taken, everything else is given back, and nothing can be reserved for the attempt any more."""
    ref = new_ref()
    limits = per_minute(5), per_minute(100, LimitKind.INPUT_TOKENS), in_flight(1)
    await ask(limiter, reservation(ref), *limits)
    refusal = await ask(limiter, reservation(ref, input_tokens=101, revision=1), *limits)
    assert reason(refusal) is Reason.REQUEST_EXCEEDS_LIMIT
    assert {state.limit.kind: state.remaining for state in refusal.limits} == {
        LimitKind.REQUESTS: 4,
        LimitKind.INPUT_TOKENS: 100,
        LimitKind.CONCURRENCY: 1,
    }
    again = await ask(limiter, reservation(ref, input_tokens=101, revision=1), *limits)
    assert again.outcome == refusal.outcome
    better = await ask(limiter, reservation(ref, input_tokens=1, revision=2), *limits)
    assert reason(better) is Reason.FAILED_PRECONDITION
    assert await limiter.renew([ref]) == [None]
    limiter.now = START + 100 * SECOND
    assert await limiter.claim_expired(10, 30) == []


class Skewed:
    """A clock that is wrong by so many seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def time(self) -> float:
        """Wrong."""
        return time.time() + self._seconds

    def monotonic(self) -> float:
        """Right."""
        return time.monotonic()


def remaining(taken: Taken) -> list[int]:
    """What is left of each limit, by its kind's name."""
    return [state.remaining for state in sorted(taken.limits, key=lambda state: state.limit.kind)]


async def test_a_retry_elsewhere_takes_over(limiter: Limiter) -> None:
    """A second attempt holds in place of the first, whose late report changes nothing and whose lease still ends."""
    first = new_ref()
    second = EventRef(first.event_id, 1)
    limits = in_flight(1), per_minute(100, LimitKind.INPUT_TOKENS), per_minute(1)
    await ask(limiter, reservation(first), *limits)
    assert remaining(await ask(limiter, reservation(second), *limits)) == [0, 90, 0]
    assert reason(await ask(limiter, reservation(first), *limits)) is Reason.FAILED_PRECONDITION
    await limiter.settle([Exact(first, Evidence.FINAL, Usage(50, 0))])
    await limiter.settle([Exact(second, Evidence.FINAL, Usage(7, 0))])
    assert await limiter.inspect(limits[1:2]) == (LimitState(limits[1], 93, 61.0),)


async def test_a_retry_that_is_refused_leaves_the_first_attempt_as_it_was(limiter: Limiter) -> None:
    """Nothing is given back by who could not take it over."""
    first = new_ref()
    limits = in_flight(1), per_minute(100, LimitKind.INPUT_TOKENS)
    await ask(limiter, reservation(first), *limits)
    refused = await ask(limiter, reservation(EventRef(first.event_id, 1), input_tokens=101), *limits)
    assert reason(refused) is Reason.REQUEST_EXCEEDS_LIMIT
    assert remaining(refused) == [0, 90]
    assert await limiter.release([first]) == [True]
    assert [state.remaining for state in await limiter.inspect(limits)] == [1, 100]


async def test_two_limits_on_the_same_thing_count_it_once(limiter: Limiter) -> None:
    """The tighter one refuses."""
    limits = per_minute(5), per_minute(2)
    for left in ([4, 1], [3, 0]):
        taken = await ask(limiter, reservation(), *limits)
        assert sorted((state.remaining for state in taken.limits), reverse=True) == left
    assert reason(await ask(limiter, reservation(), *limits)) is Reason.RATE_LIMIT_EXCEEDED


async def test_a_budget_of_the_month(limiter: Limiter) -> None:
    """Money is exact, a spent budget says when the month ends, and the next month begins with all of it."""
    budget = Limit(LimitScope.WORKSPACE, "ws-1", LimitKind.COST, LimitWindow.MONTH, 8_999_999_999_999_999)
    ref = new_ref()
    await ask(limiter, reservation(ref, cost=8_999_999_999_999_998), budget)
    refused = (await ask(limiter, reservation(cost=2), budget)).outcome
    assert isinstance(refused, NaruError)
    # START is in January 2027; its month ends in Seoul nine hours before it does in UTC.
    month_end = round(datetime(2027, 2, 1, tzinfo=ZONE).timestamp()) - START // SECOND
    assert (refused.reason, refused.retry_after) == (Reason.INSUFFICIENT_QUOTA, month_end)
    assert reason(await ask(limiter, reservation(cost=1), budget)) is None
    await limiter.settle([Exact(ref, Evidence.ACCEPTED, Usage(1, 1), 8_999_999_999_999_997)])
    assert await limiter.inspect([budget]) == (LimitState(budget, 1, month_end),)
    limiter.now = START + month_end * SECOND
    assert await limiter.inspect([budget]) == (LimitState(budget, budget.limit, 0.0),)
    # A correction of last month's changes last month's.
    await limiter.settle([Exact(ref, Evidence.FINAL, Usage(1, 1), 5)])
    assert await limiter.inspect([budget]) == (LimitState(budget, budget.limit, 0.0),)


async def test_more_than_the_whole_budget(limiter: Limiter) -> None:
    """Waiting does not help."""
    budget = Limit(LimitScope.KEY, "key-1", LimitKind.COST, LimitWindow.DAY, 5)
    refused = (await ask(limiter, reservation(cost=6), budget)).outcome
    assert isinstance(refused, NaruError)
    assert (refused.reason, refused.retry_after) == (Reason.INSUFFICIENT_QUOTA, None)


async def test_a_limit_in_shadow_counts_and_tells(limiter: Limiter) -> None:
    """But it never refuses."""
    shadow = Limit(LimitScope.KEY, "key-1", LimitKind.REQUESTS, LimitWindow.MINUTE, 1, shadow=True)
    answers = [await ask(limiter, reservation(), shadow) for _ in range(3)]
    assert [reason(answer) for answer in answers] == [None] * 3
    assert [answer.notices for answer in answers] == [(), (LimitNotice(shadow, None),), (LimitNotice(shadow, None),)]


async def test_soft_thresholds_are_told_once_per_window(limiter: Limiter) -> None:
    """Each when it is crossed, and again in the next window."""
    limit = Limit(LimitScope.KEY, "key-1", LimitKind.REQUESTS, LimitWindow.DAY, 4, soft_thresholds=(50, 75, 100))
    told = [(await ask(limiter, reservation(), limit)).notices for _ in range(5)]
    assert [[notice.percent for notice in notices] for notices in told] == [[], [50], [75], [100], []]
    limiter.now = START + 86_400 * SECOND
    again = [(await ask(limiter, reservation(), limit)).notices for _ in range(2)]
    assert [[notice.percent for notice in notices] for notices in again] == [[], [50]]


async def test_a_clock_of_ours_that_is_wrong_about_the_day(redis_url: str) -> None:
    """The day is that of Redis's time, as long as ours is not wrong by more than a day."""
    limit = Limit(LimitScope.KEY, "key-1", LimitKind.REQUESTS, LimitWindow.DAY, 1)
    true = new_limiter(redis_url)
    await true.begin_epoch("e", 0)
    for hours in (-20, 0, 20):
        skewed = Limiter(
            connect(redis_url), lease_seconds=60, lifetime_seconds=3_600, zone=ZONE, clock=Skewed(hours * 3_600)
        )
        taken = await ask(skewed, reservation(), limit)
        assert (reason(taken) is None) is (hours == -20), hours
        await skewed.close()
    await true.close()


async def test_a_request_that_has_ended_gives_its_place_back_at_once(limiter: Limiter) -> None:
    """What it took otherwise stays until it is settled; saying it twice, or of nobody, changes nothing."""
    ref = new_ref()
    limits = per_minute(5), per_minute(100, LimitKind.INPUT_TOKENS), in_flight(1)
    await ask(limiter, reservation(ref), *limits)
    for _ in range(2):
        await limiter.finish([ref, new_ref()])
        assert [
            state.remaining for state in sorted(await limiter.inspect(limits), key=lambda one: one.limit.limit)
        ] == [
            1,
            4,
            90,
        ]
    assert (await limiter.renew([ref])) != [None]
    await limiter.settle([Exact(ref, Evidence.FINAL, Usage(7, 0))])
    (tokens,) = await limiter.inspect(limits[1:2])
    assert tokens.remaining == 93


async def test_a_crowd_is_settled_in_calls_that_others_come_between(limiter: Limiter) -> None:
    """Redis does one thing at a time: what takes long is asked for in parts, and answered as one."""
    refs = [new_ref() for _ in range(300)]
    limits = (in_flight(1_000), per_minute(10_000, LimitKind.INPUT_TOKENS))
    await limiter.reserve([(reservation(ref), limits) for ref in refs])
    assert [one.running for one in await limiter.look_up([*refs, new_ref()])] == [True] * 300 + [False]
    calls = (await limiter.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    await limiter.settle([Exact(ref, Evidence.FINAL, Usage(7, 0)) for ref in refs])
    assert (await limiter.redis.info("commandstats"))["cmdstat_evalsha"]["calls"] == calls + 3
    places, tokens = sorted(await limiter.inspect(limits), key=lambda one: one.limit.limit)
    assert (places.remaining, tokens.remaining) == (1_000, 10_000 - 300 * 7)
    assert await limiter.renew([*refs, new_ref()]) == [None] * 301


async def test_a_release_gives_everything_back_but_the_request(limiter: Limiter) -> None:
    """Releasing twice gives back once."""
    ref = new_ref()
    limits = per_minute(5), per_minute(100, LimitKind.INPUT_TOKENS), in_flight(1)
    await ask(limiter, reservation(ref), *limits)
    assert await limiter.release([ref, ref]) == [True, False]
    probe = await ask(limiter, reservation(), *limits)
    assert {state.limit.kind: state.remaining for state in probe.limits} == {
        LimitKind.REQUESTS: 3,
        LimitKind.INPUT_TOKENS: 90,
        LimitKind.CONCURRENCY: 0,
    }


async def test_a_reserve_that_comes_after_its_release_is_refused(limiter: Limiter) -> None:
    """Whether the reservation had been made or not, its attempt is over; another attempt is not."""
    made, never = new_ref(), new_ref()
    await ask(limiter, reservation(made), per_minute(5))
    assert await limiter.release([made, never]) == [True, False]
    for ref in (made, never):
        error = (await ask(limiter, reservation(ref), per_minute(5))).outcome
        assert isinstance(error, NaruError)
        assert (error.reason, error.metadata) == (Reason.FAILED_PRECONDITION, {"event_id": ref.event_id})
        assert reason(await ask(limiter, reservation(EventRef(ref.event_id, 1)), per_minute(5))) is None


async def test_a_tombstone_outlives_every_request(limiter: Limiter, redis_url: str) -> None:
    """What is remembered of a closed reservation is kept for longer than its hard lifetime, and not for ever."""
    ref = new_ref()
    await limiter.release([ref])
    redis = connect(redis_url)
    left = await redis.ttl(f"{{naru-3}}:r:{ref.event_id}:0")
    await redis.aclose()
    assert 3_600 < left < 2 * 3_600


async def test_a_window_is_remembered_for_as_long_as_its_last_bucket_counts(limiter: Limiter, redis_url: str) -> None:
    """Each new bucket makes Redis keep the window for the length of it again; within a bucket nothing needs to."""
    redis = connect(redis_url)
    await ask(limiter, reservation(), per_minute(5))
    (key,) = await redis.keys("{naru-3}:w:*")
    kept = []
    for seconds in (0, 0.5, 1):
        limiter.now = START + round(seconds * SECOND)
        await redis.pexpire(key, 30_000)
        await ask(limiter, reservation(), per_minute(5))
        kept.append(await redis.pttl(key) > 30_000)
    await redis.aclose()
    assert kept == [False, False, True]


async def test_one_call_changes_a_bucket_for_several_items(limiter: Limiter) -> None:
    """What several items of a call add to a bucket, and later take out of it, is all gone when the bucket is."""
    limit = per_minute(1_000, LimitKind.TOTAL_TOKENS)
    first, second, third = new_ref(), new_ref(), new_ref()
    await limiter.reserve([(reservation(ref), [limit]) for ref in (first, second, third)])
    limiter.now = START + 30 * SECOND
    await ask(limiter, reservation(input_tokens=100, output_tokens=0), limit)
    await limiter.settle([Exact(ref, Evidence.FINAL, Usage(5, 2)) for ref in (first, second)])
    await limiter.release([third])
    left = []
    for seconds in (60, 61, 90, 91):
        limiter.now = START + seconds * SECOND
        left += [state.remaining for state in await limiter.inspect([limit])]
    assert left == [886, 900, 900, 1_000]


async def test_every_key_is_on_one_primary(limiter: Limiter, redis_url: str) -> None:
    """All keys have one hash tag."""
    limits = per_minute(5), per_minute(100, LimitKind.INPUT_TOKENS), in_flight(1)
    await ask(limiter, reservation(), *limits)
    redis = connect(redis_url)
    keys: list[Any] = await redis.keys("*")
    await redis.aclose()
    assert len(keys) >= 7
    assert all(key.startswith(b"{naru-3}:") for key in keys)


async def test_a_lease_is_renewed_up_to_the_hard_lifetime(limiter: Limiter) -> None:
    """Each renewal adds a lease from now; none goes beyond an hour, and after it there is none."""
    ref = new_ref()
    await ask(limiter, reservation(ref), per_minute(5))
    limiter.now = START + 50 * SECOND
    assert await limiter.renew([ref, new_ref()]) == [START + 110 * SECOND, None]
    limiter.now = START + 3_590 * SECOND
    assert await limiter.renew([ref]) == [START + 3_600 * SECOND]
    limiter.now = START + 3_600 * SECOND
    assert await limiter.renew([ref]) == [None]
    assert reason(await ask(limiter, reservation(ref, revision=1), per_minute(5))) is Reason.FAILED_PRECONDITION
    assert [one.ref for one in await limiter.claim_expired(10, 30)] == [ref]


async def test_an_expired_lease_is_claimed_by_one_sweeper_at_a_time(limiter: Limiter) -> None:
    """A claim returns the place in flight at once; if the claimer dies, another one gets it after a while."""
    ref = new_ref()
    await ask(limiter, reservation(ref), in_flight(1))
    limiter.now = START + 60 * SECOND
    claims = await asyncio.gather(*(limiter.claim_expired(10, 30) for _ in range(10)))
    (claimed,) = [one for claim in claims for one in claim]
    assert (claimed.ref, claimed.reserve_time, claimed.work) == (ref, START, WORK)
    assert await limiter.renew([ref]) == [None]
    assert reason(await ask(limiter, reservation(), in_flight(1))) is None
    limiter.now = START + 90 * SECOND
    assert [one.ref for one in await limiter.claim_expired(10, 30)] == [ref]
    await limiter.settle([Exact(ref, Evidence.NONE, Usage())])
    limiter.now = START + 200 * SECOND
    assert ref not in [one.ref for one in await limiter.claim_expired(10, 30)]


async def test_settling_replaces_the_estimate_in_its_own_bucket(limiter: Limiter) -> None:
    """Exact figures replace the reserved ones where those were taken; only better evidence does so again."""
    ref, limit = new_ref(), Limit(LimitScope.KEY, "key-1", LimitKind.TOTAL_TOKENS, LimitWindow.HOUR, 1_000)
    await ask(limiter, reservation(ref, input_tokens=500, output_tokens=400), limit)
    limiter.now = START + 1_800 * SECOND
    for evidence, tokens in ((Evidence.DELIVERED, (50, 50)), (Evidence.ACCEPTED, (1, 1)), (Evidence.DELIVERED, (9, 9))):
        await limiter.settle([Exact(ref, evidence, Usage(*tokens))])
        taken = await ask(limiter, reservation(input_tokens=10**6), limit)
        assert [state.remaining for state in taken.limits] == [900]
    await limiter.settle([Exact(ref, Evidence.FINAL, Usage(20, 10))])
    taken = await ask(limiter, reservation(input_tokens=10**6), limit)
    assert [state.remaining for state in taken.limits] == [970]
    assert [state.reset_seconds for state in taken.limits] == [1_860]


async def test_other_keys_have_other_limits(limiter: Limiter) -> None:
    """What one key uses up is there for another."""
    other = Limit(LimitScope.KEY, "key-2", LimitKind.REQUESTS, LimitWindow.MINUTE, 1)
    assert reason(await ask(limiter, reservation(), per_minute(1))) is None
    assert reason(await ask(limiter, reservation(), other)) is None


async def test_the_tightest_limit_comes_first(limiter: Limiter) -> None:
    """Limits are ordered by the share that is left."""
    taken = await ask(limiter, reservation(), per_minute(10), in_flight(2), per_minute(1_000, LimitKind.INPUT_TOKENS))
    assert [state.limit.kind for state in taken.limits] == [
        LimitKind.CONCURRENCY,
        LimitKind.REQUESTS,
        LimitKind.INPUT_TOKENS,
    ]


async def test_redis_keeps_the_time_by_itself(redis_url: str) -> None:
    """Without a time from a test, Redis's own clock decides."""
    limiter = new_limiter(redis_url)
    await limiter.begin_epoch("first", 0)
    grant = (await ask(limiter, reservation(), per_minute(1))).outcome
    assert isinstance(grant, Grant)
    assert grant.reserve_time > 1_600_000_000 * SECOND
    assert grant.lease_expire_time == grant.reserve_time + 60 * SECOND
    await limiter.close()


async def test_an_emptied_redis_decides_nothing(limiter: Limiter, redis_url: str) -> None:
    """Without an epoch nothing is granted; a new one opens after the recovery."""
    redis = connect(redis_url)
    await redis.flushall()
    await redis.aclose()
    assert (await limiter.reserve([(reservation(), [])])).standing is Standing.LOST
    assert (await limiter.begin_epoch("second", 90)).began
    assert not (await limiter.begin_epoch("third", 90)).began
    verdict = await limiter.reserve([(reservation(), [])])
    assert (verdict.standing, verdict.wait_seconds, verdict.taken) == (Standing.RECOVERING, 90.0, ())
    limiter.now = START + 90 * SECOND
    assert (await limiter.reserve([(reservation(), [])])).standing is Standing.OK


async def test_a_redis_that_is_away_is_unavailable() -> None:
    """Nobody listens: the error says which service cannot work."""
    limiter = new_limiter(f"redis://127.0.0.1:{free_port()}/0")
    error = await refused(limiter.reserve([(reservation(), [])]))
    assert (error.reason, error.metadata) == (Reason.SERVICE_UNAVAILABLE, {"service": "accounting"})
    await limiter.close()


async def test_a_redis_that_is_full_is_unavailable(limiter: Limiter, redis_url: str) -> None:
    """A state in which Redis takes no writes is an outage of the limiter, not a fault of the caller's."""
    redis = connect(redis_url)
    await redis.config_set("maxmemory", "1")
    error = await refused(limiter.reserve([(reservation(), [per_minute(5)])]))
    await redis.config_set("maxmemory", "0")
    await redis.aclose()
    assert error.reason is Reason.SERVICE_UNAVAILABLE
    assert reason(await ask(limiter, reservation(), per_minute(5))) is None
