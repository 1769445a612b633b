"""Open WebUI's tokens over HTTP, through a real edge, authsvc, accounting and a simulated engine."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_asyncio

from naru import api_key
from naru.ids import uuid7
from tests.support.foreign_harness import Whole, whole
from tests.support.foreign_tokens import (
    FORWARD_SECRET,
    WEBUI_SECRET_KEY,
    create_token,
    hs256,
    mint_forward_user_jwt,
)
from tests.support.identity_harness import Answer, installation

PAGE = "https://chat.example.com"
FOUR_WEEKS = timedelta(weeks=4)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def naru(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    """One installation for all tests here, each of which has users of its own."""
    async with whole(
        tmp_path_factory.mktemp("naru"),
        edge={"cookie_origins": (PAGE,)},
        openwebui_secret_key=WEBUI_SECRET_KEY,
        openwebui_user_jwt_secret=FORWARD_SECRET,
        openwebui_tier="unlimited",
    ) as running:
        yield running


@pytest.fixture
def ann() -> str:
    """Somebody's id as Open WebUI gives them, in this test alone."""
    return str(uuid.uuid4())


def session_of(naru: Whole, user_id: str) -> str:
    return create_token({"id": user_id}, FOUR_WEEKS, now=naru.clock.time())


async def shown_in_usage(naru: Whole, user_id: str, requests: int) -> None:
    """Waits until usage shows so many requests of the user."""
    async with asyncio.timeout(10):
        while (await naru.usage_by_user()).get(user_id) != requests:
            await asyncio.sleep(0.02)


async def give_front_end_tier(naru: Whole, tier: str) -> None:
    """Gives its key a tier, and waits until the edge has heard."""
    path = f"/api/keys/{api_key.parse(naru.front_end).key_id}"
    assert (await naru.ask("PATCH", path, {"tier": tier}, token=naru.key)).status == 200
    async with asyncio.timeout(20):
        while (await naru.ask("GET", "/api/auth/me", token=naru.front_end)).body["principal"]["tier"] != tier:
            await asyncio.sleep(0.01)


def is_refused(answer: Answer) -> bool:
    return answer.status == 401 and (answer.code, answer.body["error"]["message"]) == (
        "invalid_api_key",
        "Incorrect API key provided.",
    )


async def test_a_session_token_is_a_credential(naru: Whole, ann: str) -> None:
    """It works on /v1 and /api, is billed to a user of its own, who stays the same and can be blocked."""
    token = session_of(naru, ann)
    me = await naru.ask("GET", "/api/auth/me", token=token)
    assert me.status == 200, me
    user_id = me.body["principal"]["user_id"]
    assert me.body["principal"]["role"] == "user"
    assert me.body["principal"]["workspace_id"] == naru.workspace_id
    assert (await naru.chat(token)).status == 200
    await shown_in_usage(naru, user_id, 1)
    assert (await naru.chat(session_of(naru, ann))).status == 200
    await shown_in_usage(naru, user_id, 2)
    other = await naru.ask("GET", "/api/auth/me", token=session_of(naru, "another"))
    assert other.body["principal"]["user_id"] != user_id
    made = await naru.user(user_id)
    assert made["name"] == ann
    assert made["email"].endswith("@open-webui.invalid")
    assert (await naru.ask("GET", "/api/users", token=token)).status == 403
    blocked = await naru.ask("PUT", f"/api/users/{user_id}", {**made, "blocked": True}, token=naru.key)
    assert blocked.status == 200, blocked
    async with asyncio.timeout(20):
        while not is_refused(await naru.chat(token)):
            await asyncio.sleep(0.01)
    assert (await naru.ask("GET", "/api/auth/me", token=session_of(naru, "another"))).status == 200


