"""Which keys may say for whom they ask, and which pages may send a cookie."""

from __future__ import annotations

import pytest

from edge.attribution import Attribution
from edge.config import EdgeConfig
from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.identity import Principal, Role
from naru.testing.redis_server import free_port
from tests.support.foreign_tokens import mint_forward_user_jwt

TRUSTED = Principal("w", Role.ADMIN, key_id="abcdefABCDEF", service_account="open-webui")


async def test_only_trusted_keys_make_authsvc_work() -> None:
    """While authsvc is away a request for a user is a 503 under a trusted key, and all others go on as they are."""
    signed = mint_forward_user_jwt("ann", 0.0)
    client = ServiceClient(f"127.0.0.1:{free_port()}", name="authsvc", service_token="t" * 32)
    try:
        attribution = Attribution(client, ("abcdefABCDEF",))
        with pytest.raises(NaruError) as raised:
            await attribution.attribute(TRUSTED, [signed])
        assert raised.value.reason is Reason.SERVICE_UNAVAILABLE
        for tokens in (["nonsense"], ["a.b.c"], [""], [signed, signed], [f"{signed}{'A' * 8_192}"]):
            with pytest.raises(NaruError) as raised:
                await attribution.attribute(TRUSTED, tokens)
            assert raised.value.reason is Reason.INVALID_CREDENTIALS
        assert await attribution.attribute(TRUSTED, ()) is TRUSTED
        for other in (Principal("w", key_id="ABCDEFabcdef"), Principal("w", user_id="abcdefABCDEF"), Principal("w")):
            assert await attribution.attribute(other, [signed]) is other
            assert await Attribution(client, ()).attribute(other, [signed]) is other
    finally:
        await client.close()


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example.com",
        "chat.example.com",
        "https://chat.example.com/",
        "https://chat.example.com/x",
        "null",
        "ws://x",
    ],
)
def test_pages_are_named_by_their_origin(origin: str) -> None:
    """Whatever is none, and above all one that stands for many, is refused at start."""
    with pytest.raises(ValueError, match="NARU_EDGE_COOKIE_ORIGINS"):
        EdgeConfig(cookie_origins=("https://chat.example.com:8443", origin))
