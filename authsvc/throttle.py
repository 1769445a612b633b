"""How often log-ins may fail, without letting anybody lock somebody else out.

Three buckets, each of which refills with time: the account from this address, the account from addresses that never logged in
to it, and the address over all accounts. An address the account was logged in from passes the second one, so guesses from
elsewhere do not keep the owner out. Failures are counted in memory of one process: with N replicas up to N times as many
guesses are let through. Where an account was logged in from stands in the database too, as what keeps the owner in must not
depend on which replica is asked.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from naru.addresses import network_of
from naru.clock import Clock
from naru.errors import NaruError, Reason

_CAPACITY = 100_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """So many failures at once, and one more every `seconds`."""

    failures: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ThrottlePolicy:
    """What is allowed: an account from one address, an account from strange addresses, an address over all accounts."""

    pair: Allowance = Allowance(5, 60.0)
    account: Allowance = Allowance(50, 60.0)
    address: Allowance = Allowance(100, 10.0)


class LoginThrottle:
    """Counts failures. An attempt counts before it is made, so that attempts at the same time cannot pass together."""

    def __init__(self, clock: Clock, policy: ThrottlePolicy | None = None) -> None:
        policy = policy or ThrottlePolicy()
        self._pairs = _Buckets(policy.pair, clock)
        self._accounts = _Buckets(policy.account, clock)
        self._addresses = _Buckets(policy.address, clock)
        self._known: OrderedDict[str, None] = OrderedDict()

    def attempt(self, account: str, client_address: str) -> None:
        """Takes one failure off what is left. Raises NaruError RATE_LIMIT_EXCEEDED, taking none, when one bucket is empty."""
        used = self._used(account, client_address)
        wait = max(buckets.wait(key) for buckets, key in used)
        if wait > 0:
            raise NaruError(
                Reason.RATE_LIMIT_EXCEEDED,
                "Too many failed log-ins; try again later.",
                metadata={"scope": "login", "kind": "requests"},
                retry_after=wait,
            )
        for buckets, key in used:
            buckets.take(key)

    def knows(self, account: str, client_address: str) -> bool:
        """Whether the address is known as one that the account was logged in from."""
        return _pair(account, client_address) in self._known

    def succeeded(self, account: str, client_address: str) -> None:
        """Gives back what the attempt took, and remembers the address as one of the account's."""
        self.give_back(account, client_address)
        self.remember(account, client_address)

    def give_back(self, account: str, client_address: str) -> None:
        """The attempt was no failure: as if it had not been made."""
        for buckets, key in self._used(account, client_address):
            buckets.give(key)

    def remember(self, account: str, client_address: str) -> None:
        """The account was logged in from the address."""
        pair = _pair(account, client_address)
        self._known[pair] = None
        self._known.move_to_end(pair)
        if len(self._known) > _CAPACITY:
            self._known.popitem(last=False)

    def _used(self, account: str, client_address: str) -> list[tuple[_Buckets, str]]:
        pair = _pair(account, client_address)
        used = [(self._pairs, pair), (self._addresses, network_of(client_address))]
        return used if pair in self._known else [*used, (self._accounts, account)]


class _Buckets:
    """Each begins full; those not asked for longest are forgotten first."""

    def __init__(self, allowance: Allowance, clock: Clock) -> None:
        self._allowance = allowance
        self._clock = clock
        # When the bucket is full again, in monotonic seconds.
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def wait(self, key: str) -> float:
        """Seconds until there is one to take; 0 or less: there is."""
        most = (self._allowance.failures - 1) * self._allowance.seconds
        return self._full_at.get(key, 0.0) - self._clock.monotonic() - most

    def take(self, key: str) -> None:
        full_at = max(self._full_at.get(key, 0.0), self._clock.monotonic())
        self._full_at[key] = full_at + self._allowance.seconds
        self._full_at.move_to_end(key)
        if len(self._full_at) > _CAPACITY:
            self._full_at.popitem(last=False)

    def give(self, key: str) -> None:
        if key in self._full_at:
            self._full_at[key] -= self._allowance.seconds


def _pair(account: str, client_address: str) -> str:
    return f"{account} {network_of(client_address)}"