async def test_the_first_use_is_told_by_the_audit_and_the_next_writes_nothing(naru: Whole, ann: str) -> None:
    """One user, one membership, two entries, whoever comes at once; after that the database is only read."""
    token = session_of(naru, ann)
    answers = await asyncio.gather(
        *(
            naru.ask("GET", "/v1/models", token=create_token({"id": ann}, FOUR_WEEKS, now=naru.clock.time()))
            for _ in range(8)
        )
    )
    assert {answer.status for answer in answers} == {200}
    user_id = (await naru.ask("GET", "/api/auth/me", token=token)).body["principal"]["user_id"]
    entries = (await naru.ask("GET", f"/api/audit?object_id={user_id}", token=naru.key)).body["entries"]
    assert sorted(entry["action"] for entry in entries) == ["member.set", "user.create"]
    assert {entry["actor"] for entry in entries} == {f"user:{user_id}"}
    before = await naru.contents()
    for _ in range(3):
        assert (await naru.ask("GET", "/v1/models", token=session_of(naru, ann))).status == 200
    assert await naru.contents() == before


async def test_a_token_ends_at_the_edge_when_it_expires(naru: Whole, ann: str) -> None:
    """The edge keeps an answer no longer than the token is good; one without an end is good until its user is blocked."""
    # The edge has the machine's own clock. With what authsvc allows for skew, this token has a second there.
    now = naru.clock.time()
    ending = create_token({"id": ann}, timedelta(seconds=time.time() - now - 29), now=now)
    assert (await naru.ask("GET", "/v1/models", token=ending)).status == 200
    naru.clock.advance(60)
    async with asyncio.timeout(20):
        while (await naru.ask("GET", "/v1/models", token=ending)).status == 200:
            await asyncio.sleep(0.05)
    assert is_refused(await naru.ask("GET", "/v1/models", token=ending))
    endless = create_token({"id": ann}, None, now=now)
    assert (await naru.ask("GET", "/v1/models", token=endless)).status == 200


