"""Who is calling, and for whom: services by their token, everybody else by a credential."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path


class Role(StrEnum):
    """What a person or program may do; each role may do what the ones before it may."""

    USER = "user"
    WORKSPACE_ADMIN = "workspace_admin"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """0 for the least powerful."""
        return list(Role).index(self)


@dataclass(frozen=True, slots=True)
class Scopes:
    """What narrows a credential; an empty tuple allows everything. Models and endpoints are globs."""

    models: tuple[str, ...] = ()
    endpoints: tuple[str, ...] = ()
    source_cidrs: tuple[str, ...] = ()

    def allows_endpoint(self, endpoint: str) -> bool:
        """Whether a route, such as "/v1/models", or an RPC by its full name may be used."""
        return not self.endpoints or any(fnmatchcase(endpoint, glob) for glob in self.endpoints)


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request is made for, as `naru.api.common.v1.Principal` documents it."""

    workspace_id: str
    role: Role = Role.USER
    tier: str = "free"
    key_id: str = ""
    user_id: str = ""
    service_account: str = ""
    scopes: Scopes = field(default_factory=Scopes)


class ServiceName(StrEnum):
    """The parts of Naru that call each other. `operator` is whoever holds the installation's operator token."""

    EDGE = "edge"
    AUTHSVC = "authsvc"
    ACCOUNTING = "accounting"
    INFERENCE = "inference"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever made an RPC: a service, or a principal; never both."""

    service: ServiceName | None = None
    principal: Principal | None = None


class ServiceTokens:
    """The tokens by which services know each other, one file per service: `<directory>/service-token-<name>`.

    A process needs its own file to call others. Of those that may call it the digest is enough, with which it cannot call as
    they do: `service-token-<name>.sha256`, in hexadecimal. Missing files are callers that cannot call; tokens are compared in
    constant time.

    Args:
        digests: SHA-256 of tokens that are not known themselves.
    """

    def __init__(self, tokens: Mapping[ServiceName, str], digests: Mapping[ServiceName, bytes] | None = None) -> None:
        self._tokens = dict(tokens)
        self._digests = {**(digests or {}), **{name: _digest(token) for name, token in tokens.items()}}

    @classmethod
    def read(cls, directory: Path) -> ServiceTokens:
        """Reads the files that are there. Raises ValueError for a token shorter than 32 characters, or what is no digest."""
        tokens, digests = {}, {}
        for name in ServiceName:
            path = directory / f"service-token-{name}"
            if path.exists():
                token = path.read_text().strip()
                if len(token) < 32:
                    raise ValueError(f"{path} holds {len(token)} characters; a service token needs at least 32")
                tokens[name] = token
            path = directory / f"service-token-{name}.sha256"
            if path.exists():
                digests[name] = _read_digest(path)
        return cls(tokens, digests)

    def of(self, name: ServiceName) -> str:
        """The token `name` calls with. Raises ValueError when its file was not there."""
        if name not in self._tokens:
            raise ValueError(f"there is no file service-token-{name} in the directory of service tokens")
        return self._tokens[name]

    def who(self, token: str) -> ServiceName | None:
        """Whose token this is; None when nobody's. Compares with every known token, so that time tells nothing."""
        digest = _digest(token)
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(known, digest):
                found = name
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _read_digest(path: Path) -> bytes:
    try:
        digest = bytes.fromhex(path.read_text().strip())
    except ValueError:
        digest = b""
    if len(digest) != hashlib.sha256().digest_size:
        raise ValueError(f"{path} does not hold a SHA-256 digest in hexadecimal")
    return digest
