"""What usage costs."""

from __future__ import annotations

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from naru.pricing import MAX_COST, MAX_UNIT_PRICE, UnitPrices
from naru.usage import Usage

PRICES = st.builds(UnitPrices, *[st.integers(0, MAX_UNIT_PRICE)] * 4)
TOKENS = st.integers(0, 10**7)


def test_an_everyday_price() -> None:
    """0.15 and 0.60 per million: 1,000 prompt tokens, of which 400 cached at half, and 500 generated."""
    prices = UnitPrices(150_000_000, 75_000_000, 600_000_000, 1_000)
    assert prices.cost(Usage(1_000, 500, 400)) == 600 * 150 + 400 * 75 + 500 * 600 + 1_000


def test_halves_round_up() -> None:
    """Once, over the whole event."""
    assert UnitPrices(input_million=500_000).cost(Usage(1, 0)) == 1
    assert UnitPrices(input_million=499_999).cost(Usage(1, 0)) == 0
    assert UnitPrices(input_million=250_000, output_million=250_000).cost(Usage(1, 1)) == 1


@given(prices=PRICES, prompt=TOKENS, cached=TOKENS, completion=TOKENS)
def test_cost_is_exact_and_never_more_than_was_reserved(
    prices: UnitPrices, prompt: int, cached: int, completion: int
) -> None:
    """Within half a nano-unit of the fraction, and at most what a reservation of as many tokens takes."""
    cached = min(cached, prompt)
    exact = (
        Fraction(
            (prompt - cached) * prices.input_million
            + cached * prices.cached_input_million
            + completion * prices.output_million,
            10**6,
        )
        + prices.request
    )
    cost = prices.cost(Usage(prompt, completion, cached))
    assert abs(cost - min(exact, MAX_COST)) <= Fraction(1, 2)
    assert 0 <= cost <= prices.most(prompt, completion) <= MAX_COST
