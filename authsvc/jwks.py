"""What an OpenID provider publishes of itself: pure.

Of the keys those are taken that we have an algorithm for, each for that one alone: RSA for RS256, P-256 for ES256, Ed25519 for
EdDSA. So no token chooses how it is checked, and a public key never becomes the secret of an HMAC.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import AllowedPublicKeys

ALGORITHMS = ("RS256", "ES256", "EdDSA")
DISCOVERY_PATH = "/.well-known/openid-configuration"
RSA_BITS_MIN = 2048
_BY_TYPE = {("RSA", ""): "RS256", ("EC", "P-256"): "ES256", ("OKP", "Ed25519"): "EdDSA"}
_KEYS_MAX = 100

KeySet = Mapping[tuple[str, str], AllowedPublicKeys]
"""Public keys by their id and their algorithm."""


class ProviderError(Exception):
    """A provider is away, or what it publishes is no good; the text is for the log."""


def check_url(url: str, *, insecure_http: bool) -> None:
    """Raises ValueError for what is no URL of a provider: https, or http where it is this machine or allowed."""
    parts = urlsplit(url)
    secure = parts.scheme == "https" or (
        parts.scheme == "http" and (insecure_http or _is_this_machine(parts.hostname or ""))
    )
    if not parts.hostname or not secure:
        raise ValueError("it must be an https:// address; http:// is for this machine alone")
    if parts.username or parts.password or parts.fragment or not url.isprintable():
        raise ValueError("it must be an address without a user, a password or a fragment")


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def discovery_url(issuer: str) -> str:
    """Where a provider describes itself."""
    return issuer.rstrip("/") + DISCOVERY_PATH


def read_discovery(body: bytes, issuer: str) -> str:
    """Where the provider's keys are. Raises ProviderError."""
    document = _object(body)
    if document.get("issuer") != issuer:
        raise ProviderError("the provider says that it is another issuer")
    url = document.get("jwks_uri")
    if not isinstance(url, str):
        raise ProviderError("the provider does not say where its keys are")
    return url


def read_keys(body: bytes, algorithms: Collection[str]) -> KeySet:
    """The keys for these algorithms. Raises ProviderError when it is no set of keys at all."""
    listed = _object(body).get("keys")
    if not isinstance(listed, list):
        raise ProviderError("the provider's keys are no set of keys")
    keys: dict[tuple[str, str], AllowedPublicKeys] = {}
    for jwk in listed[:_KEYS_MAX]:
        algorithm = _algorithm(jwk) if isinstance(jwk, dict) else None
        if algorithm in algorithms and algorithm is not None:
            key = _key(jwk, algorithm)
            if key is not None:
                keys.setdefault((jwk["kid"], algorithm), key)
    return keys


def _algorithm(jwk: Mapping[str, Any]) -> str | None:
    """What a published key is for; None for what does not check signatures of ours."""
    kind, curve, kid = jwk.get("kty"), jwk.get("crv", ""), jwk.get("kid")
    if not all(isinstance(text, str) for text in (kind, curve, kid)) or "d" in jwk:
        return None
    algorithm = _BY_TYPE.get((kind, curve))  # type: ignore[arg-type] # checked to be texts above
    operations = jwk.get("key_ops", ["verify"])
    verifies = isinstance(operations, list) and "verify" in operations
    if jwk.get("use", "sig") != "sig" or not verifies or jwk.get("alg", algorithm) != algorithm:
        return None
    return algorithm


def _key(jwk: Mapping[str, Any], algorithm: str) -> AllowedPublicKeys | None:
    try:
        key = jwt.PyJWK(dict(jwk), algorithm=algorithm).key
    except Exception:  # noqa: BLE001 -- whatever a library makes of one broken key, the others go on
        return None
    if isinstance(key, RSAPublicKey) and key.key_size < RSA_BITS_MIN:
        return None
    return key  # type: ignore[no-any-return] # PyJWK has it as Any


def _object(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProviderError("the provider's answer is no JSON") from error
    if not isinstance(document, dict):
        raise ProviderError("the provider's answer is no JSON object")
    return document
