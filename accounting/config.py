"""What accounting can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from naru.config import ServiceConfig, setting

_POLICIES = ("closed", "open")


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
    lease_seconds: float = setting(60.0, "Seconds that a reservation lives without being renewed.")
    hard_lifetime_seconds: float = setting(3_600.0, "Seconds that a reservation lives at most.")
    tiers_file: Path | None = setting(None, "TOML file whose tiers replace the built-in ones of the same name.")

    def __post_init__(self) -> None:
        """Raises ValueError for a value that makes no sense."""
        if self.redis_lost_policy not in _POLICIES:
            raise ValueError(f"NARU_ACCOUNTING_REDIS_LOST_POLICY must be one of {', '.join(_POLICIES)}")
        if not 0 < self.lease_seconds <= self.hard_lifetime_seconds <= 7 * 86_400:
            raise ValueError(
                "NARU_ACCOUNTING_LEASE_SECONDS must be above 0 and at most NARU_ACCOUNTING_HARD_LIFETIME_SECONDS,"
                " which must be at most a week"
            )
        if not 0 <= self.recovery_seconds <= 86_400:
            raise ValueError("NARU_ACCOUNTING_RECOVERY_SECONDS must be from 0 to 86400")
