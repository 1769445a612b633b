"""What a tier allows, and whom its limits count for."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from accounting.quota import Limit, LimitKind, LimitWindow
from accounting.tiers import BUILT_IN, Tiers, read
from naru.identity import Principal
from naru.logs import get_logger

FREE = Principal("ws", tier="free", key_id="k", user_id="u")


def limits(principal: Principal) -> tuple[Limit, ...]:
    """What applies to it by the built-in tiers."""
    return Tiers(BUILT_IN, get_logger("test")).limits(principal)


@pytest.mark.parametrize(("tier", "minute", "hour", "concurrency"), [("free", 10, 100, 4), ("standard", 60, 1_000, 16)])
def test_built_in_tiers(tier: str, minute: int, hour: int, concurrency: int) -> None:
    """They limit requests and what is in flight, for the key."""
    assert limits(Principal("ws", tier=tier, key_id="k")) == (
        Limit("key", "k", LimitKind.REQUESTS, LimitWindow.MINUTE, minute),
        Limit("key", "k", LimitKind.REQUESTS, LimitWindow.HOUR, hour),
        Limit("key", "k", LimitKind.CONCURRENCY, LimitWindow.NONE, concurrency),
    )


def test_unlimited_has_no_limits() -> None:
    """Nothing applies."""
    assert limits(Principal("ws", tier="unlimited", key_id="k")) == ()


@pytest.mark.parametrize(
    ("principal", "scope"),
    [
        (FREE, ("key", "k")),
        (Principal("ws", user_id="u"), ("user", "u")),
        (Principal("ws", service_account="dev-team"), ("workspace", "ws")),
    ],
)
def test_whom_limits_count_for(principal: Principal, scope: tuple[str, str]) -> None:
    """The key, else the user, else the workspace."""
    assert {(limit.scope, limit.scope_id) for limit in limits(principal)} == {scope}


def test_an_unknown_tier_is_free_and_logged_once() -> None:
    """A name with a typing error does not open the doors."""
    tiers = Tiers(BUILT_IN, get_logger("test"))
    with structlog.testing.capture_logs() as logged:
        found = [tiers.of(Principal("ws", tier=name)).name for name in ("gold", "gold", "silver", "free")]
    assert found == ["free"] * 4
    assert [line["tier"] for line in logged] == ["gold", "silver"]


def test_a_file_replaces_the_tiers_it_names(tmp_path: Path) -> None:
    """The others stay as they are."""
    path = tmp_path / "tiers.toml"
    path.write_text(
        """
        [free]
        default_output_tokens = 64
        limits = [{ kind = "total_tokens", window = "hour", limit = 1000 }, { kind = "concurrency", limit = 1 }]
        [team]
        """
    )
    tiers = read(path)
    assert tiers["standard"] == BUILT_IN["standard"]
    assert tiers["team"].limits == ()
    assert tiers["free"].default_output_tokens == 64
    assert [limit.kind for limit in tiers["free"].limits] == [LimitKind.TOTAL_TOKENS, LimitKind.CONCURRENCY]
    assert (tiers["free"].caps_output, tiers["standard"].caps_output) == (True, False)


@pytest.mark.parametrize(
    "text",
    [
        "[free",
        "free = 1",
        "[free]\nlimit = []",
        "[free]\nlimits = [1]",
        '[free]\nlimits = [{ kind = "wishes", window = "hour", limit = 1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "year", limit = 1 }]',
        '[free]\nlimits = [{ kind = "requests", limit = 1 }]',
        '[free]\nlimits = [{ kind = "concurrency", window = "hour", limit = 1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour" }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = -1 }]',
        '[free]\nlimits = [{ kind = "requests", window = "hour", limit = true }]',
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
