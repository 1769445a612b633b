"""Tokens that others made: Open WebUI's two, and those of an OpenID provider. Pure, with keys and the time passed in.

Nothing is believed of a token before its signature was checked, by an algorithm that we name and the token does not choose.
The texts of the errors tell what is wrong with a token, and nothing of what is in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid5

import jwt
from jwt.algorithms import AllowedPublicKeys, HMACAlgorithm

from authsvc.tokens import SKEW_SECONDS, InvalidTokenError
from naru.identity import Role

OPEN_WEBUI = "open-webui"
"""Who Open WebUI's tokens are from: it says so in those about a user."""
USER_TOKEN_SECONDS_MAX = 300.0
"""How long a token about a user may be good at most."""
SUBJECT_CHARACTERS_MAX = 255
_NAME_CHARACTERS_MAX = 64
_VALUES_MAX = 100
_NAMESPACE = UUID("5f0e9d2c-7a55-4c51-9d0b-0d5a3a2f6b7e")
_TYPES = ("", "jwt", "at+jwt", "application/at+jwt")


@dataclass(frozen=True, slots=True)
class Face:
    """What a token says of itself, of which nothing is believed: it only tells whom to ask. `issuer` empty: it names none."""

    algorithm: str
    kid: str
    issuer: str


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody another vouches for.

    Attributes:
        issuer: Who does.
        subject: Their id there.
        name: How they are called there, as far as is told.
        expire_time: When the token ends, in seconds since the Unix epoch; None: never.
        workspaces: Ids or names of workspaces that the token puts them into, the preferred one first.
    """

    issuer: str
    subject: str
    name: str
    expire_time: float | None
    role: Role = Role.USER
    workspaces: tuple[str, ...] = ()

    @property
    def user_id(self) -> str:
        """Their id here: always the same for the same issuer and subject, and nobody else's."""
        return str(uuid5(_NAMESPACE, f"{self.issuer}\n{self.subject}"))


@dataclass(frozen=True, slots=True)
class ClaimPolicy:
    """What an OpenID provider's tokens must say, and what is read out of them.

    Attributes:
        audiences: For whom: one of them must be among the token's.
        role_claim: The claim with the role, or a path to it with dots; empty: everybody is a user.
        roles: Role by a value of that claim.
        workspace_claim: The claim with the workspaces, likewise; empty: none.
    """

    issuer: str
    audiences: tuple[str, ...]
    role_claim: str = ""
    roles: Mapping[str, Role] | None = None
    workspace_claim: str = ""


