"""Money as people write it: decimals of the currency's unit. Everywhere else it is whole nano-units."""

from __future__ import annotations

import re
from decimal import Context, Decimal

from naru.pricing import NANO

_PLACES = 9
_AMOUNT = re.compile(r"\d{1,30}(?:\.\d{1,30})?", re.ASCII)
# Never rounds: 30 digits before the point and 30 after it.
_EXACT = Context(prec=70)


def format_money(nano: int) -> str:
    """Nano-units as a decimal of the unit, exactly, without zeros that say nothing: "0.000012345", "5", "-0.5"."""
    whole, rest = divmod(abs(nano), NANO)
    text = f"{whole}.{rest:0{_PLACES}}".rstrip("0").rstrip(".")
    return f"-{text}" if nano < 0 else text


def parse_money(text: str) -> int:
    """Nano-units of a decimal such as "5", "0.15" or "0.000012345".

    Raises ValueError, with a sentence that says why, for anything else: signs, exponents, and amounts finer than a nano-unit.
    """
    if _AMOUNT.fullmatch(text) is None:
        raise ValueError(f"{text!r} is no amount; write it as 5 or 0.15")
    nano = _EXACT.multiply(Decimal(text), Decimal(NANO))
    if nano != nano.to_integral_value():
        raise ValueError(f"{text} is too fine; the finest amount is {format_money(1)}")
    return int(nano)
