"""Tiers of the configuration: the built-in ones, and a TOML file that replaces them or adds to them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from accounting.limits import DEFAULT_OUTPUT_TOKENS, LimitRule, Tier, TierLimit, check_tier
from accounting.quota import LimitKind, LimitScope, LimitWindow
from naru.errors import NaruError


def _requests(name: str, minute: int, hour: int, concurrency: int) -> Tier:
    return Tier(
        name,
        (
            TierLimit(LimitRule(LimitKind.REQUESTS, LimitWindow.MINUTE, minute)),
            TierLimit(LimitRule(LimitKind.REQUESTS, LimitWindow.HOUR, hour)),
            TierLimit(LimitRule(LimitKind.CONCURRENCY, LimitWindow.NONE, concurrency)),
        ),
    )


BUILT_IN: Mapping[str, Tier] = {
    "free": _requests("free", 10, 100, 4),
    "standard": _requests("standard", 60, 1_000, 16),
    "unlimited": Tier("unlimited"),
}
"""What a tier is that nobody defined otherwise."""


def read(path: Path | None) -> dict[str, Tier]:
    """The tiers of the file. Raises ValueError when it is wrong.

    ```toml
    [free]
    default_output_tokens = 1024
    limits = [
      { kind = "requests", window = "minute", limit = 20 },
      { scope = "workspace", kind = "cost", window = "month", limit = 5_000_000_000, soft_thresholds = [80] },
      { kind = "concurrency", limit = 2 },
    ]
    ```
    """
    if path is None:
        return {}
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"cannot read the tiers of {path}: {error}") from error
    tiers = {}
    for name, table in document.items():
        try:
            tiers[name] = _tier(name, table)
        except (NaruError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: tier {name!r}: {error}") from error
    return tiers


def _tier(name: str, table: Any) -> Tier:
    if not isinstance(table, dict):
        raise TypeError("must be a table")
    _only(table, ("limits", "default_output_tokens"))
    limits = tuple(_limit(entry) for entry in table.get("limits", []))
    tier = Tier(name, limits, _whole(table.get("default_output_tokens", DEFAULT_OUTPUT_TOKENS)))
    check_tier(tier, "tier")
    return tier


def _limit(entry: Any) -> TierLimit:
    if not isinstance(entry, dict):
        raise TypeError("a limit must be a table")
    _only(entry, ("scope", "kind", "window", "limit", "model", "shadow", "soft_thresholds"))
    shadow, model = entry.get("shadow", False), entry.get("model", "")
    if not isinstance(shadow, bool) or not isinstance(model, str):
        raise TypeError("shadow must be true or false, and model a text")
    return TierLimit(
        LimitRule(
            LimitKind(entry.get("kind", "")),
            LimitWindow(entry.get("window", "")),
            _whole(entry.get("limit")),
            model,
            shadow,
            tuple(_whole(threshold) for threshold in entry.get("soft_thresholds", [])),
        ),
        LimitScope(entry.get("scope", LimitScope.CALLER)),
    )


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def _only(table: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"unknown settings {', '.join(unknown)}")