class SharedSecret:
    """Checks HS256 signatures.

    Args:
        secret: Of whatever length: Open WebUI makes ones of 16 characters itself, of which PyJWT would warn at every token.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._jws = jwt.PyJWS(algorithms=[])
        self._jws.register_algorithm("HS256", _AnyLength(HMACAlgorithm.SHA256))

    def open(self, token: str) -> dict[str, Any]:
        """What a token says, once its signature was checked. Raises InvalidTokenError."""
        read_face(token)
        try:
            claims = json.loads(self._jws.decode(token, self._secret, algorithms=["HS256"]))
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise InvalidTokenError("its signature is wrong") from error
        if not isinstance(claims, dict):
            raise InvalidTokenError("it is no JSON object")
        return claims


class _AnyLength(HMACAlgorithm):
    def check_key_length(self, key: bytes) -> str | None:
        return None


def read_face(token: str) -> Face:
    """What a token says of itself. Raises InvalidTokenError when it is malformed, or asks for what we do not know."""
    try:
        whole = jwt.decode_complete(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidTokenError("it is malformed") from error
    header, issuer = whole["header"], whole["payload"].get("iss", "")
    algorithm, kid, kind = header.get("alg"), header.get("kid", ""), header.get("typ", "")
    if "crit" in header or not all(isinstance(text, str) for text in (algorithm, kid, kind, issuer)):
        raise InvalidTokenError("its header is malformed")
    if kind.lower() not in _TYPES:
        raise InvalidTokenError("it is a token of another kind")
    return Face(algorithm, kid, issuer)


def read_session(token: str, secret: SharedSecret, now: float) -> Person:
    """Whose session of Open WebUI it is. Raises InvalidTokenError."""
    claims = secret.open(token)
    if "iss" in claims:
        raise InvalidTokenError("it is no token of a session")
    subject = _subject(claims, "id")
    return Person(OPEN_WEBUI, subject, _name(subject), _check_times(claims, now, must_end=False))


def read_user(token: str, secret: SharedSecret, now: float) -> Person:
    """Whom Open WebUI says it makes a request for. Raises InvalidTokenError."""
    claims = secret.open(token)
    if claims.get("iss") != OPEN_WEBUI:
        raise InvalidTokenError("its issuer is not open-webui")
    ends = _check_times(claims, now, must_end=True)
    if "iat" not in claims or claims["exp"] - claims["iat"] > USER_TOKEN_SECONDS_MAX:
        raise InvalidTokenError(f"it is good for more than {USER_TOKEN_SECONDS_MAX:.0f} seconds")
    return Person(OPEN_WEBUI, _subject(claims, "sub"), _name(claims.get("email"), claims.get("name")), ends)


def read_identity(token: str, key: AllowedPublicKeys, algorithm: str, policy: ClaimPolicy, now: float) -> Person:
    """Whom an OpenID provider's token is about; `key` is the provider's, for `algorithm` alone. Raises InvalidTokenError."""
    try:
        claims = jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            audience=policy.audiences,
            issuer=policy.issuer,
            # The time is the caller's clock, checked below.
            options={
                "require": ["iss", "aud", "sub", "exp"],
                "verify_exp": False,
                "verify_nbf": False,
                "verify_iat": False,
            },
        )
    except (jwt.PyJWTError, ValueError, RecursionError) as error:
        raise InvalidTokenError("the signature or a claim is wrong") from error
    ends, subject = _check_times(claims, now, must_end=True), _subject(claims, "sub")
    roles = [
        policy.roles[value] for value in _values(claims, policy.role_claim) if policy.roles and value in policy.roles
    ]
    return Person(
        policy.issuer,
        subject,
        _name(claims.get("email"), claims.get("preferred_username"), claims.get("name"), subject),
        ends,
        max(roles, key=lambda role: role.rank, default=Role.USER),
        _values(claims, policy.workspace_claim),
    )


def _check_times(claims: Mapping[str, Any], now: float, *, must_end: bool) -> float | None:
    """When it ends, skew included. Raises InvalidTokenError when it has ended or not begun."""
    if must_end and "exp" not in claims:
        raise InvalidTokenError("it has no end")
    begins = max(_time(claims, "nbf", -math.inf), _time(claims, "iat", -math.inf)) - SKEW_SECONDS
    ends = _time(claims, "exp", math.inf) + SKEW_SECONDS
    if now < begins:
        raise InvalidTokenError("it is not good yet")
    if now >= ends:
        raise InvalidTokenError("it has expired")
    return ends if math.isfinite(ends) else None


def _time(claims: Mapping[str, Any], name: str, missing: float) -> float:
    value = claims.get(name, missing)
    # Past the year 9999 no timestamp can say it.
    if name in claims and (type(value) not in (int, float) or not 0 <= value < 253_402_300_000):
        raise InvalidTokenError("a time in it is malformed")
    return float(value)


def _subject(claims: Mapping[str, Any], name: str) -> str:
    subject = claims.get(name)
    if not isinstance(subject, str) or not 0 < len(subject) <= SUBJECT_CHARACTERS_MAX:
        raise InvalidTokenError("it does not say who the user is")
    if not subject.isprintable() or not subject.isascii() or subject != subject.strip():
        raise InvalidTokenError("the user's id in it is malformed")
    return subject


def _name(*texts: Any) -> str:
    for text in texts:
        if isinstance(text, str):
            shown = "".join(letter if letter.isprintable() else " " for letter in text[:_NAME_CHARACTERS_MAX]).strip()
            if shown:
                return shown
    return ""


def _values(claims: Mapping[str, Any], path: str) -> tuple[str, ...]:
    """The texts of a claim; none where it is missing or of another kind. Names may hold dots themselves."""
    value: Any = claims.get(path)
    if value is None and path:
        value = claims
        for name in path.split("."):
            value = value.get(name) if isinstance(value, dict) else None
    found = value if isinstance(value, list) else [value]
    return tuple(text for text in found[:_VALUES_MAX] if isinstance(text, str) and text)
