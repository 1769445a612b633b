"""What authsvc keeps: plain values, free of SQL and of the wire. Every time is in seconds since the Unix epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from naru.identity import Role, Scopes

DEFAULT_TIER = "free"
"""The tier of a key where neither it nor its workspace names one."""


class KeyState(StrEnum):
    """How a key stands: revoked before expired before blocked."""

    ACTIVE = "active"
    BLOCKED = "blocked"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class Workspace:
    """Who pays."""

    workspace_id: str
    name: str
    tier: str
    create_time: float


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without its secret. `tier` empty: the workspace's. Times None: never, and not."""

    key_id: str
    workspace_id: str
    create_time: float
    description: str = ""
    user_id: str = ""
    service_account: str = ""
    role: Role = Role.USER
    tier: str = ""
    scopes: Scopes = field(default_factory=Scopes)
    expire_time: float | None = None
    revoke_time: float | None = None
    block_time: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    rotate_time: float | None = None
    earlier_secrets_expire_time: float | None = None
    last_used_time: float | None = None

    def state(self, now: float) -> KeyState:
        """How it stands at `now`."""
        if self.revoke_time is not None:
            return KeyState.REVOKED
        if self.expire_time is not None and self.expire_time <= now:
            return KeyState.EXPIRED
        return KeyState.ACTIVE if self.block_time is None else KeyState.BLOCKED


@dataclass(frozen=True, slots=True)
class RequestMark:
    """What makes a request recognisable when it comes again: who sent it, the id they chose, a digest of its body."""

    caller: str
    request_id: str
    body_digest: bytes


@dataclass(frozen=True, slots=True)
class Position:
    """Where the numbering of invalidations stands: `epoch` names the numbering, `sequence` is its last number."""

    epoch: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Invalidation:
    """The key `key_id`, or where that is empty the user `user_id`, is no longer what it was."""

    sequence: int
    key_id: str
    user_id: str = ""


@dataclass(frozen=True, slots=True)
class PageStart:
    """The last key of the page before, in the order newest first."""

    create_time: float
    key_id: str


@dataclass(frozen=True, slots=True)
class KeyFilters:
    """Which keys a list has, as `ListApiKeysRequest` documents it; empty and None: all."""

    workspace_id: str = ""
    show_revoked: bool = False
    tier: str = ""
    user_id: str = ""
    service_account: str = ""
    state: KeyState | None = None
    description_contains: str = ""
