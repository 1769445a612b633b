"""Access tokens: what is not just as authsvc made it is refused everywhere, with one text, and changes nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authsvc.keys import Pepper, Peppers
from authsvc.sessions_store import SessionStore
from authsvc.signing import LEAD_SECONDS, KeyRing
from authsvc.tables import signing_keys
from authsvc.tokens import SigningKey
from naru.ids import uuid7
from naru.testing.clock import FakeClock
from tests.support.identity_harness import EMAIL, Installation, installation
from tests.support.signing import key_ring


@pytest.fixture
async def naru(tmp_path: Path) -> AsyncIterator[Installation]:
    async with installation(tmp_path) as running:
        yield running


async def own_key(naru: Installation) -> SigningKey:
    """The installation's signing key, opened with its pepper."""
    return (await ring_of(naru, naru.clock)).signing()


async def ring_of(naru: Installation, clock: FakeClock) -> KeyRing:
    ring = key_ring(SessionStore(naru.database), Peppers([Pepper(1, b"p" * 32)]), clock)
    await ring.turn()
    return ring


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    return jwt.get_unverified_header(token), jwt.decode(token, options={"verify_signature": False})


def encoded(value: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


async def test_tampered_tokens_are_refused(naru: Installation) -> None:
    """Every way a token may be wrong is 401 `invalid_api_key` on /v1 and /api, and leaves the database as it was."""
    user = await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    header, claims = parts(token)
    key, stranger = await own_key(naru), Ed25519PrivateKey.generate()
    now = int(naru.clock.time())
    assert header == {"alg": "EdDSA", "typ": "at+jwt", "kid": key.kid}
    assert claims["exp"] - claims["iat"] == 900
    assert claims["sub"] == user["user_id"]

    def signed(by: Any = key.private, head: dict[str, Any] | None = None, **changes: Any) -> str:
        payload = {name: value for name, value in (claims | changes).items() if value is not None}
        return jwt.encode(payload, by, algorithm="EdDSA", headers=header | (head or {}))

    raw_public = key.public.public_bytes_raw()
    hs256 = jwt.encode(claims, raw_public, algorithm="HS256", headers={"kid": key.kid, "typ": "at+jwt"})
    unsigned = jwt.encode(claims, None, algorithm="none", headers={"kid": key.kid, "typ": "at+jwt"})
    _, body, signature = token.split(".")
    wrong = {
        "alg none": unsigned,
        "alg none, with a signature": f"{encoded(header | {'alg': 'none'})}.{body}.{signature}",
        "alg HS256 with the public key": hs256,
        "another's signature": signed(stranger),
        "unknown kid": signed(head={"kid": uuid7()}),
        "kid that is SQL": signed(head={"kid": "' OR '1'='1"}),
        "kid that is no text": f"{encoded(header | {'kid': 7})}.{body}.{signature}",
        "no kid": f"{encoded({'alg': 'EdDSA', 'typ': 'at+jwt'})}.{body}.{signature}",
        "another type": signed(head={"typ": "JWT"}),
        "crit": signed(head={"crit": ["exp"]}),
        "expired": signed(exp=now - 31),
        "future nbf": signed(nbf=now + 31),
        "future iat": signed(iat=now + 31),
        "wrong aud": signed(aud="somebody"),
        "wrong iss": signed(iss="somebody"),
        "no exp": signed(exp=None),
        "no aud": signed(aud=None),
        "exp that is text": f"{token.split('.')[0]}.{encoded(claims | {'exp': str(now + 60)})}.{signature}",
        "exp that is a fraction": signed(exp=now + 60.5),
        "another user": signed(sub=uuid7()),
        "unknown session": signed(sid=uuid7()),
        "session that is SQL": signed(sid="' OR 1=1 --"),
        "tampered claims": f"{token.split('.')[0]}.{encoded(claims | {'sub': uuid7()})}.{signature}",
        "tampered signature": token[:-2] + ("A" if token[-2] != "A" else "B") + token[-1],
        "no signature": token.rpartition(".")[0] + ".",
        "deep header": f"eyJ{'W' * 4000}.{body}.{signature}",
        "too long": f"{token}{'A' * 8192}"[:8_100],
    }
    before = await naru.contents()
    for name, bad in wrong.items():
        for path in ("/v1/models", "/api/auth/me"):
            answer = await naru.ask("GET", path, token=bad)
            assert (answer.status, answer.code) == (401, "invalid_api_key"), name
            assert answer.body["error"]["message"] == "Incorrect API key provided.", name
    assert await naru.contents() == before
    assert (await naru.ask("GET", "/v1/models", token=signed())).status == 200, "the same, unchanged, is good"
    assert (await naru.ask("GET", "/v1/models", token=signed(nbf=now + 29, iat=now + 29))).status == 200


async def test_the_published_keys_check_tokens(naru: Installation) -> None:
    """Anybody can check a token with /.well-known/jwks.json, which needs no credential and may be kept for a while."""
    await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    shown = await naru.ask("GET", "/.well-known/jwks.json")
    assert shown.status == 200
    assert shown.headers["Cache-Control"] == "public, max-age=150"
    (published,) = shown.body["keys"]
    assert {name: published[name] for name in ("kty", "crv", "alg", "use")} == {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
    }
    key = jwt.PyJWK(published)
    claims = jwt.decode(token, key, ["EdDSA"], audience="naru", issuer="naru", options={"verify_iat": False})
    assert claims["iss"] == "naru"


async def test_signing_keys_rotate_with_overlap(naru: Installation) -> None:
    """A new key is published before it signs; the old one is published until its last token has ended; private is encrypted."""
    clock = FakeClock(naru.clock.time())
    ring = await ring_of(naru, clock)
    (first,) = ring.published
    clock.advance(30 * 86_400)
    await ring.turn()
    second, _ = ring.published
    assert second.kid != first.kid
    assert ring.signing() == ring.find(first.kid)
    clock.advance(LEAD_SECONDS)
    assert ring.signing().kid == second.kid
    clock.advance(900 + 60)
    await ring.turn()
    assert {key.kid for key in ring.published} == {first.kid, second.kid}
    clock.advance(61)
    await ring.turn()
    assert [key.kid for key in ring.published] == [second.kid]
    async with naru.database.reading() as connection:
        rows = (await connection.execute(sa.select(signing_keys))).all()
    assert [row.kid for row in rows] == [second.kid]
    assert second.private.private_bytes_raw() not in rows[0].private_key


async def test_a_token_of_a_new_key_is_good_at_once(naru: Installation) -> None:
    """A replica that has not read a key yet reads it when a token names it."""
    await naru.new_user()
    token = (await naru.login(EMAIL))["access_token"]
    header, claims = parts(token)
    clock = FakeClock(naru.clock.time() + 30 * 86_400)
    other = await ring_of(naru, clock)
    newest = other.published[0]
    assert newest.kid != header["kid"]
    naru.clock.advance(6)
    signed = jwt.encode(claims, newest.private, algorithm="EdDSA", headers={"kid": newest.kid, "typ": "at+jwt"})
    assert (await naru.ask("GET", "/v1/models", token=signed)).status == 200
