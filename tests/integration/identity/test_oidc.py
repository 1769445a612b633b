"""Tokens of an OpenID provider over HTTP: its discovery and keys are served by a real server, and rotate there."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization

from authsvc.provider_keys import PERIOD_SECONDS, RETRY_SECONDS
from naru.api.auth.v1 import session_service_pb2, session_service_pb2_grpc
from naru.client import ServiceClient
from tests.support.foreign_harness import Whole, whole
from tests.support.foreign_tokens import FakeProvider, fake_provider, hs256, new_rsa
from tests.support.identity_harness import Answer, Installation, installation

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def provider() -> AsyncIterator[FakeProvider]:
    async with fake_provider() as serving:
        yield serving


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def naru(provider: FakeProvider, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """One installation for the tests here that leave its provider as it is, each of which has people of its own."""
    async with whole(
        tmp_path_factory.mktemp("naru"),
        oidc_issuer=provider.url,
        oidc_audiences=("somebody", "naru-api"),
        oidc_role_claim="realm_access.roles",
        oidc_roles=("naru-admins=admin", "CN=leads,O=x=workspace_admin"),
        oidc_workspace_claim="naru_workspaces",
        oidc_tier="unlimited",
    ) as running:
        yield running


@pytest.fixture
def bob() -> str:
    """Somebody's subject, in this test alone."""
    return uuid.uuid4().hex


async def principal_of(naru: Installation, token: str, **headers: str) -> dict[str, Any]:
    answer = await naru.ask("GET", "/api/auth/me", token=token, headers=headers)
    assert answer.status == 200, answer
    return dict(answer.body["principal"])


def is_refused(answer: Answer) -> bool:
    return answer.status == 401 and (answer.code, answer.body["error"]["message"]) == (
        "invalid_api_key",
        "Incorrect API key provided.",
    )


@pytest.mark.parametrize("kid", ["rsa-1", "ec-1", "ed-1"])
async def test_a_token_of_each_algorithm_is_a_credential(
    naru: Whole, provider: FakeProvider, bob: str, kid: str
) -> None:
    """RS256, ES256 and EdDSA: the person is a user here, the same one next time, and usage shows them."""
    token = provider.token(kid, naru.clock.time(), sub=bob)
    me = await principal_of(naru, token)
    assert me["role"] == "user"
    assert me["tier"] == "unlimited"
    assert me["workspace_id"] == naru.workspace_id
    assert (await naru.chat(token)).status == 200
    async with asyncio.timeout(10):
        while (await naru.usage_by_user()).get(me["user_id"]) != 1:
            await asyncio.sleep(0.02)
    assert (await naru.user(me["user_id"]))["name"] == "bob@example.com"
    again = provider.token("ec-1", naru.clock.time() + 1, sub=bob)
    assert (await principal_of(naru, again))["user_id"] == me["user_id"]


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({}, "user"),
        ({"realm_access": {"roles": ["others"]}}, "user"),
        ({"realm_access": {"roles": ["CN=leads,O=x"]}}, "workspace_admin"),
        ({"realm_access": {"roles": ["naru-admins", "CN=leads,O=x"]}}, "admin"),
        ({"realm_access": {"roles": "naru-admins"}}, "admin"),
        ({"realm_access.roles": ["naru-admins"]}, "admin"),
        ({"realm_access": ["naru-admins"]}, "user"),
        ({"realm_access": {"roles": {"naru-admins": True}}}, "user"),
        ({"realm_access": {"roles": [["naru-admins"], 7, None]}}, "user"),
        ({"roles": ["naru-admins"]}, "user"),
    ],
)
async def test_a_claim_tells_the_role(
    naru: Whole, provider: FakeProvider, bob: str, claims: dict[str, Any], role: str
) -> None:
    """The highest role that a value of the claim stands for; a user where there is none, whatever else the token says."""
    token = provider.token("ec-1", naru.clock.time(), sub=bob, **claims)
    assert (await principal_of(naru, token))["role"] == role
    may_list = (await naru.ask("GET", "/api/users", token=token)).status == 200
    assert may_list is (role != "user")


