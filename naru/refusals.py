"""What keeps wrong API keys from costing a look at the database each."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from naru import api_key
from naru.addresses import network_of
from naru.clock import Clock
from naru.errors import NaruError, Reason

REFUSED_SECONDS = 10.0
"""How long a refused credential is refused again without asking."""
WRONG_KEYS_BURST, WRONG_KEYS_MINUTE = 60, 30
"""How many different wrong keys an address may try at once, and in each minute after that."""
_CAPACITY = 10_000


class RefusedCredentials:
    """The credentials that were refused lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def __contains__(self, credential: str) -> bool:
        """Whether it was refused, and nothing changed since."""
        return self._until.get(credential, -math.inf) > self._clock.monotonic()

    def add(self, credential: str) -> None:
        """It was refused."""
        self._until[credential] = self._clock.monotonic() + REFUSED_SECONDS
        self._until.move_to_end(credential)
        if len(self._until) > _CAPACITY:
            self._until.popitem(last=False)

    def forget_key(self, key_id: str) -> None:
        """The key changed: what was refused in its name may hold now."""
        beginning = f"{api_key.PREFIX}{key_id}-"
        for credential in [one for one in self._until if one.startswith(beginning)]:
            del self._until[credential]

    def clear(self) -> None:
        """Anything may have changed."""
        self._until.clear()


@dataclass(slots=True)
class _Allowance:
    left: float
    filled: float


class WrongKeyLimit:
    """Counts the wrong keys that come from an address, an IPv6 network of 64 bits being one.

    An address that tried too many is asked to wait before another unknown key is looked up for it; keys that are known
    already go on.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._allowances: OrderedDict[str, _Allowance] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises NaruError RATE_LIMIT_EXCEEDED when the address has to wait. An unknown address never has."""
        allowance = self._allowances.get(network_of(address))
        if allowance is None:
            return
        self._fill(allowance)
        if allowance.left < 1:
            raise NaruError(
                Reason.RATE_LIMIT_EXCEEDED,
                "Too many incorrect API keys came from your address. Please wait before you try another.",
                metadata={
                    "scope": "address",
                    "kind": "requests",
                    "window": "minute",
                    "limit": str(WRONG_KEYS_MINUTE),
                },
                retry_after=(1 - allowance.left) * 60 / WRONG_KEYS_MINUTE,
            )

    def note(self, address: str) -> None:
        """A wrong key came from the address."""
        network = network_of(address)
        if not network:
            return
        now = self._clock.monotonic()
        allowance = self._allowances.setdefault(network, _Allowance(WRONG_KEYS_BURST, now))
        self._fill(allowance)
        allowance.left = max(0.0, allowance.left - 1)
        self._allowances.move_to_end(network)
        if len(self._allowances) > _CAPACITY:
            self._allowances.popitem(last=False)

    def _fill(self, allowance: _Allowance) -> None:
        now = self._clock.monotonic()
        gained = (now - allowance.filled) * WRONG_KEYS_MINUTE / 60
        allowance.left = min(WRONG_KEYS_BURST, allowance.left + gained)
        allowance.filled = now
