"""Tokens as others make them, and an OpenID provider that publishes its keys over HTTP."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

WEBUI_SECRET_KEY = "bWF5YmUgYSBrZXk="
"""As Open WebUI's start script makes one: 12 random bytes in base64. Shorter than PyJWT likes, so tests sign by the helpers."""
FORWARD_SECRET = "f" * 48
_ALGORITHMS = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}
PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | Ed25519PrivateKey


def hs256(claims: dict[str, Any], secret: str | bytes, header: dict[str, Any] | None = None) -> str:
    """A signed token, whatever the secret looks like: PyJWT would not sign with a short one, or with a public key."""
    key = secret.encode() if isinstance(secret, str) else secret
    parts = b".".join(
        base64.urlsafe_b64encode(json.dumps(part, separators=(",", ":")).encode()).rstrip(b"=")
        for part in (header or {"alg": "HS256", "typ": "JWT"}, claims)
    )
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    return b".".join([parts, base64.urlsafe_b64encode(algorithm.sign(parts, key)).rstrip(b"=")]).decode()


def create_token(
    data: dict[str, Any], expires_delta: timedelta | None = None, *, now: float, secret: str = WEBUI_SECRET_KEY
) -> str:
    """A session of Open WebUI, as `create_token` of its utils/auth.py makes it: `data` is {"id": <user id>}."""
    payload = dict(data)
    if expires_delta:
        payload["exp"] = int((datetime.fromtimestamp(now, UTC) + expires_delta).timestamp())
    payload["jti"] = str(uuid.uuid4())
    return hs256(payload, secret)


def mint_forward_user_jwt(user_id: str, now: float, *, secret: str = FORWARD_SECRET, **changes: Any) -> str:
    """X-OpenWebUI-User-Jwt, as `_mint_forward_user_jwt` of its utils/headers.py makes it."""
    issued = int(now)
    payload = {
        "sub": user_id,
        "email": "ann@example.com",
        "name": "Ann",
        "role": "user",
        "iss": "open-webui",
        "iat": issued,
        "exp": issued + 300,
    }
    return hs256({name: value for name, value in (payload | changes).items() if value is not None}, secret)


def jwk_of(key: PrivateKey, kid: str) -> dict[str, Any]:
    """The public half as a provider publishes it."""
    public = key.public_key()
    if isinstance(public, rsa.RSAPublicKey):
        made = jwt.algorithms.RSAAlgorithm.to_jwk(public, as_dict=True)
    elif isinstance(public, ec.EllipticCurvePublicKey):
        made = jwt.algorithms.ECAlgorithm.to_jwk(public, as_dict=True)
    else:
        made = jwt.algorithms.OKPAlgorithm.to_jwk(public, as_dict=True)
    return {**made, "kid": kid, "use": "sig", "alg": _ALGORITHMS[made["kty"]]}


@dataclass(slots=True)
class FakeProvider:
    """An OpenID provider.

    Attributes:
        keys: What it signs with, by key id.
        status: What it answers with.
        asked: The paths that were asked for.
        extra: More of its published keys.
        discovery: What its description says otherwise.
    """

    keys: dict[str, PrivateKey]
    url: str = ""
    status: int = 200
    asked: list[str] = field(default_factory=list)
    extra: list[dict[str, Any]] = field(default_factory=list)
    discovery: dict[str, Any] = field(default_factory=dict)

    async def describe(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        described = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"} | self.discovery
        return web.json_response(described, status=self.status)

    async def publish(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        published = [*self.extra, *(jwk_of(key, kid) for kid, key in self.keys.items())]
        return web.json_response({"keys": published}, status=self.status)

    def token(
        self, kid: str, now: float, *, signed_by: str = "", header: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """An access token that names the key `kid`; `signed_by` another one. Claims that are None are left out."""
        key = self.keys[signed_by or kid]
        claims = {
            "iss": self.url,
            "aud": "naru-api",
            "sub": "00u1abcd",
            "email": "bob@example.com",
            "iat": int(now),
            "exp": int(now) + 600,
        }
        payload = {name: value for name, value in (claims | changes).items() if value is not None}
        algorithm = jwk_of(key, kid)["alg"]
        return jwt.encode(payload, key, algorithm=algorithm, headers={"kid": kid} | (header or {}))


def new_rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@asynccontextmanager
async def fake_provider() -> AsyncIterator[FakeProvider]:
    """Serves one with a key of each kind, on a free port."""
    provider = FakeProvider(
        {"rsa-1": new_rsa(), "ec-1": ec.generate_private_key(ec.SECP256R1()), "ed-1": Ed25519PrivateKey.generate()}
    )
    app = web.Application()
    app.router.add_get("/.well-known/openid-configuration", provider.describe)
    app.router.add_get("/keys", provider.publish)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    provider.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield provider
    finally:
        await runner.cleanup()
