"""What accounting can be told."""

from __future__ import annotations

from pathlib import Path

import pytest

from accounting.config import AccountingConfig
from naru.config import ConfigError, describe, load


def test_defaults_are_usable() -> None:
    """Nothing has to be set."""
    config = load(AccountingConfig, {})
    assert (config.port, config.lease_seconds, config.hard_lifetime_seconds) == (50052, 60, 3_600)
    assert (config.redis_lost_policy, config.recovery_seconds) == ("closed", 90)
    assert (config.currency, config.time_zone, config.unpriced_models) == ("USD", "UTC", "zero")
    assert (config.usage_days, config.request_log_days) == (90, 30)


def test_money_and_calendar_are_the_installations() -> None:
    """A currency by its code, a zone by its name."""
    given = {"CURRENCY": "KRW", "TIME_ZONE": "Asia/Seoul", "UNPRICED_MODELS": "refuse"}
    config = load(AccountingConfig, {f"NARU_ACCOUNTING_{name}": value for name, value in given.items()})
    assert (config.currency, config.time_zone, config.unpriced_models) == tuple(given.values())


def test_urls_are_secret() -> None:
    """They may hold passwords, so the configuration in the log does not show them."""
    config = load(
        AccountingConfig, {"NARU_ACCOUNTING_DATABASE_URL": "x:hunter2", "NARU_ACCOUNTING_REDIS_URL": "hunter2"}
    )
    assert "hunter2" not in str(describe(config))


def test_the_secret_of_outcomes(tmp_path: Path) -> None:
    """It may stand in a file, is not shown, not even when it is too short, and there is none by default."""
    assert load(AccountingConfig, {}).outcome_key is None
    path = tmp_path / "outcome-key"
    path.write_text("hunter2" * 5 + "\n")
    config = load(AccountingConfig, {"NARU_ACCOUNTING_OUTCOME_KEY_FILE": str(path)})
    assert config.outcome_key == "hunter2" * 5
    assert "hunter2" not in str(describe(config))
    with pytest.raises(ConfigError) as error:
        load(AccountingConfig, {"NARU_ACCOUNTING_OUTCOME_KEY": "hunter2"})
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_LOST_POLICY", "ajar"),
        ("HARD_LIFETIME_SECONDS", "59"),
        ("HARD_LIFETIME_SECONDS", "nan"),
        ("HARD_LIFETIME_SECONDS", "1e9"),
        ("RECOVERY_SECONDS", "-1"),
        ("RECOVERY_SECONDS", "inf"),
        ("USAGE_DAYS", "31"),
        ("USAGE_DAYS", "36501"),
        ("REQUEST_LOG_DAYS", "0"),
        ("CURRENCY", "usd"),
        ("CURRENCY", "USDT"),
        ("CURRENCY", "UDS"),
        ("CURRENCY", "USD\n"),
        ("CURRENCY", ""),
        ("TIME_ZONE", "Asia/Pyeongchang"),
        ("TIME_ZONE", "Asia"),
        ("TIME_ZONE", "/etc/localtime"),
        ("TIME_ZONE", "../../etc/passwd"),
        ("TIME_ZONE", ""),
        ("TIME_ZONE", "\0"),
        ("UNPRICED_MODELS", "free"),
        ("OUTCOME_KEY", "x" * 31),
    ],
)
def test_wrong_values_are_named(name: str, value: str) -> None:
    """With what is allowed."""
    with pytest.raises(ConfigError, match=f"NARU_ACCOUNTING_{name}"):
        load(AccountingConfig, {f"NARU_ACCOUNTING_{name}": value})