async def test_bad_session_tokens_are_refused(naru: Whole, ann: str) -> None:
    """Whatever is wrong with one is 401 with one text, and nothing is written."""
    now = int(naru.clock.time())
    good = {"id": ann, "exp": now + 600}

    def encoded(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    token = hs256(good, WEBUI_SECRET_KEY)
    header, body, signature = token.split(".")
    wrong = {
        "alg none": jwt.encode(good, None, algorithm="none"),
        "alg none with a signature": f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{body}.{signature}",
        "unsigned": f"{header}.{body}.",
        "another's secret": hs256(good, "x" * 32),
        "alg HS512 in the header": f"{encoded({'alg': 'HS512', 'typ': 'JWT'})}.{body}.{signature}",
        "expired": hs256(good | {"exp": now - 31}, WEBUI_SECRET_KEY),
        "future nbf": hs256(good | {"nbf": now + 31}, WEBUI_SECRET_KEY),
        "no id": hs256({"exp": now + 600}, WEBUI_SECRET_KEY),
        "empty id": hs256(good | {"id": ""}, WEBUI_SECRET_KEY),
        "id that is no text": hs256(good | {"id": 7}, WEBUI_SECRET_KEY),
        "id with a null": hs256(good | {"id": "a\0b"}, WEBUI_SECRET_KEY),
        "id with a line break": hs256(good | {"id": "a\nb"}, WEBUI_SECRET_KEY),
        "id that looks like another": hs256(good | {"id": "аnn"}, WEBUI_SECRET_KEY),
        "long id": hs256(good | {"id": "i" * 256}, WEBUI_SECRET_KEY),
        "exp that is text": hs256(good | {"exp": str(now + 600)}, WEBUI_SECRET_KEY),
        "exp that is true": hs256(good | {"exp": True}, WEBUI_SECRET_KEY),
        "exp that is infinite": hs256(good | {"exp": float("inf")}, WEBUI_SECRET_KEY),
        "exp beyond all calendars": hs256(good | {"exp": 10**30}, WEBUI_SECRET_KEY),
        "an empty issuer": hs256(good | {"iss": ""}, WEBUI_SECRET_KEY),
        "a list": hs256([good], WEBUI_SECRET_KEY),  # type: ignore[arg-type] # that is the point
        "crit": hs256(good, WEBUI_SECRET_KEY, {"alg": "HS256", "crit": ["exp"]}),
        "a token about a user": mint_forward_user_jwt(ann, now, secret=WEBUI_SECRET_KEY, id=ann),
        "tampered": f"{header}.{encoded(good | {'id': 'eve'})}.{signature}",
        "deep": hs256(good | {"id": json.loads("[" * 500 + "]" * 500)}, WEBUI_SECRET_KEY),
        "too long": f"{token}{'A' * 8_000}"[:8_100],
    }
    before = await naru.contents()
    for name, bad in wrong.items():
        # Each from an address of its own: an address that sends many wrong ones is asked to wait.
        for number, path in enumerate(("/v1/models", "/api/auth/me")):
            answer = await naru.ask("GET", path, token=bad, headers={"X-Forwarded-For": f"10.1.{len(name)}.{number}"})
            assert is_refused(answer), (name, answer)
    assert await naru.contents() == before
    assert (await naru.ask("GET", "/v1/models", token=token)).status == 200, "the same, unchanged, is good"


async def test_a_token_of_a_megabyte_is_refused(naru: Whole, ann: str) -> None:
    """It does not get past the limit on headers, in whichever of them it comes."""
    before, large = await naru.contents(), f"{session_of(naru, ann)}{'A' * 1_000_000}"
    for name, value in (
        ("Authorization", f"Bearer {large}"),
        ("X-OpenWebUI-User-Jwt", large),
        ("Cookie", f"token={large}"),
    ):
        try:
            answer = await naru.ask("GET", "/v1/models", headers={name: value})
        except ConnectionError:
            continue
        assert answer.status == 431, name
    assert await naru.contents() == before


async def test_a_front_end_says_for_whom_it_asks(naru: Whole, ann: str) -> None:
    """A request under a trusted key with the signed header is its user's in usage, and the same user's as their session."""
    others = (await naru.usage_by_user()).get("", 0)
    signed = {"X-OpenWebUI-User-Jwt": mint_forward_user_jwt(ann, naru.clock.time())}
    answer = await naru.chat(naru.front_end, signed)
    assert answer.status == 200, answer
    me = await naru.ask("GET", "/api/auth/me", token=session_of(naru, ann))
    user_id = me.body["principal"]["user_id"]
    await shown_in_usage(naru, user_id, 1)
    assert (await naru.user(user_id))["name"] == "ann@example.com"
    plain = {"X-OpenWebUI-User-Id": ann, "X-OpenWebUI-User-Email": "ann@example.com", "X-OpenWebUI-User-Role": "admin"}
    assert (await naru.chat(naru.front_end, plain)).status == 200
    assert (await naru.chat(naru.front_end)).status == 200
    await shown_in_usage(naru, "", others + 2)
    assert (await naru.usage_by_user())[user_id] == 1, "plain headers are not believed"


async def test_a_front_end_gives_its_users_no_more_than_their_role(naru: Whole, ann: str) -> None:
    """A request for a user has the least role; a blocked user is a 403, and the key goes on for others."""
    signed = {"X-OpenWebUI-User-Jwt": mint_forward_user_jwt(ann, naru.clock.time())}
    me = (await naru.ask("GET", "/api/auth/me", token=naru.front_end, headers=signed)).body["principal"]
    assert me["role"] == "user"
    user = await naru.user(me["user_id"])
    assert (
        await naru.ask("PUT", f"/api/users/{me['user_id']}", {**user, "blocked": True}, token=naru.key)
    ).status == 200
    refused = await naru.chat(naru.front_end, signed)
    assert (refused.status, refused.body["error"]["message"]) == (403, "This user is blocked.")
    other = {"X-OpenWebUI-User-Jwt": mint_forward_user_jwt("another", naru.clock.time())}
    assert (await naru.chat(naru.front_end, other)).status == 200


async def test_limits_count_for_each_user(naru: Whole, ann: str) -> None:
    """By their session, and by a trusted key with a limit per user: one user's requests leave the others' alone."""
    rule = {"kind": "requests", "window": "minute", "limit": 1}
    tier = {"name": f"tier-{ann}", "limits": [{"scope": "user", "rule": rule}]}
    assert (await naru.ask("POST", "/api/tiers", tier, token=naru.key)).status == 200
    await give_front_end_tier(naru, tier["name"])
    for number, status in ((1, 200), (1, 429), (2, 200), (2, 429)):
        signed = {"X-OpenWebUI-User-Jwt": mint_forward_user_jwt(f"{ann}-{number}", naru.clock.time())}
        answer = await naru.chat(naru.front_end, signed)
        assert answer.status == status, (number, answer)
    await give_front_end_tier(naru, "unlimited")


async def test_bad_headers_of_a_front_end_are_refused(naru: Whole, ann: str) -> None:
    """Under a trusted key a bad header is 401 and says why; the key itself stays good, and nothing is written."""
    now = naru.clock.time()
    stamp = int(now)
    wrong = {
        "is no signed token|one signed token": "nonsense",
        "unsigned|one signed token": jwt.encode({"sub": ann, "iss": "open-webui"}, None, algorithm="none"),
        "another's|signature": mint_forward_user_jwt(ann, now, secret="x" * 48),
        "of a session|signature": session_of(naru, ann),
        "expired|expired": mint_forward_user_jwt(ann, now - 331),
        "not yet|not good yet": mint_forward_user_jwt(ann, now + 31),
        "too long|more than 300": mint_forward_user_jwt(ann, now, exp=stamp + 301),
        "no iat|more than 300": mint_forward_user_jwt(ann, now, iat=None),
        "no exp|no end": mint_forward_user_jwt(ann, now, exp=None),
        "no issuer|issuer": mint_forward_user_jwt(ann, now, iss=None),
        "another issuer|issuer": mint_forward_user_jwt(ann, now, iss="somebody"),
        "no subject|who the user is": mint_forward_user_jwt(ann, now, sub=None),
        "empty subject|who the user is": mint_forward_user_jwt("", now),
    }
    before = await naru.contents()
    for name, bad in wrong.items():
        answer = await naru.chat(naru.front_end, {"X-OpenWebUI-User-Jwt": bad})
        assert (answer.status, answer.code) == (401, "invalid_credentials"), (name, answer)
        message = answer.body["error"]["message"]
        assert message.startswith("The X-OpenWebUI-User-Jwt header is no good: "), name
        assert name.partition("|")[2] in message
    assert await naru.contents() == before
    assert (await naru.chat(naru.front_end)).status == 200
    signed = mint_forward_user_jwt(ann, now)
    async with naru.http.get(
        f"{naru.url}/v1/models",
        headers=[
            ("Authorization", f"Bearer {naru.front_end}"),
            ("X-OpenWebUI-User-Jwt", signed),
            ("X-OpenWebUI-User-Jwt", signed),
        ],
    ) as two:
        assert two.status == 401


async def test_the_header_of_an_untrusted_key_is_ignored(naru: Whole, ann: str) -> None:
    """Neither a good nor a bad one changes whose request it is, or is looked at."""
    before = await naru.contents()
    for header in (mint_forward_user_jwt(ann, naru.clock.time()), "nonsense"):
        answer = await naru.ask("GET", "/api/auth/me", token=naru.key, headers={"X-OpenWebUI-User-Jwt": header})
        assert answer.status == 200
        assert answer.body["principal"].get("user_id", "") == ""
    assert await naru.contents() == before


async def test_the_cookie_is_read_from_allowed_pages_alone(naru: Whole, ann: str) -> None:
    """With an allowed Origin it is a credential; without one, or with another, every request with it is a 403."""
    cookie = {"Cookie": f"theme=dark; token={session_of(naru, ann)}"}
    allowed = await naru.ask("GET", "/v1/models", headers=cookie | {"Origin": PAGE})
    assert allowed.status == 200
    assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
    assert allowed.headers["Access-Control-Allow-Credentials"] == "true"
    assert (await naru.chat(headers=cookie | {"Origin": PAGE})).status == 200
    before = await naru.contents()
    for origin in (
        {},
        *({"Origin": one} for one in ("https://evil.example", "null", f"{PAGE}.evil.example", PAGE.upper(), "")),
    ):
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", "/v1/chat/completions"),
            ("DELETE", "/api/keys/abcdefABCDEF"),
        ):
            refused = await naru.ask(method, path, headers=cookie | origin)
            assert refused.status == 403, (origin, path)
            assert "Access-Control-Allow-Credentials" not in refused.headers
    assert await naru.contents() == before
    # A credential in a header is no browser's doing, and goes first.
    assert (await naru.ask("GET", "/v1/models", token=naru.key, headers=cookie)).status == 200
    bad = await naru.ask("GET", "/v1/models", headers={"Cookie": f"token={naru.key}", "Origin": PAGE})
    assert bad.status == 401, "a key is no cookie"


