"""Authenticate over gRPC: who gets in, and that nobody learns why not."""

from __future__ import annotations

import os
from typing import Any

import pytest

from naru import api_key
from naru.api.common.v1 import principal_pb2
from naru.convert import error_from_proto, timestamp_from_proto, timestamp_to_proto
from naru.errors import Reason, invalid_api_key, invalid_argument
from naru.identity import ServiceName
from naru.refusals import WRONG_KEYS_BURST
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import AuthService, refused


async def test_a_key_tells_its_principal(service: AuthService, clock: FakeClock) -> None:
    """A new key resolves to just what it was made with, its expiry, and where the numbering stands."""
    admin = await service.admin()
    fields: dict[str, Any] = {
        "service_account": "dev-team",
        "role": principal_pb2.ROLE_WORKSPACE_ADMIN,
        "tier": "pro",
        "scopes": principal_pb2.Scopes(models=["smol*"], source_cidrs=["10.0.0.0/8"]),
    }
    made = await admin.create(description="for the team", expire_time=timestamp_to_proto(clock.time() + 60), **fields)
    found = await service.authenticate(made.secret_key)
    assert found.principal == principal_pb2.Principal(
        key_id=made.api_key.key_id, workspace_id=made.api_key.workspace_id, **fields
    )
    assert timestamp_from_proto(found.expire_time) == clock.time() + 60
    assert found.as_of == 0
    assert found.epoch


async def test_a_key_without_a_tier_has_its_workspaces(service: AuthService) -> None:
    """A key of no tier of its own has the workspace's, and by default the least role and no end."""
    made = await (await service.admin()).create()
    found = await service.authenticate(made.secret_key)
    assert (found.principal.tier, found.principal.role) == ("free", principal_pb2.ROLE_USER)
    assert not found.HasField("expire_time")


async def test_every_refusal_is_the_same(service: AuthService, clock: FakeClock) -> None:
    """Malformed, mistyped, unknown, wrong secret, expired, revoked and wrong network are one error, word for word."""
    admin = await service.admin()
    good = (await admin.create()).secret_key
    other = api_key.parse((await admin.create()).secret_key)
    expired = await admin.create(expire_time=timestamp_to_proto(clock.time() + 10))
    revoked = await admin.create()
    await admin.revoke(key_id=revoked.api_key.key_id)
    bound = (await admin.create(scopes=principal_pb2.Scopes(source_cidrs=["10.0.0.0/8"]))).secret_key
    assert (await service.authenticate(expired.secret_key)).principal.key_id == expired.api_key.key_id
    clock.advance(10)
    refusals = [
        ("", ""),
        ("x" * 9_000, ""),
        ("sk-not-ours", ""),
        (good[:-1] + ("0" if good[-1] != "0" else "1"), ""),
        (api_key.format_key("nobody000000", other.secret), ""),
        (api_key.format_key(api_key.parse(good).key_id, other.secret), ""),
        (expired.secret_key, ""),
        (revoked.secret_key, ""),
        (bound, "192.0.2.1"),
        (bound, "::ffff:192.0.2.1"),
        (bound, "somewhere"),
    ]
    for credential, address in refusals:
        assert await refused(service.authenticate(credential, address)) == invalid_api_key(), (credential, address)
    assert (await service.authenticate(good, "192.0.2.1")).principal.key_id


async def test_an_address_that_guesses_is_asked_to_wait(service: AuthService, clock: FakeClock) -> None:
    """Sixty wrong keys that come directly, then a 429 for right ones too, until a minute has passed; services ask on."""
    admin = await service.admin()
    key = (await admin.create(role=principal_pb2.ROLE_ADMIN)).secret_key
    for _ in range(WRONG_KEYS_BURST):
        error = await refused(service.as_owner(api_key.generate(os.urandom)).list())
        assert error.reason is Reason.INVALID_API_KEY
    for text in (api_key.generate(os.urandom), key):
        error = await refused(service.as_owner(text).list())
        assert error.reason is Reason.RATE_LIMIT_EXCEEDED
        assert error.retry_after is not None
        assert 0 < error.retry_after <= 60
    assert await refused(service.authenticate(api_key.generate(os.urandom), "127.0.0.1")) == invalid_api_key()
    assert (await service.authenticate(key, "127.0.0.1")).principal.key_id
    clock.advance(60)
    assert (await service.as_owner(key).list()).api_keys


async def test_several_at_once_are_told_as_each_alone(service: AuthService) -> None:
    """In their order, an error for its own credential alone; at most 256."""
    admin = await service.admin()
    keys = [(await admin.create()).secret_key for _ in range(3)]
    results = await service.authenticate_together(keys[0], "sk-not-ours", keys[1], keys[0], "", keys[2])
    told = [result.response if result.HasField("response") else None for result in results]
    alone = [await service.authenticate(key) for key in keys]
    assert told == [alone[0], None, alone[1], alone[0], None, alone[2]]
    assert [error_from_proto(results[place].error) for place in (1, 4)] == [invalid_api_key()] * 2
    assert await service.authenticate_together() == []
    error = await refused(service.authenticate_together(*["sk-not-ours"] * 257))
    assert error == invalid_argument("requests", "requests must have at most 256 items.")


@pytest.mark.parametrize("address", ["", "10.1.2.3", "::ffff:10.1.2.3"])
async def test_a_bound_key_works_from_its_network(service: AuthService, address: str) -> None:
    """A key bound to a network works from it, also seen through a dual-stack socket, and where no address is known."""
    made = await (await service.admin()).create(scopes=principal_pb2.Scopes(source_cidrs=["10.0.0.0/8"]))
    assert (await service.authenticate(made.secret_key, address)).principal.key_id == made.api_key.key_id


@pytest.mark.parametrize("caller", list(ServiceName))
async def test_only_services_that_serve_callers_may_ask(service: AuthService, caller: ServiceName) -> None:
    """Edge, inference and accounting may resolve credentials; the operator and authsvc's own token may not."""
    key = (await (await service.admin()).create()).secret_key
    if caller in (ServiceName.EDGE, ServiceName.INFERENCE, ServiceName.ACCOUNTING):
        assert (await service.authenticate(key, caller=caller)).principal.key_id
    else:
        assert (await refused(service.authenticate(key, caller=caller))).reason is Reason.PERMISSION_DENIED
