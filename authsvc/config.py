"""What authsvc can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from authsvc.keys import Pepper, Peppers
from naru.config import ConfigError, ServiceConfig, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthsvcConfig(ServiceConfig):
    """Configuration of authsvc."""

    SERVICE: ClassVar[str] = "authsvc"

    port: int = setting(50051, "Port to listen on; 0 takes a free one.")
    database_url: str = setting(
        "sqlite+aiosqlite:///.naru/data/authsvc.db",
        "SQLAlchemy URL of the database: sqlite+aiosqlite:///<file> or postgresql+asyncpg://<user>:<password>@<host>/<name>.",
        secret=True,
    )
    database_wait: float = setting(30.0, "Seconds to wait at start for a database that does not answer yet.")
    pepper_files: tuple[str, ...] = setting(
        ("1:.naru/secrets/pepper",),
        "version:path of each file with a pepper of at least 32 bytes, separated by commas; new keys use the first.",
    )


def read_peppers(config: AuthsvcConfig) -> Peppers:
    """The peppers. Raises ConfigError for an entry, a file or a pepper that is not usable."""
    try:
        return Peppers([_read_pepper(entry) for entry in config.pepper_files])
    except (ValueError, OSError) as error:
        raise ConfigError(f"NARU_AUTHSVC_PEPPER_FILES: {error}") from error


def _read_pepper(entry: str) -> Pepper:
    version, separator, path = entry.partition(":")
    if not separator or not version.isdecimal() or not 0 < int(version) < 1 << 31:
        raise ValueError(f"{entry!r} is not of the form version:path with a version from 1 on")
    return Pepper(int(version), Path(path).expanduser().read_bytes().strip())
