"""What authsvc keeps of people: plain values, free of SQL and of the wire. Every time is in seconds since the Unix epoch."""

from __future__ import annotations

from dataclasses import dataclass

from authsvc.keys import SecretDigest
from authsvc.records import Position
from naru.identity import Role


@dataclass(frozen=True, slots=True)
class User:
    """A person who can log in. `tier` empty: the workspace's. `role`: ADMIN, or USER for everybody else."""

    user_id: str
    email: str
    create_time: float
    name: str = ""
    role: Role = Role.USER
    tier: str = ""
    default_workspace_id: str = ""
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class Membership:
    """What a user is in a workspace."""

    workspace_id: str
    user_id: str
    role: Role
    create_time: float
    workspace_name: str = ""
    email: str = ""


@dataclass(frozen=True, slots=True)
class Invite:
    """Leave to register. `email` empty: for whoever holds the code. Times None: it was not."""

    invite_id: str
    workspace_id: str
    role: Role
    create_time: float
    expire_time: float
    email: str = ""
    use_time: float | None = None
    revoke_time: float | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """What a log-in began. `revoke_time` None: it was not ended."""

    session_id: str
    user_id: str
    client_address: str
    create_time: float
    expire_time: float
    revoke_time: float | None = None

    def lives(self, now: float) -> bool:
        """Whether it can go on."""
        return self.revoke_time is None and now < self.expire_time


@dataclass(frozen=True, slots=True)
class StoredRefresh:
    """One refresh token of a session. `spend_time` None: it was not changed for its successor."""

    session: Session
    generation: int
    digest: SecretDigest
    spend_time: float | None
    newest: int
    blocked: bool


@dataclass(frozen=True, slots=True)
class Seat:
    """What a user is in one workspace, and the tier of that workspace."""

    workspace_id: str
    role: Role
    tier: str


@dataclass(frozen=True, slots=True)
class StoredSession:
    """What one consistent look at the database says of a session; without such a session only the position is set.

    `role`, `tier` and `blocked` are its user's; `seats` begin with the user's default workspace. An administrator without any
    has one in the installation's first workspace.
    """

    position: Position
    session: Session | None = None
    role: Role = Role.USER
    tier: str = ""
    blocked: bool = False
    seats: tuple[Seat, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredSigningKey:
    """A signing key as it is kept: the private half encrypted under a pepper."""

    kid: str
    public_key: bytes
    private_key: bytes
    pepper_version: int
    create_time: float
