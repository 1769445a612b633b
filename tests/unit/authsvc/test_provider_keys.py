"""An OpenID provider's keys: which are taken, when they are fetched, and who waits for that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authsvc.config import AuthsvcConfig
from authsvc.fetching import BODY_BYTES_MAX, fetching
from authsvc.jwks import ALGORITHMS, ProviderError, check_url, discovery_url, read_discovery, read_keys
from authsvc.provider_keys import RETRY_SECONDS, ProviderKeys
from naru.errors import NaruError, Reason
from naru.testing.clock import FakeClock
from tests.support.foreign_tokens import jwk_of

ISSUER = "https://login.example.com"
EC_KEY = ec.generate_private_key(ec.SECP256R1())
GOOD = jwk_of(EC_KEY, "k1")


class Provider:
    """Answers as a test says; `gate` holds its answers back, `failing` makes it fail."""

    def __init__(self, *jwks: dict[str, Any]) -> None:
        self.jwks = list(jwks)
        self.asked: list[str] = []
        self.failing = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        await self.gate.wait()
        if self.failing:
            raise ProviderError("away")
        if url == discovery_url(ISSUER):
            return json.dumps({"issuer": ISSUER, "jwks_uri": f"{ISSUER}/keys"}).encode()
        return json.dumps({"keys": self.jwks}).encode()


@asynccontextmanager
async def keys_of(provider: Provider, clock: FakeClock) -> AsyncIterator[ProviderKeys]:
    keys = ProviderKeys(ISSUER, ALGORITHMS, provider.fetch, clock, wait_seconds=0.05)
    try:
        yield keys
    finally:
        await keys.close()


async def test_whoever_asks_for_a_known_key_never_waits() -> None:
    """While a fetch hangs, known keys are found, and unknown ones are a 503 for each who waited a while."""
    provider, clock = Provider(GOOD), FakeClock(0.0)
    async with keys_of(provider, clock) as keys:
        assert await keys.find("k1", "ES256") is not None
        clock.advance(RETRY_SECONDS)
        provider.gate.clear()
        asked = len(provider.asked)
        unknown = [asyncio.create_task(keys.find(f"u{number}", "ES256")) for number in range(20)]
        await asyncio.sleep(0)
        assert await keys.find("k1", "ES256") is not None
        for task in unknown:
            with pytest.raises(NaruError) as raised:
                await task
            assert (raised.value.reason, raised.value.retry_after) == (Reason.SERVICE_UNAVAILABLE, RETRY_SECONDS)
        assert len(provider.asked) == asked + 1, "one fetch for all of them"
        provider.jwks.append(jwk_of(EC_KEY, "u7"))
        provider.gate.set()
        assert await keys.find("u7", "ES256") is not None, "the fetch that was under way found it"


async def test_fetches_are_throttled_whatever_comes_of_them() -> None:
    """At most one in ten seconds, after success and after failure; a failure fetches the description anew."""
    provider, clock = Provider(GOOD), FakeClock(0.0)
    async with keys_of(provider, clock) as keys:
        for _ in range(50):
            assert await keys.find("unknown", "ES256") is None
        assert provider.asked == [discovery_url(ISSUER), f"{ISSUER}/keys"]
        provider.failing = True
        clock.advance(RETRY_SECONDS)
        for _ in range(50):
            with pytest.raises(NaruError):
                await keys.find("unknown", "ES256")
        assert len(provider.asked) == 3
        assert await keys.find("k1", "ES256") is not None
        provider.failing = False
        clock.advance(RETRY_SECONDS)
        assert await keys.find("unknown", "ES256") is None
        assert provider.asked[3:] == [discovery_url(ISSUER), f"{ISSUER}/keys"]


async def test_a_key_is_for_one_algorithm() -> None:
    """It is not found for another, nor is an algorithm that is not allowed worth a fetch."""
    provider = Provider(GOOD)
    async with keys_of(provider, FakeClock(0.0)) as keys:
        for algorithm in ("HS256", "none", "RS512", ""):
            assert await keys.find("k1", algorithm) is None
        assert provider.asked == []
        assert await keys.find("k1", "RS256") is None
        assert await keys.find("k1", "ES256") is not None


@pytest.mark.parametrize(
    "jwk",
    [
        {**GOOD, "kid": 7},
        {name: value for name, value in GOOD.items() if name != "kid"},
        {**GOOD, "use": "enc"},
        {**GOOD, "key_ops": ["encrypt"]},
        {**GOOD, "key_ops": "verify"},
        {**GOOD, "alg": "ES384"},
        {**GOOD, "alg": "HS256"},
        {**GOOD, "d": "AA"},
        {**GOOD, "x": "AA"},
        {**GOOD, "x": 7},
        {**GOOD, "crv": "P-384"},
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k1", "alg": "HS256"},
        {"kty": ["EC"], "kid": "k1"},
        jwk_of(rsa.generate_private_key(public_exponent=65537, key_size=1024), "weak"),
        "text",
        None,
    ],
)
def test_other_keys_are_passed_over(jwk: Any) -> None:
    """A key that is weak, broken, for something else or no key at all is left out, and the others stay."""
    read = read_keys(json.dumps({"keys": [jwk, jwk_of(Ed25519PrivateKey.generate(), "ed")]}).encode(), ALGORITHMS)
    assert set(read) == {("ed", "EdDSA")}


def test_two_keys_may_have_one_id() -> None:
    """Of different kinds they are two keys; of one kind the first counts."""
    other = ec.generate_private_key(ec.SECP256R1())
    listed = [GOOD, jwk_of(other, "k1"), jwk_of(Ed25519PrivateKey.generate(), "k1")]
    read = read_keys(json.dumps({"keys": listed}).encode(), ALGORITHMS)
    assert set(read) == {("k1", "ES256"), ("k1", "EdDSA")}
    assert read["k1", "ES256"] == EC_KEY.public_key()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"keys": {}}', b"\xff", b"[" * 100_000, b'{"issuer": "https://x"}', b"nonsense"]
)
def test_other_documents_are_refused(body: bytes) -> None:
    """What is no set of keys, or no description of this issuer, is an error that says so."""
    with pytest.raises(ProviderError):
        read_keys(body, ALGORITHMS)
    with pytest.raises(ProviderError):
        read_discovery(body, ISSUER)
    with pytest.raises(ProviderError):
        read_discovery(json.dumps({"issuer": ISSUER, "jwks_uri": 7}).encode(), ISSUER)


@asynccontextmanager
async def server(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/target", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_fetch_is_bounded() -> None:
    """Redirects are not followed, and what is too large, failing, or nowhere is an error."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path_qs)
        if "redirect" in request.query:
            raise web.HTTPFound("/target")
        if "large" in request.query:
            return web.Response(body=b" " * (BODY_BYTES_MAX + 1))
        return web.Response(body=b" " * BODY_BYTES_MAX, status=500 if "broken" in request.query else 200)

    async with server(answer) as url, fetching(insecure_http=False) as fetch:
        assert len(await fetch(f"{url}/")) == BODY_BYTES_MAX
        for what in ("redirect", "large", "broken"):
            with pytest.raises(ProviderError):
                await fetch(f"{url}/?{what}=1")
    assert "/target" not in asked
    async with fetching(insecure_http=False) as fetch:
        for nowhere in (f"{url}/", "http://192.0.2.1/", "ftp://127.0.0.1/", "file:///etc/passwd", "https://", ""):
            with pytest.raises(ProviderError):
                await fetch(nowhere)


