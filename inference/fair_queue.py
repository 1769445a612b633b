"""Whose turn it is while an engine is busy: weighted fair queueing by virtual token counters.

After "Fairness in Serving Large Language Models" (OSDI 2024). A tenant's counter grows with every token that it is served;
of the tenants that wait, the one with the lowest counter is next. A tenant that begins to wait is lifted to the lowest
counter among those that wait already, or, when none does, to that of the tenant that waited last: to have been idle earns
nothing, and nobody has to wait until a newcomer has caught up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OUTPUT_COST = 2.0
"""What a generated token costs; a prompt token costs 1, since prompts are worked on many tokens at a time."""
_FEW_TENANTS = 64


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A request in the queue, and in the engine after that.

    Attributes:
        tenant: Whose counter it adds to.
        prompt_tokens: What it costs to begin.
        choices: Slots of the engine that it takes.
        weight: How much more than others it may get; more than 0.
    """

    tenant: str
    prompt_tokens: int
    choices: int = 1
    weight: float = 1.0


@dataclass(slots=True, eq=False)
class _Tenant:
    """`waiting` is in order of arrival; `running` is the slots it holds."""

    counter: float = 0.0
    waiting: dict[Place, None] = field(default_factory=dict)
    running: int = 0


class FairQueue:
    """Who waits for a slot, and who has one. Knows no time: whoever frees or fills slots asks `begin` until it says None.

    Args:
        slots: Choices that the engine works on at the same time.
        length: Most requests that may wait.
    """

    def __init__(self, slots: int, length: int) -> None:
        self._slots = slots
        self._length = length
        self._used = 0
        self._waiting = 0
        self._tenants: dict[str, _Tenant] = {}
        # In the order in which they began to wait: the first of several with the same counter is next.
        self._contenders: dict[str, _Tenant] = {}
        self._last = _Tenant()
        self._held: dict[Place, int] = {}
        self._sweep_above = _FEW_TENANTS

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return self._waiting

    @property
    def used(self) -> int:
        """Slots taken: more than there are when the last request to begin has more choices than were free."""
        return self._used

    @property
    def tenants(self) -> int:
        """How many tenants it remembers."""
        return len(self._tenants)

    def counter(self, tenant: str) -> float:
        """What a tenant was served, in weighted tokens; 0 for one that it does not remember."""
        known = self._tenants.get(tenant)
        return 0.0 if known is None else known.counter

    def join(self, place: Place) -> Place | None:
        """Puts a request behind the others of its tenant. Returns the one that has to go when too many wait.

        That is the newest request of the tenant that has the most waiting: `place` itself unless another has more.
        """
        tenant = self._tenants.get(place.tenant)
        if tenant is None:
            tenant = self._tenants[place.tenant] = _Tenant()
        if not tenant.waiting:
            tenant.counter = max(tenant.counter, self._level())
            self._contenders[place.tenant] = tenant
        tenant.waiting[place] = None
        self._waiting += 1
        if self._waiting <= self._length or self._used < self._slots:
            return None
        longest = max(self._contenders.values(), key=lambda one: (len(one.waiting), one is tenant))
        excess = next(reversed(longest.waiting))
        self.leave(excess)
        return excess

    def begin(self) -> Place | None:
        """Gives a free slot to whoever is next. None when no slot is free, or nobody waits."""
        if self._used >= self._slots or not self._contenders:
            return None
        tenant = min(self._contenders.values(), key=lambda one: (one.counter, one.running))
        place = next(iter(tenant.waiting))
        self._stop_waiting(tenant, place)
        tenant.counter += place.prompt_tokens / place.weight
        tenant.running += place.choices
        self._used += place.choices
        self._held[place] = place.choices
        return place

    def generated(self, place: Place, tokens: int) -> None:
        """A request that has a slot was served so many tokens."""
        if place in self._held:
            self._tenants[place.tenant].counter += OUTPUT_COST * tokens / place.weight

    def end_choice(self, place: Place) -> None:
        """One choice of a request that has slots is over: gives its slot back."""
        if self._held.get(place, 0) > 1:
            self._give_back(place, 1)
        else:
            self.leave(place)

    def leave(self, place: Place) -> None:
        """A request waits no longer, or gives back the slots it still has. Ignored for one that has left."""
        tenant = self._tenants.get(place.tenant)
        if tenant is None:
            return
        if place in tenant.waiting:
            self._stop_waiting(tenant, place)
        elif place in self._held:
            self._give_back(place, self._held[place])
            del self._held[place]
        self._forget_idle()

    def _stop_waiting(self, tenant: _Tenant, place: Place) -> None:
        del tenant.waiting[place]
        self._waiting -= 1
        if not tenant.waiting:
            del self._contenders[place.tenant]
            self._last = tenant

    def _give_back(self, place: Place, slots: int) -> None:
        self._held[place] -= slots
        self._used -= slots
        self._tenants[place.tenant].running -= slots

    def _level(self) -> float:
        """Where a tenant that begins to wait starts at least. Never falls."""
        if self._contenders:
            return min(tenant.counter for tenant in self._contenders.values())
        return self._last.counter

    def _forget_idle(self) -> None:
        """Forgets tenants that would be lifted above their counters anyway; looks only when their number has doubled."""
        if len(self._tenants) <= self._sweep_above:
            return
        level = self._level()
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if tenant.waiting or tenant.running or tenant.counter > level
        }
        self._sweep_above = max(_FEW_TENANTS, 2 * len(self._tenants))
