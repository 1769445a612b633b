"""Money as people write it."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru.money import format_money, parse_money


@pytest.mark.parametrize(
    ("nano", "text"),
    [
        (0, "0"),
        (1, "0.000000001"),
        (12_345, "0.000012345"),
        (150_000_000, "0.15"),
        (5_000_000_000, "5"),
        (100_000_000_000, "100"),
        (-500_000_000, "-0.5"),
        (9_007_199_254_740_993, "9007199.254740993"),
    ],
)
def test_no_digit_too_many(nano: int, text: str) -> None:
    """Whole nano-units are written without zeros that say nothing."""
    assert format_money(nano) == text


@pytest.mark.parametrize(
    ("text", "nano"),
    [("5", 5 * 10**9), ("5.00", 5 * 10**9), ("0.15", 150_000_000), ("0.000000001", 1), ("0.10000000000", 10**8)],
)
def test_amounts_are_read_exactly(text: str, nano: int) -> None:
    """Zeros beyond the nano-unit are no finer amount."""
    assert parse_money(text) == nano


@pytest.mark.parametrize("text", ["", "-1", "+1", "1e3", ".5", "5.", "1,000", "1_000", "NaN", "inf", "٣", "1 ", "0x1"])
def test_what_is_no_amount(text: str) -> None:
    """Only digits and one point: nothing to guess."""
    with pytest.raises(ValueError, match="is no amount"):
        parse_money(text)


@pytest.mark.parametrize("text", ["0.0000000001", "1.0000000005", f"{10**29}.{'0' * 29}1"])
def test_what_is_too_fine(text: str) -> None:
    """An amount that would have to be rounded is refused, however large it is."""
    with pytest.raises(ValueError, match="too fine"):
        parse_money(text)


@given(st.integers(0, 10**25))
def test_what_is_written_is_read(nano: int) -> None:
    """Reading undoes writing, and what is written is a JSON number."""
    assert parse_money(format_money(nano)) == nano
    assert not isinstance(json.loads(format_money(nano)), str)
