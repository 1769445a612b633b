"""Passwords and the throttle of log-ins: the same work whoever asks, a bounded queue, and buckets that lock nobody out."""

from __future__ import annotations

import asyncio

import pytest

from authsvc.passwords import Passwords, check_new
from authsvc.throttle import Allowance, LoginThrottle, ThrottlePolicy
from naru.errors import NaruError, Reason
from naru.testing.clock import FakeClock


class Counting(Passwords):
    """Notes the hash that each check works through."""

    def __init__(self) -> None:
        super().__init__(memory_kib=8)
        self.worked: list[str] = []

    def _verify(self, password: str, stored: str) -> bool:
        self.worked.append(stored)
        return super()._verify(password, stored)


async def test_nobodys_password_takes_the_same_work() -> None:
    """Without a stored hash one hash with the same parameters is worked through, and the answer is no, whatever is said."""
    passwords = Counting()
    stored = await passwords.hash("correct horse")
    assert await passwords.matches("correct horse", stored)
    assert not await passwords.matches("wrong", stored)
    assert not await passwords.matches("wrong", None)
    assert not await passwords.matches("nobody's password", None)
    passwords.close()
    assert len(passwords.worked) == 4
    assert len({text.rpartition("$")[0].rpartition("$")[0] for text in passwords.worked}) == 1, "one set of parameters"


async def test_a_password_is_the_same_on_every_keyboard() -> None:
    """Composed and decomposed letters are one password; other letters are not."""
    passwords = Passwords(memory_kib=8)
    stored = await passwords.hash("비밀번호 cafe\u0301")
    assert await passwords.matches("비밀번호 caf\u00e9", stored)
    assert not await passwords.matches("비밀번호 cafe", stored)
    assert not passwords.is_outdated(stored)
    stronger = Passwords(memory_kib=16)
    assert stronger.is_outdated(stored)
    for one in (passwords, stronger):
        one.close()


async def test_too_many_at_once_are_refused() -> None:
    """What would wait behind 32 others is refused at once; the others are answered."""
    passwords = Passwords(threads=1, memory_kib=8)
    results = await asyncio.gather(*(passwords.hash(str(number)) for number in range(40)), return_exceptions=True)
    passwords.close()
    refused = [result for result in results if isinstance(result, NaruError)]
    assert {error.reason for error in refused} == {Reason.OVERLOADED}
    assert len(refused) == 40 - 33


@pytest.mark.parametrize("password", ["", "seven77", "x" * 1_025])
def test_lengths_of_passwords(password: str) -> None:
    """Too short and too long is said without the password."""
    with pytest.raises(NaruError) as failure:
        check_new(password, "password")
    assert failure.value.metadata == {"field": "password"}
    assert not password or password not in failure.value.message


def attempts(throttle: LoginThrottle, account: str, address: str, number: int) -> int:
    """How many of so many failures are let through."""
    passed = 0
    for _ in range(number):
        try:
            throttle.attempt(account, address)
            passed += 1
        except NaruError as error:
            if error.reason is not Reason.RATE_LIMIT_EXCEEDED or not error.retry_after:
                raise
    return passed


def test_the_buckets() -> None:
    """An account from one address, from all strange ones, and an address over all accounts; each fills up again."""
    clock = FakeClock()
    policy = ThrottlePolicy(pair=Allowance(2, 10.0), account=Allowance(5, 10.0), address=Allowance(8, 10.0))
    throttle = LoginThrottle(clock, policy)
    throttle.attempt("ann", "192.0.2.1")
    throttle.succeeded("ann", "192.0.2.1")
    assert attempts(throttle, "ann", "198.51.100.1", 9) == 2
    assert attempts(throttle, "ann", "198.51.100.2", 9) == 2
    assert attempts(throttle, "ann", "198.51.100.3", 9) == 1, "the account has no more for strangers"
    assert attempts(throttle, "ann", "198.51.100.4", 9) == 0
    assert attempts(throttle, "ann", "192.0.2.1", 9) == 2, "where its owner was it has"
    assert sum(attempts(throttle, f"user {number}", "203.0.113.1", 2) for number in range(9)) == 8
    clock.advance(10)
    assert attempts(throttle, "ann", "198.51.100.4", 9) == 1
    assert attempts(throttle, "user 20", "203.0.113.1", 9) == 1


def test_an_ipv6_network_is_one_address() -> None:
    """Whoever has a /64 has as many guesses as whoever has one address; a mapped IPv4 address is that address."""
    throttle = LoginThrottle(FakeClock(), ThrottlePolicy(pair=Allowance(2, 10.0)))
    assert sum(attempts(throttle, "ann", f"2001:db8::{number:x}", 1) for number in range(9)) == 2
    assert attempts(throttle, "ann", "2001:db8:0:1::1", 9) == 2
    assert attempts(throttle, "ann", "192.0.2.1", 1) + attempts(throttle, "ann", "::ffff:192.0.2.1", 9) == 2
