"""Access tokens: JWTs signed with Ed25519. Pure, with keys and the time passed in.

Algorithm and type are pinned: a token that names another one is refused before its signature is looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from naru.ids import is_uuid

ALGORITHM = "EdDSA"
TYPE = "at+jwt"
SKEW_SECONDS = 30.0
"""How far the clocks of two replicas may be apart."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key pair. `private` is left out of the representation."""

    kid: str
    private: Ed25519PrivateKey
    public: Ed25519PublicKey
    create_time: float

    def __repr__(self) -> str:
        return f"SigningKey(kid={self.kid!r})"


@dataclass(frozen=True, slots=True)
class TokenPolicy:
    """What tokens say of where they are from and for whom they are. `lifetime` in seconds."""

    issuer: str
    audience: str
    lifetime: float


@dataclass(frozen=True, slots=True)
class AccessClaims:
    """What a good token says. `expire_time` in seconds since the Unix epoch."""

    user_id: str
    session_id: str
    expire_time: float


class InvalidTokenError(Exception):
    """The token is no good; the text is for the log."""


def issue(key: SigningKey, policy: TokenPolicy, *, user_id: str, session_id: str, token_id: str, now: float) -> str:
    """A token for a user's session."""
    claims = {
        "iss": policy.issuer,
        "aud": policy.audience,
        "sub": user_id,
        "sid": session_id,
        "jti": token_id,
        "iat": int(now),
        "nbf": int(now),
        "exp": int(now + policy.lifetime),
    }
    return jwt.encode(claims, key.private, algorithm=ALGORITHM, headers={"kid": key.kid, "typ": TYPE})


def read_kid(token: str) -> str:
    """Which key a token says it was signed with, of which nothing is believed yet. Raises InvalidTokenError."""
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidTokenError("the header is malformed") from error
    if header.get("alg") != ALGORITHM or header.get("typ") != TYPE or "crit" in header:
        raise InvalidTokenError("the algorithm or the type is not ours")
    kid = header.get("kid")
    if not isinstance(kid, str) or not is_uuid(kid):
        raise InvalidTokenError("the key's id is not ours")
    return kid


def verify(token: str, find: Callable[[str], SigningKey | None], policy: TokenPolicy, now: float) -> AccessClaims:
    """What a token says, once all of it is as it should be. Raises InvalidTokenError."""
    key = find(read_kid(token))
    if key is None:
        raise InvalidTokenError("the key is unknown")
    try:
        claims = jwt.decode(
            token,
            key.public,
            algorithms=[ALGORITHM],
            audience=policy.audience,
            issuer=policy.issuer,
            # The time is the caller's clock, checked below.
            options={
                "require": ["iss", "aud", "sub", "sid", "iat", "nbf", "exp"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidTokenError("the signature or a claim is wrong") from error
    times = (claims["iat"], claims["nbf"], claims["exp"])
    if not all(type(time) is int for time in times):
        raise InvalidTokenError("a time is no integer")
    begins, ends = max(times[:2]) - SKEW_SECONDS, times[2] + SKEW_SECONDS
    if not begins <= now < ends:
        raise InvalidTokenError("it is too early or too late")
    user_id, session_id = claims["sub"], claims["sid"]
    if not isinstance(session_id, str) or not is_uuid(user_id) or not is_uuid(session_id):
        raise InvalidTokenError("the user or the session is not ours")
    return AccessClaims(user_id, session_id, ends)
