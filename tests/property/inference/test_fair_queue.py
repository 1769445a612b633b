"""What the fair queue promises, whatever comes and goes."""

from __future__ import annotations

import random
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from inference.fair_queue import OUTPUT_COST, FairQueue, Place

TENANTS = [f"ws-{number}" for number in range(4)]
LONGEST_PROMPT, LONGEST_OUTPUT = 30, 20


class QueueMachine(RuleBasedStateMachine):
    """Joins, service, ends and departures in any order; a plain model of the same beside it."""

    @initialize(slots=st.integers(1, 4), length=st.integers(0, 6))
    def begin(self, slots: int, length: int) -> None:
        self.slots, self.length = slots, length
        self.queue = FairQueue(slots, length)
        self.waiting: list[Place] = []
        self.running: dict[Place, int] = {}

    @rule(
        tenant=st.sampled_from(TENANTS),
        prompt_tokens=st.integers(1, LONGEST_PROMPT),
        choices=st.integers(1, 3),
        weight=st.sampled_from([0.5, 1.0, 4.0]),
    )
    def join(self, tenant: str, prompt_tokens: int, choices: int, weight: float) -> None:
        place = Place(tenant, prompt_tokens, choices, weight)
        newcomer = all(other.tenant != tenant for other in self.waiting)
        before = self.queue.counter(tenant)
        lowest = min((self.queue.counter(other.tenant) for other in self.waiting), default=0.0)
        self.waiting.append(place)
        excess = self.queue.join(place)
        if newcomer:
            # It has no credit for having been idle, and loses nothing by it.
            assert self.queue.counter(tenant) >= max(before, lowest)
        else:
            assert self.queue.counter(tenant) == before
        if excess is not None:
            assert len(self.waiting) > self.length
            mine = [other for other in self.waiting if other.tenant == excess.tenant]
            assert excess is mine[-1]
            assert all(len(mine) >= sum(o.tenant == name for o in self.waiting) for name in TENANTS)
            self.waiting.remove(excess)
        self.settle()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), tokens=st.integers(1, LONGEST_OUTPUT))
    def serve(self, data: st.DataObject, tokens: int) -> None:
        place = data.draw(st.sampled_from(list(self.running)))
        before = self.queue.counter(place.tenant)
        self.queue.generated(place, tokens)
        assert self.queue.counter(place.tenant) == before + OUTPUT_COST * tokens / place.weight

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end_choice(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(list(self.running)))
        self.running[place] -= 1
        if not self.running[place]:
            del self.running[place]
        self.queue.end_choice(place)
        self.settle()

    @precondition(lambda self: self.running or self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from([*self.running, *self.waiting]))
        self.running.pop(place, None)
        if place in self.waiting:
            self.waiting.remove(place)
        for _ in range(2):
            self.queue.leave(place)
        self.queue.generated(place, 1)
        self.settle()

    def settle(self) -> None:
        """Lets begin who may: always the first of a tenant with the lowest counter."""
        while True:
            counters = {place.tenant: self.queue.counter(place.tenant) for place in self.waiting}
            place = self.queue.begin()
            if place is None:
                return
            assert place in self.waiting
            assert counters[place.tenant] == min(counters.values())
            assert place is next(other for other in self.waiting if other.tenant == place.tenant)
            self.waiting.remove(place)
            self.running[place] = place.choices

    @invariant()
    def counts(self) -> None:
        """Bounded, never idle while somebody waits, and no slot lost."""
        assert self.queue.waiting == len(self.waiting) <= self.length
        assert self.queue.used == sum(self.running.values())
        if self.waiting:
            assert self.queue.used >= self.slots


QueueMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40)
TestQueue = QueueMachine.TestCase


class Busy:
    """A queue with backlogged tenants, served a token per choice and step.

    Args:
        weights: Of the tenants, which are numbers from 0 on.
        sizes: Makes the requests: prompt and output tokens.
    """

    def __init__(self, slots: int, weights: Sequence[float], sizes: random.Random) -> None:
        self.queue = FairQueue(slots, 10_000)
        self.weights = weights
        self.begun: list[str] = []
        self._sizes = sizes
        self._left: dict[Place, int] = {}
        for tenant in range(len(weights)):
            for _ in range(slots + 1):
                self.join(tenant)
        self.settle()

    def join(self, tenant: int) -> Place:
        """One request more."""
        place = Place(str(tenant), self._sizes.randint(1, LONGEST_PROMPT), weight=self.weights[tenant])
        assert self.queue.join(place) is None
        return place

    def settle(self) -> None:
        """Whoever begins is followed by another request of the same tenant."""
        while (place := self.queue.begin()) is not None:
            self.begun.append(place.tenant)
            self._left[place] = self._sizes.randint(1, LONGEST_OUTPUT)
            self.join(int(place.tenant))

    def step(self) -> None:
        """A token for each that runs."""
        for place in tuple(self._left):
            self.queue.generated(place, 1)
            self._left[place] -= 1
            if not self._left[place]:
                del self._left[place]
                self.queue.leave(place)
        self.settle()


