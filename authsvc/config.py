"""What authsvc can be told."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from authsvc import foreign_config
from authsvc.keys import Pepper, Peppers
from naru.config import ConfigError, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthsvcConfig(foreign_config.ForeignConfig):
    """Configuration of authsvc. Raises ValueError for values that make no sense."""

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
        "version:path of each file with a pepper of at least 32 bytes, separated by commas; new keys use the first, and keys of"
        " the others move to it when they are used.",
    )
    registration: str = setting("off", "Who may register: open (anybody), invite (whoever has one) or off (nobody).")
    user_keys: int = setting(
        100,
        "How many API keys users without a role in their workspace may have when they make one: those that work count, and those"
        " of the last 24 hours. With 0 they make none; those they have they manage anyway.",
    )
    access_token_seconds: float = setting(900.0, "Seconds for which a user's access token is good, from 60 to 3,600.")
    session_days: float = setting(30.0, "Days for which a session can be refreshed before its user logs in again.")
    refresh_grace_seconds: float = setting(
        10.0,
        "Seconds for which a spent refresh token gives the same successor again, as its answer may have been lost.",
    )
    signing_key_days: float = setting(30.0, "Days after which access tokens are signed with a new key.")
    token_issuer: str = setting("naru", "Who access tokens say they are from.")
    token_audience: str = setting("naru", "Whom access tokens say they are for.")
    password_threads: int = setting(2, "Passwords that are hashed at the same time; each takes 46 MiB while it is.")

    def __post_init__(self) -> None:
        # By name: a class with slots is not the one that super() would look for.
        foreign_config.ForeignConfig.__post_init__(self)
        if self.registration not in ("open", "invite", "off"):
            raise ValueError(f"NARU_AUTHSVC_REGISTRATION must be open, invite or off, not {self.registration!r}")
        if not 0 <= self.user_keys <= 1_000_000:
            raise ValueError("NARU_AUTHSVC_USER_KEYS must be from 0 to 1000000")
        if not 60 <= self.access_token_seconds <= 3600:
            raise ValueError("NARU_AUTHSVC_ACCESS_TOKEN_SECONDS must be from 60 to 3600")
        if not 0 < self.session_days <= 3660:
            raise ValueError("NARU_AUTHSVC_SESSION_DAYS must be more than 0 and at most 3660")
        if not 0 <= self.refresh_grace_seconds <= 60:
            raise ValueError("NARU_AUTHSVC_REFRESH_GRACE_SECONDS must be from 0 to 60")
        if not 1 <= self.signing_key_days <= 3660:
            raise ValueError("NARU_AUTHSVC_SIGNING_KEY_DAYS must be from 1 to 3660")
        if not self.token_issuer or not self.token_audience:
            raise ValueError("NARU_AUTHSVC_TOKEN_ISSUER and NARU_AUTHSVC_TOKEN_AUDIENCE must not be empty")
        if self.oidc_issuer == self.token_issuer:
            raise ValueError("NARU_AUTHSVC_OIDC_ISSUER and NARU_AUTHSVC_TOKEN_ISSUER must not be the same")
        if not 1 <= self.password_threads <= 64:
            raise ValueError("NARU_AUTHSVC_PASSWORD_THREADS must be from 1 to 64")


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