async def test_a_claim_tells_the_workspace(naru: Whole, provider: FakeProvider, bob: str) -> None:
    """By id or name, the first that there is; OpenAI-Project chooses among them, and nothing beside them."""
    made = [
        (await naru.ask("POST", "/api/workspaces", {"name": name}, token=naru.key)).body["workspace_id"]
        for name in ("team-a", "team-b")
    ]

    def token(workspaces: Any) -> str:
        return provider.token("ec-1", naru.clock.time(), sub=bob, naru_workspaces=workspaces)

    for claim, expected in (
        ("team-a", made[0]),
        (made[1], made[1]),
        (["nowhere", "team-b", "team-a"], made[1]),
        (None, naru.workspace_id),
        ([], naru.workspace_id),
    ):
        assert (await principal_of(naru, token(claim)))["workspace_id"] == expected
    both = token(["team-a", "team-b"])
    chosen = await principal_of(naru, both, **{"OpenAI-Project": made[1]})
    assert chosen["workspace_id"] == made[1]
    not_theirs = await principal_of(naru, both, **{"OpenAI-Project": naru.workspace_id})
    assert not_theirs["workspace_id"] == made[0]
    before = await naru.contents()
    refused = await naru.ask("GET", "/v1/models", token=token("nowhere"))
    assert (refused.status, refused.body["error"]["message"]) == (403, "You do not belong to any workspace.")
    assert await naru.contents() == before


