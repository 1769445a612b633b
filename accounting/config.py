"""What accounting can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from zoneinfo import ZoneInfo

from naru import currencies
from naru.config import ServiceConfig, setting

_POLICIES = ("closed", "open")
_UNPRICED = ("zero", "refuse")
_SECRET_CHARACTERS = 32
_MOST_DAYS = 36_500


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountingConfig(ServiceConfig):
    """Configuration of accounting."""

    SERVICE: ClassVar[str] = "accounting"

    port: int = setting(50052, "Port to listen on; 0 takes a free one.")
    database_url: str = setting(
        "sqlite+aiosqlite:///.naru/data/accounting.db",
        "SQLAlchemy URL of the database: sqlite+aiosqlite:///<file> or postgresql+asyncpg://<user>:<password>@<host>/<name>.",
        secret=True,
    )
    database_wait: float = setting(30.0, "Seconds to wait at start for a database that does not answer yet.")
    redis_url: str = setting(
        "redis://127.0.0.1:6379/0", "URL of Redis: redis://, rediss:// or unix://; version 6.2 or later.", secret=True
    )
    redis_lost_policy: str = setting(
        "closed",
        "While Redis is away or was emptied: closed refuses requests, open admits and logs them.",
    )
    recovery_seconds: float = setting(
        90.0,
        "Seconds for which an emptied Redis counts as lost; less than 61 may let a minute's limit be exceeded once.",
    )
    hard_lifetime_seconds: float = setting(3_600.0, "Seconds that a reservation lives at most.")
    outcome_key: str | None = setting(
        None,
        "What the answers to requests with an Idempotency-Key are encrypted with, 32 characters or more; unset: such"
        " requests are refused.",
        secret=True,
    )
    tiers_file: Path | None = setting(
        None, "TOML file of tiers, which replace others of the same name and cannot be changed at run time."
    )
    currency: str = setting(
        "USD",
        "Currency that every price, cost and limit on cost is meant in, by its code in ISO 4217; XXX for a unit of your own."
        " For the record: it is checked and logged at the start, and changes nothing.",
    )
    time_zone: str = setting("UTC", "IANA name of the zone whose calendar limits per day and month follow.")
    unpriced_models: str = setting(
        "zero", "Requests for models that have no price: zero lets them cost nothing, refuse refuses them."
    )
    usage_days: int = setting(
        90, "Days that single usage events are kept, 32 or more; sums by the hour are kept for good."
    )
    request_log_days: int = setting(30, "Days that lines of the request log are kept.")

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.redis_lost_policy not in _POLICIES:
            raise ValueError(f"NARU_ACCOUNTING_REDIS_LOST_POLICY must be one of {', '.join(_POLICIES)}")
        if not self.lease_seconds <= self.hard_lifetime_seconds <= 7 * 86_400:
            raise ValueError(
                "NARU_LEASE_SECONDS must be at most NARU_ACCOUNTING_HARD_LIFETIME_SECONDS, which must be at most a week"
            )
        if not 0 <= self.recovery_seconds <= 86_400:
            raise ValueError("NARU_ACCOUNTING_RECOVERY_SECONDS must be from 0 to 86400")
        if self.outcome_key is not None and len(self.outcome_key) < _SECRET_CHARACTERS:
            raise ValueError(f"NARU_ACCOUNTING_OUTCOME_KEY must have at least {_SECRET_CHARACTERS} characters")
        if self.currency not in currencies.CODES:
            raise ValueError("NARU_ACCOUNTING_CURRENCY must be a code of ISO 4217, such as USD, or XXX")
        if not _is_zone(self.time_zone):
            raise ValueError("NARU_ACCOUNTING_TIME_ZONE must be the name of a time zone, such as Asia/Seoul")
        if self.unpriced_models not in _UNPRICED:
            raise ValueError(f"NARU_ACCOUNTING_UNPRICED_MODELS must be one of {', '.join(_UNPRICED)}")
        # An emptied Redis gets the counts of this month back from the single events.
        if not 32 <= self.usage_days <= _MOST_DAYS:
            raise ValueError(f"NARU_ACCOUNTING_USAGE_DAYS must be from 32 to {_MOST_DAYS}")
        if not 1 <= self.request_log_days <= _MOST_DAYS:
            raise ValueError(f"NARU_ACCOUNTING_REQUEST_LOG_DAYS must be from 1 to {_MOST_DAYS}")


def _is_zone(name: str) -> bool:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no relative path; a folder of zones
        return False
    return True