async def test_browsers_may_ask_first(naru: Whole, ann: str) -> None:
    """A preflight of an allowed page is told that cookies may come."""
    asked = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    async with naru.http.options(f"{naru.url}/v1/chat/completions", headers=asked) as answer:
        assert answer.status == 204
        assert answer.headers["Access-Control-Allow-Credentials"] == "true"


async def test_new_users_can_be_made_to_wait(tmp_path: Path, ann: str) -> None:
    """Whoever comes for the first time is refused until an administrator unblocks them; each try writes nothing more."""
    settings = {"openwebui_secret_key": WEBUI_SECRET_KEY, "openwebui_new_users": "blocked"}
    async with installation(tmp_path, **settings) as naru:
        token = create_token({"id": ann}, FOUR_WEEKS, now=naru.clock.time())
        assert is_refused(await naru.ask("GET", "/v1/models", token=token))
        before = await naru.contents()
        again = create_token({"id": ann}, FOUR_WEEKS, now=naru.clock.time())
        assert is_refused(await naru.ask("GET", "/v1/models", token=again))
        assert await naru.contents() == before
        listed = (await naru.ask("GET", "/api/users", token=naru.key)).body["users"]
        (made,) = [user for user in listed if user["name"] == ann]
        assert made["blocked"]
        allowed = await naru.ask("PUT", f"/api/users/{made['user_id']}", {**made, "blocked": False}, token=naru.key)
        assert allowed.status == 200
        async with asyncio.timeout(20):
            while (await naru.ask("GET", "/v1/models", token=token)).status != 200:
                await asyncio.sleep(0.01)


