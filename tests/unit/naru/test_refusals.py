"""Wrong keys cost little: they are remembered, and an address may try only so many."""

from __future__ import annotations

import os

import pytest

from naru import api_key
from naru.errors import NaruError, Reason
from naru.refusals import REFUSED_SECONDS, WRONG_KEYS_BURST, WRONG_KEYS_MINUTE, RefusedCredentials, WrongKeyLimit
from naru.testing.clock import FakeClock


def exhausted(limit: WrongKeyLimit, address: str) -> None:
    for _ in range(WRONG_KEYS_BURST):
        limit.check(address)
        limit.note(address)


def test_a_refusal_holds_for_a_while() -> None:
    """What was refused is known for ten seconds, unless its key changes or everything may have."""
    clock = FakeClock()
    refused = RefusedCredentials(clock)
    one, other = api_key.generate(os.urandom), api_key.generate(os.urandom)
    refused.add(one)
    refused.add(other)
    assert one in refused
    refused.forget_key(api_key.parse(one).key_id)
    assert (one in refused, other in refused) == (False, True)
    clock.advance(REFUSED_SECONDS)
    assert other not in refused
    refused.add(one)
    refused.clear()
    assert one not in refused


def test_refusals_are_bounded() -> None:
    """However many wrong keys come, ten thousand are remembered: the newest."""
    refused = RefusedCredentials(FakeClock())
    for number in range(10_001):
        refused.add(f"sk-naru-{number}")
    assert "sk-naru-0" not in refused
    assert "sk-naru-1" in refused
    assert "sk-naru-10000" in refused


def test_an_address_may_try_so_many() -> None:
    """After its burst an address waits as long as it is told, and then may try one more; others never notice."""
    clock = FakeClock()
    limit = WrongKeyLimit(clock)
    exhausted(limit, "192.0.2.1")
    with pytest.raises(NaruError) as failure:
        limit.check("192.0.2.1")
    assert failure.value.reason is Reason.RATE_LIMIT_EXCEEDED
    assert failure.value.metadata["scope"] == "address"
    assert failure.value.retry_after == 60 / WRONG_KEYS_MINUTE
    limit.check("192.0.2.2")
    clock.advance(failure.value.retry_after)
    limit.check("192.0.2.1")
    limit.note("192.0.2.1")
    with pytest.raises(NaruError):
        limit.check("192.0.2.1")
    clock.advance(3600)
    exhausted(limit, "192.0.2.1")


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("somewhere", "somewhere", True),
        ("", "", False),
    ],
)
def test_who_counts_as_one(first: str, second: str, same: bool) -> None:
    """An IPv6 network of 64 bits is one, an IPv4 address through a dual-stack socket is itself; no address is never limited."""
    limit = WrongKeyLimit(FakeClock())
    exhausted(limit, first)
    if same:
        with pytest.raises(NaruError):
            limit.check(second)
    else:
        limit.check(second)
