"""What usage costs, in whole nano-units of the installation's one currency."""

from __future__ import annotations

from dataclasses import dataclass

from naru.usage import Usage

NANO = 1_000_000_000
"""Nano-units in one unit of the currency."""
MAX_UNIT_PRICE = 10**15
"""Most that a million tokens, or a request, can cost: a million units of the currency."""
MAX_COST = 9 * 10**15
"""Most that one event, or a limit, may amount to: exact in every store, the doubles of the limiter included."""
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class UnitPrices:
    """What units cost, in nano-units, as `naru.api.accounting.v1.UnitPrices` documents it."""

    input_million: int = 0
    cached_input_million: int = 0
    output_million: int = 0
    request: int = 0

    def cost(self, usage: Usage) -> int:
        """What the usage of a request that the engine accepted costs: rounded once, half up, at most MAX_COST."""
        tokens = (
            (usage.prompt_tokens - usage.cached_prompt_tokens) * self.input_million
            + usage.cached_prompt_tokens * self.cached_input_million
            + usage.completion_tokens * self.output_million
        )
        return min((tokens + _MILLION // 2) // _MILLION + self.request, MAX_COST)

    def most(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a request of so many tokens can cost, whatever the engine finds in its cache."""
        dearest = max(self.input_million, self.cached_input_million)
        tokens = input_tokens * dearest + output_tokens * self.output_million
        return min(-(-tokens // _MILLION) + self.request, MAX_COST)