@given(
    slots=st.integers(1, 6),
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=2, max_size=4),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_backlogged_tenants_are_served_alike(slots: int, weights: list[float], seed: int) -> None:
    """Their counters never part by more than one prompt and what fits into the engine, however long it goes on."""
    busy = Busy(slots, weights, random.Random(seed))
    bound = (LONGEST_PROMPT + OUTPUT_COST * slots * LONGEST_OUTPUT) / min(weights)
    for _ in range(200):
        busy.step()
        counters = [busy.queue.counter(str(tenant)) for tenant in range(len(weights))]
        assert max(counters) - min(counters) <= bound


@given(
    slots=st.integers(1, 6),
    flooding=st.integers(1, 3),
    history=st.integers(0, 100),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_a_newcomer_waits_for_one_request_of_each_other_at_most(
    slots: int, flooding: int, history: int, seed: int
) -> None:
    """However many the others have waiting, and however long they have been at it."""
    busy = Busy(slots, [1.0] * (flooding + 1), random.Random(seed))
    busy.weights = [1.0] * (flooding + 2)
    for tenant in range(flooding):
        for _ in range(100):
            busy.join(tenant)
    for _ in range(history):
        busy.step()
    before = len(busy.begun)
    newcomer = str(flooding + 1)
    busy.join(flooding + 1)
    while newcomer not in busy.begun[before:]:
        busy.step()
        assert len(busy.begun) - before < 100, "it starves"
    ahead = busy.begun[before : busy.begun.index(newcomer, before)]
    assert len(set(ahead)) == len(ahead)


@given(seed=st.integers(0, 2**32))
@settings(max_examples=20)
def test_a_tenant_that_was_idle_gets_no_more_than_its_share(seed: int) -> None:
    """It is not served until it has caught up with those that worked all the time."""
    busy = Busy(2, [1.0], random.Random(seed))
    busy.weights = [1.0, 1.0]
    for _ in range(500):
        busy.step()
    for _ in range(10):
        busy.join(1)
    before = len(busy.begun)
    while len(busy.begun) < before + 20:
        busy.step()
    assert 4 <= busy.begun[before:].count("1") <= 16


def test_tenants_are_forgotten() -> None:
    """Ten thousand workspaces that came once do not stay in memory."""
    queue = FairQueue(4, 10)
    for number in range(10_000):
        place = Place(f"ws-{number}", prompt_tokens=5)
        assert queue.join(place) is None
        assert queue.begin() is place
        queue.generated(place, number % 7)
        queue.leave(place)
    assert queue.tenants < 200


def test_to_be_forgotten_changes_no_turn() -> None:
    """Who was served more than others is remembered as such while that matters."""
    queue = FairQueue(1, 1000)
    greedy = Place("greedy", 1)
    queue.join(greedy)
    assert queue.begin() is greedy
    others = [Place(f"ws-{number}", 1) for number in range(200)]
    for place in others:
        queue.join(place)
    queue.generated(greedy, 100)
    queue.leave(greedy)
    for place in others[:150]:
        assert queue.begin() is place
        queue.leave(place)
    again = Place("greedy", 1)
    queue.join(again)
    for place in others[150:]:
        assert queue.begin() is place
        queue.leave(place)
    assert queue.begin() is again


def test_whoever_has_most_waiting_makes_room() -> None:
    """A full queue is no door that one workspace can hold shut: its newest request goes, until all have as many."""
    queue = FairQueue(1, 4)
    running = Place("flood", 1)
    queue.join(running)
    assert queue.begin() is running
    flood = [Place("flood", 1) for _ in range(5)]
    assert [queue.join(place) for place in flood] == [None, None, None, None, flood[4]]
    late = [Place("other", 1) for _ in range(3)]
    assert [queue.join(place) for place in late] == [flood[3], flood[2], late[2]]
    assert queue.waiting == 4