async def test_bad_tokens_are_refused(naru: Whole, provider: FakeProvider) -> None:
    """Whatever is wrong with one is 401 with one text, and nothing is written."""
    now = int(naru.clock.time())
    token = provider.token("rsa-1", now)
    header, body, signature = token.split(".")
    claims = jwt.decode(token, options={"verify_signature": False})
    public = provider.keys["rsa-1"].public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    der = public.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

    def encoded(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    def made(**changes: Any) -> str:
        return provider.token("rsa-1", now, **changes)

    hmac_header = {"alg": "HS256", "typ": "JWT", "kid": "rsa-1"}
    wrong = {
        "alg none": jwt.encode(claims, None, algorithm="none", headers={"kid": "rsa-1"}),
        "alg none with a signature": f"{encoded({'alg': 'none', 'kid': 'rsa-1'})}.{body}.{signature}",
        "unsigned": f"{header}.{body}.",
        "HS256 with the public key as PEM": hs256(claims, pem, hmac_header),
        "HS256 with the public key as DER": hs256(claims, der, hmac_header),
        "HS256 with an empty secret": hs256(claims, b"", hmac_header),
        "RS512": jwt.encode(claims, provider.keys["rsa-1"], algorithm="RS512", headers={"kid": "rsa-1"}),
        "PS256": jwt.encode(claims, provider.keys["rsa-1"], algorithm="PS256", headers={"kid": "rsa-1"}),
        "swapped kid of another kind": provider.token("ec-1", now, signed_by="rsa-1"),
        "a stranger's key": jwt.encode(claims, new_rsa(), algorithm="RS256", headers={"kid": "rsa-1"}),
        "a stranger's key in the header": jwt.encode(
            claims, new_rsa(), algorithm="RS256", headers={"kid": "rsa-1", "jku": f"{provider.url}/keys"}
        ),
        "kid that is a path": made(header={"kid": "../../etc/passwd"}),
        "kid that is SQL": made(header={"kid": "' OR '1'='1"}),
        "kid that is no text": f"{encoded({'alg': 'RS256', 'kid': 7})}.{body}.{signature}",
        "crit": made(header={"crit": ["exp"]}),
        "a logout token": made(header={"typ": "logout+jwt"}),
        "expired": made(exp=now - 31),
        "future nbf": made(nbf=now + 31),
        "future iat": made(iat=now + 31),
        "no exp": made(exp=None),
        "exp that is text": f"{header}.{encoded(claims | {'exp': str(now + 60)})}.{signature}",
        "exp that is infinite": made(exp=float("inf")),
        "wrong aud": made(aud="naru"),
        "no aud": made(aud=None),
        "many wrong auds": made(aud=["a", "b"]),
        "wrong iss": made(iss=f"{provider.url}/"),
        "no iss": made(iss=None),
        "iss that is no text": f"{header}.{encoded(claims | {'iss': [provider.url]})}.{signature}",
        "no sub": made(sub=None),
        "empty sub": made(sub=""),
        "sub with a null": made(sub="a\0b"),
        "long sub": made(sub="s" * 256),
        "tampered claims": f"{header}.{encoded(claims | {'sub': 'eve'})}.{signature}",
        "no JSON": f"{header}.{base64.urlsafe_b64encode(b'nonsense').decode().rstrip('=')}.{signature}",
        "too long": f"{token}{'A' * 8_000}"[:8_100],
    }
    before = await naru.contents()
    for number, (name, bad) in enumerate(wrong.items()):
        for path in ("/v1/models", "/api/auth/me"):
            answer = await naru.ask("GET", path, token=bad, headers={"X-Forwarded-For": f"10.2.{number}.1"})
            assert is_refused(answer), (name, answer)
    assert await naru.contents() == before
    for good in (made(exp=now - 29), made(nbf=now + 29), made(aud=["a", "naru-api"]), made(header={"typ": "at+jwt"})):
        assert (await naru.ask("GET", "/v1/models", token=good)).status == 200, "the same within bounds is good"


async def test_keys_rotate(tmp_path: Path) -> None:
    """A token of a new key is good at once, one of a withdrawn key is refused after the next fetch."""
    async with fake_provider() as own, installation(tmp_path, **settings_of(own)) as naru:
        before = own.token("rsa-1", naru.clock.time())
        assert (await naru.ask("GET", "/v1/models", token=before)).status == 200
        old = own.keys.pop("rsa-1")
        own.keys["rsa-2"] = new_rsa()
        naru.clock.advance(RETRY_SECONDS)
        after = own.token("rsa-2", naru.clock.time())
        assert (await naru.ask("GET", "/v1/models", token=after)).status == 200
        assert own.asked.count("/keys") == 2
        own.keys["rsa-1"] = old
        withdrawn = own.token("rsa-1", naru.clock.time())
        del own.keys["rsa-1"]
        assert is_refused(await naru.ask("GET", "/v1/models", token=withdrawn))


async def test_a_withdrawn_key_ends_what_an_edge_knows(tmp_path: Path) -> None:
    """A token that an edge knows is good for 15 minutes without anybody asking, and after that only while its key is."""
    # The edge's clock runs by itself: seen from authsvc it is 15 minutes later in a few seconds.
    behind = PERIOD_SECONDS - 4
    async with fake_provider() as own, installation(tmp_path, behind=behind, **settings_of(own)) as naru:
        now = int(naru.clock.time())
        withdrawn, kept = (own.token(kid, now, exp=now + 86_400) for kid in ("rsa-1", "ec-1"))
        for token in (withdrawn, kept):
            assert (await naru.ask("GET", "/v1/models", token=token)).status == 200
        del own.keys["rsa-1"]
        own.keys["rsa-2"] = new_rsa()
        naru.clock.advance(RETRY_SECONDS)
        assert (await naru.ask("GET", "/v1/models", token=own.token("rsa-2", naru.clock.time()))).status == 200
        async with asyncio.timeout(20):
            while (answer := await naru.ask("GET", "/v1/models", token=withdrawn)).status == 200:
                await asyncio.sleep(0.02)
        assert is_refused(answer)
        assert (await naru.ask("GET", "/v1/models", token=kept)).status == 200


async def test_a_storm_of_unknown_keys_makes_one_fetch(tmp_path: Path) -> None:
    """However many tokens name however many unknown keys, the provider is asked once in ten seconds."""
    async with fake_provider() as own, installation(tmp_path, **settings_of(own)) as naru:
        good = own.token("ec-1", naru.clock.time())
        assert (await naru.ask("GET", "/v1/models", token=good)).status == 200

        async def storm(number: int) -> Answer:
            bad = own.token("ec-1", naru.clock.time(), header={"kid": f"unknown-{number}"})
            return await naru.ask("GET", "/v1/models", token=bad, headers={"X-Forwarded-For": f"10.3.0.{number}"})

        own.asked.clear()
        for fetches in (0, 1, 2):
            answers = await asyncio.gather(*map(storm, range(40 * fetches, 40 * fetches + 40)))
            assert all(map(is_refused, answers))
            assert own.asked == ["/keys"] * fetches
            naru.clock.advance(RETRY_SECONDS)


async def test_a_provider_that_is_away_stops_unknown_keys_alone(tmp_path: Path) -> None:
    """Known keys go on, unknown ones are a 503 that says when to come again; when it is back, all is well."""
    async with fake_provider() as own, installation(tmp_path, **settings_of(own)) as naru:
        assert (await naru.ask("GET", "/v1/models", token=own.token("rsa-1", naru.clock.time()))).status == 200
        own.status = 500
        naru.clock.advance(RETRY_SECONDS)
        own.keys["rsa-2"] = new_rsa()
        fresh = own.token("rsa-2", naru.clock.time())
        for _ in range(3):
            away = await naru.ask("GET", "/v1/models", token=fresh)
            assert away.status == 503
            assert 0 < int(away.headers["Retry-After"]) <= RETRY_SECONDS
        assert own.asked.count("/keys") == 2
        assert (await naru.ask("GET", "/v1/models", token=own.token("rsa-1", naru.clock.time() + 1))).status == 200
        own.status = 200
        naru.clock.advance(RETRY_SECONDS)
        assert (await naru.ask("GET", "/v1/models", token=fresh)).status == 200


async def test_algorithms_can_be_narrowed(tmp_path: Path) -> None:
    """A key whose algorithm is not configured is no key."""
    async with fake_provider() as own, installation(tmp_path, **settings_of(own), oidc_algorithms=("ES256",)) as naru:
        for kid, status in (("ec-1", 200), ("rsa-1", 401), ("ed-1", 401)):
            answer = await naru.ask("GET", "/v1/models", token=own.token(kid, naru.clock.time()))
            assert answer.status == status, kid


async def test_a_changed_block_holds_for_keys_and_tokens(naru: Whole, provider: FakeProvider, bob: str) -> None:
    """A person who is blocked here is refused, whatever the provider says, and let in again when that is undone."""
    token = provider.token("ec-1", naru.clock.time(), sub=bob)
    me = await principal_of(naru, token)
    user = await naru.user(me["user_id"])
    for blocked, status in ((True, 401), (False, 200)):
        changed = await naru.ask(
            "PUT", f"/api/users/{me['user_id']}", {**user, "blocked": blocked, "tier": "pro"}, token=naru.key
        )
        assert changed.status == 200, changed
        async with asyncio.timeout(20):
            while (await naru.ask("GET", "/v1/models", token=token)).status != status:
                await asyncio.sleep(0.01)
    assert (await principal_of(naru, token))["tier"] == "pro", "the user's tier goes first"


async def entries_by(naru: Whole, user_id: str) -> list[tuple[str, str]]:
    """Actions of a user and where they were, as the audit tells it."""
    listed = await naru.ask("GET", f"/api/audit?actor=user:{user_id}", token=naru.key)
    assert listed.status == 200, listed
    return sorted((entry["action"], entry.get("client_address", "")) for entry in listed.body["entries"])


async def test_the_audit_does_not_take_the_edge_for_the_person(naru: Whole, provider: FakeProvider, bob: str) -> None:
    """Where a person came from for the first time is not known when an edge asks; who comes to authsvc directly is there."""
    me = await principal_of(naru, provider.token("ec-1", naru.clock.time(), sub=bob), **{"X-Forwarded-For": "10.9.8.7"})
    assert await entries_by(naru, me["user_id"]) == [("member.set", ""), ("user.create", "")]
    token = provider.token("ec-1", naru.clock.time(), sub=f"direct-{bob}")
    client = ServiceClient(naru.authsvc_address, name="authsvc", credential=token)
    try:
        stub = session_service_pb2_grpc.SessionServiceStub(client.channel)
        direct = await client.call(stub.WhoAmI, session_service_pb2.WhoAmIRequest(), timeout=10)
    finally:
        await client.close()
    assert await entries_by(naru, direct.user.user_id) == [("member.set", "127.0.0.1"), ("user.create", "127.0.0.1")]


async def test_nobody_logs_in_with_an_account_that_others_vouch_for(
    naru: Whole, provider: FakeProvider, bob: str
) -> None:
    """It has no password: none is the right one."""
    me = await principal_of(naru, provider.token("ec-1", naru.clock.time(), sub=bob))
    email = (await naru.user(me["user_id"]))["email"]
    for password in ("!", "", "nobody's password"):
        answer = await naru.ask("POST", "/api/auth/login", {"email": email, "password": password})
        assert (answer.status, answer.code) == (401, "invalid_credentials")


def settings_of(provider: FakeProvider) -> dict[str, Any]:
    return {"oidc_issuer": provider.url, "oidc_audiences": ("naru-api",)}