@pytest.mark.parametrize(
    ("url", "insecure_http", "good"),
    [
        ("https://login.example.com/realms/x", False, True),
        ("http://127.0.0.1:8080", False, True),
        ("http://[::1]:8080", False, True),
        ("http://localhost", False, True),
        ("http://login.example.com", False, False),
        ("http://login.example.com", True, True),
        ("http://127.0.0.1.evil.example", False, False),
        ("https://user:password@login.example.com", False, False),
        ("https://login.example.com/#x", False, False),
        ("https://login.example.com/\n", False, False),
        ("login.example.com", True, False),
    ],
)
def test_providers_are_asked_over_https(url: str, insecure_http: bool, good: bool) -> None:
    """http:// is for this machine, unless an operator says otherwise."""
    if good:
        check_url(url, insecure_http=insecure_http)
    else:
        with pytest.raises(ValueError, match="it must be"):
            check_url(url, insecure_http=insecure_http)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"oidc_issuer": "http://login.example.com", "oidc_audiences": ("a",)}, "OIDC_ISSUER"),
        ({"oidc_issuer": ISSUER}, "OIDC_AUDIENCES"),
        ({"oidc_algorithms": ("HS256",)}, "OIDC_ALGORITHMS"),
        ({"oidc_algorithms": ("none",)}, "OIDC_ALGORITHMS"),
        ({"oidc_algorithms": ()}, "OIDC_ALGORITHMS"),
        ({"oidc_role_claim": "groups"}, "OIDC_ROLES"),
        ({"oidc_role_claim": "groups", "oidc_roles": ("x=root",)}, "OIDC_ROLES"),
        ({"oidc_role_claim": "groups", "oidc_roles": ("=admin",)}, "OIDC_ROLES"),
        ({"token_issuer": ISSUER}, "OIDC_ISSUER"),
        ({"openwebui_secret_key": "t0p-s3cr3t"}, "OPENWEBUI_SECRET_KEY"),
        ({"openwebui_user_jwt_secret": "short"}, "OPENWEBUI_USER_JWT_SECRET"),
    ],
)
def test_settings_that_would_let_others_in_are_refused(settings: dict[str, Any], named: str) -> None:
    """The error names the setting, and shows no secret."""
    whole = {"oidc_issuer": ISSUER, "oidc_audiences": ("naru",)} if "oidc_issuer" not in settings else {}
    with pytest.raises(ValueError, match=f"NARU_AUTHSVC_{named}") as raised:
        AuthsvcConfig(**(whole | settings))
    assert not any(str(value) in str(raised.value) for name, value in settings.items() if name.startswith("openwebui"))
