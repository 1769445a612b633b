"""Tiers of the configuration's file."""

from __future__ import annotations

from pathlib import Path

import pytest

from accounting.catalogue.tier_file import read
from accounting.limits import LimitRule, Tier, TierLimit
from accounting.quota import LimitKind, LimitScope, LimitWindow


def test_a_file_of_tiers(tmp_path: Path) -> None:
    """Everything that a rule can say can be said in the file."""
    path = tmp_path / "tiers.toml"
    path.write_text(
        """
        [free]
        default_output_tokens = 64
        [[free.limits]]
        scope = "workspace"
        kind = "cost"
        window = "month"
        limit = 5_000_000_000
        model = "m"
        shadow = true
        soft_thresholds = [50, 80]
        [[free.limits]]
        kind = "concurrency"
        limit = 1
        [team]
        """
    )
    rule = LimitRule(LimitKind.COST, LimitWindow.MONTH, 5_000_000_000, "m", True, (50, 80))
    limits = (
        TierLimit(rule, LimitScope.WORKSPACE),
        TierLimit(LimitRule(LimitKind.CONCURRENCY, LimitWindow.NONE, 1)),
    )
    assert read(path) == {"free": Tier("free", limits, 64), "team": Tier("team")}
    assert read(None) == {}


@pytest.mark.parametrize(
    "text",
    [
        "[free",
        "free = 1",
        "[free]\nlimit = []",
        "[free]\nlimits = [1]",
        '[free]\nlimits = [{ kind = "wishes", window = "hour", limit = 1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "year", limit = 1 }]',
        '[free]\nlimits = [{ scope = "planet", kind = "requests", window = "hour", limit = 1 }]',
        '[free]\nlimits = [{ kind = "requests", limit = 1 }]',
        '[free]\nlimits = [{ kind = "concurrency", window = "hour", limit = 1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour" }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = -1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = true }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = nan }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = inf }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = 1e400 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = 60.0 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = -0.0 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = "60" }]',
        '[free]\nlimits = [{ kind = "cost", window = "month", limit = 9_000_000_000_000_001 }]',
        '[free]\nlimits = [{ kind = "cost", window = "month", limit = 99999999999999999999999 }]',
        '[free]\nlimits = [{ kind = "cost", window = "month", limit = 5, currency = "USD" }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = 1, shadow = 1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = 1, soft_thresholds = [200] }]',
        '[free]\nlimits = [{ kind = "concurrency", limit = 1 }, { kind = "concurrency", limit = 2 }]',
        "[free]\ndefault_output_tokens = 0",
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str) -> None:
    """And the error names it."""
    path = tmp_path / "tiers.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"tiers\.toml"):
        read(path)