async def test_nothing_of_it_is_on_by_default(tmp_path: Path, ann: str) -> None:
    """Without settings a session token is 401 as any other stranger's, the header is ignored, the cookie is not read."""
    async with installation(tmp_path) as naru:
        now = naru.clock.time()
        before = await naru.contents()
        token = create_token({"id": ann}, FOUR_WEEKS, now=now)
        assert is_refused(await naru.ask("GET", "/v1/models", token=token))
        cookie = await naru.ask("GET", "/v1/models", headers={"Cookie": f"token={token}", "Origin": PAGE})
        assert cookie.status == 401
        header = {"X-OpenWebUI-User-Jwt": mint_forward_user_jwt(ann, now)}
        assert (await naru.ask("GET", "/v1/models", token=naru.key, headers=header)).status == 200
        assert await naru.contents() == before


async def test_a_workspace_can_be_configured(tmp_path: Path, ann: str) -> None:
    """Those who come with a session belong to the workspace that is named; without such a workspace they are refused."""
    async with installation(tmp_path, openwebui_secret_key=WEBUI_SECRET_KEY, openwebui_workspace="chat") as naru:
        token = create_token({"id": ann}, FOUR_WEEKS, now=naru.clock.time())
        before = await naru.contents()
        refused = await naru.ask("GET", "/v1/models", token=token)
        assert (refused.status, refused.body["error"]["message"]) == (403, "You do not belong to any workspace.")
        assert await naru.contents() == before
        made = await naru.ask("POST", "/api/workspaces", {"name": "chat", "tier": "pro"}, token=naru.key)
        me = (await naru.ask("GET", "/api/auth/me", token=token)).body["principal"]
        assert (me["workspace_id"], me["tier"]) == (made.body["workspace_id"], "pro")
        elsewhere = {"OpenAI-Project": naru.workspace_id}
        again = (await naru.ask("GET", "/api/auth/me", token=token, headers=elsewhere)).body["principal"]
        assert again["workspace_id"] == me["workspace_id"]
        assert (
            await naru.ask("GET", "/v1/models", token=create_token({"id": uuid7()}, FOUR_WEEKS, now=0))
        ).status == 401
