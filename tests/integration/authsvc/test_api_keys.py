"""ApiKeyService and Bootstrap over gRPC: who may make, see and end which keys."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from naru.api.common.v1 import principal_pb2
from naru.convert import timestamp_to_proto
from naru.errors import NaruError, Reason
from naru.identity import ServiceName
from naru.ids import uuid7
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import AuthService, KeyOwner, refused, refused_field

USER, WORKSPACE_ADMIN, ADMIN = (
    principal_pb2.ROLE_USER,
    principal_pb2.ROLE_WORKSPACE_ADMIN,
    principal_pb2.ROLE_ADMIN,
)


async def owner(service: AuthService, admin: KeyOwner, **fields: Any) -> KeyOwner:
    return service.as_owner((await admin.create(**fields)).secret_key)


def assert_denied(error: NaruError, rpc: str) -> None:
    """The refusal names what may not be called, as `PERMISSION_DENIED` documents."""
    assert (error.reason, error.metadata) == (
        Reason.PERMISSION_DENIED,
        {"method": f"/naru.api.auth.v1.ApiKeyService/{rpc}"},
    )


async def test_the_first_key_is_an_administrators(service: AuthService) -> None:
    """Bootstrap makes a workspace and shows, once, an admin key without limits that belongs to the operator."""
    made = await service.bootstrap(workspace_name="acme")
    found = (await service.authenticate(made.api_key)).principal
    assert found == principal_pb2.Principal(
        key_id=found.key_id,
        workspace_id=made.workspace_id,
        service_account="operator",
        role=ADMIN,
        tier="unlimited",
        scopes=principal_pb2.Scopes(),
    )
    (listed,) = (await service.as_owner(made.api_key).list()).api_keys
    assert (listed.key_id, listed.description) == (found.key_id, "bootstrap admin key")


async def test_a_second_bootstrap_fails_unless_it_is_meant(service: AuthService) -> None:
    """Bootstrapping again is refused; an additional key is made in the first or the named workspace, never a new one."""
    first = await service.bootstrap(workspace_name="acme")
    error = await refused(service.bootstrap())
    assert (error.reason, error.metadata) == (Reason.ALREADY_EXISTS, {"resource": "workspace", "name": "acme"})
    for name in ("", "acme"):
        more = await service.bootstrap(workspace_name=name, additional=True)
        assert more.workspace_id == first.workspace_id
        assert (await service.authenticate(more.api_key)).principal.role == ADMIN
    error = await refused(service.bootstrap(workspace_name="nowhere", additional=True))
    assert (error.reason, error.metadata) == (Reason.NOT_FOUND, {"resource": "workspace", "name": "nowhere"})


async def test_racing_bootstraps_make_one_key(service: AuthService) -> None:
    """Of several bootstraps at once one gets the key and the others are told that there is one."""
    results = await asyncio.gather(
        *(service.bootstrap(workspace_name=f"team {n}") for n in range(6)), return_exceptions=True
    )
    failures = [result for result in results if isinstance(result, NaruError)]
    assert [error.reason for error in failures] == [Reason.ALREADY_EXISTS] * 5
    (won,) = [result for result in results if not isinstance(result, BaseException)]
    assert len((await service.as_owner(won.api_key).list()).api_keys) == 1


@pytest.mark.parametrize("caller", [name for name in ServiceName if name is not ServiceName.OPERATOR])
async def test_only_the_operator_may_bootstrap(service: AuthService, caller: ServiceName) -> None:
    """No service but the operator's token makes the first key."""
    client = service.as_service(caller)
    call: Any = client.channel.unary_unary("/naru.api.auth.v1.AuthService/Bootstrap")
    error = await refused(client.call(call, b"", timeout=5.0))
    assert error.reason is Reason.PERMISSION_DENIED


async def test_a_key_is_shown_whole_only_once(service: AuthService, clock: FakeClock) -> None:
    """Creating answers the record and the text; the list has the same record."""
    admin = await service.admin()
    expire_time = timestamp_to_proto(clock.time() + 0.000001)
    made = await admin.create(description="for CI", service_account="ci", tier="pro", expire_time=expire_time)
    assert made.secret_key.startswith(f"sk-naru-{made.api_key.key_id}-")
    assert made.api_key.create_time == timestamp_to_proto(clock.time())
    assert made.api_key.expire_time == expire_time
    assert not made.api_key.HasField("revoke_time")
    assert made.api_key in (await admin.list()).api_keys


async def test_the_same_request_makes_one_key(service: AuthService, clock: FakeClock) -> None:
    """A repeated request_id returns the first key without its text; another body is refused; a day later it is new."""
    admin = await service.admin()
    fields: dict[str, Any] = {"request_id": uuid7(), "description": "once"}
    made = await admin.create(**fields)
    clock.advance(1)
    again = await admin.create(**fields)
    assert (again.api_key, again.secret_key) == (made.api_key, "")
    error = await refused(admin.create(**fields | {"description": "twice"}))
    assert error.reason is Reason.ALREADY_EXISTS
    clock.advance(24 * 3600)
    later = await admin.create(**fields)
    assert later.secret_key
    assert later.api_key.key_id != made.api_key.key_id


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"request_id": "again"}, "request_id"),
        ({"description": "x" * 201}, "description"),
        ({"service_account": "x" * 65}, "service_account"),
        ({"tier": "x\ny"}, "tier"),
        ({"workspace_id": "w\x00"}, "workspace_id"),
        ({"role": 9}, "role"),
        ({"expire_time": timestamp_to_proto(FakeClock().time())}, "expire_time"),
        ({"expire_time": Timestamp(seconds=1 << 60)}, "expire_time"),
        ({"expire_time": Timestamp(seconds=1 << 33, nanos=-1)}, "expire_time"),
        ({"scopes": principal_pb2.Scopes(source_cidrs=["10.0.0.1/8"])}, "scopes.source_cidrs"),
    ],
)
async def test_a_wrong_field_is_named(service: AuthService, fields: dict[str, Any], field: str) -> None:
    """A key that cannot be made is refused with the name of the field, and nothing is stored."""
    admin = await service.admin()
    assert await refused_field(admin.create(**fields)) == field
    assert len((await admin.list()).api_keys) == 1


async def test_an_unknown_workspace_is_not_found(service: AuthService) -> None:
    """An administrator who names a workspace that does not exist is told so."""
    error = await refused((await service.admin()).create(workspace_id="nowhere"))
    assert (error.reason, error.metadata["resource"]) == (Reason.NOT_FOUND, "workspace")


async def test_users_manage_no_keys(service: AuthService) -> None:
    """A user's key can neither make nor list nor revoke keys."""
    admin = await service.admin()
    made = await admin.create()
    user = service.as_owner(made.secret_key)
    assert (await refused(user.create())).reason is Reason.PERMISSION_DENIED
    assert (await refused(user.list())).reason is Reason.PERMISSION_DENIED
    assert (await refused(user.revoke(key_id=made.api_key.key_id))).reason is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    "fields",
    [
        {"role": ADMIN},
        {"workspace_id": "another"},
        {"tier": "unlimited"},
        {},
        {"scopes": principal_pb2.Scopes(models=["big-*"])},
    ],
)
async def test_nobody_makes_a_key_that_may_more(service: AuthService, fields: dict[str, Any]) -> None:
    """A workspace admin cannot give away a higher role, another workspace, a better tier, or wider scopes."""
    admin = await service.admin()
    team = await owner(service, admin, role=WORKSPACE_ADMIN, scopes=principal_pb2.Scopes(models=["small-*", "tiny"]))
    narrow = {"scopes": principal_pb2.Scopes(models=["tiny"])}
    made = await team.create(**narrow, role=WORKSPACE_ADMIN, tier="free")
    assert made.secret_key
    wish = fields if "scopes" in fields or not fields else {**narrow, **fields}
    assert_denied(await refused(team.create(**wish)), "CreateApiKey")


async def test_a_workspace_admin_sees_and_ends_its_own(service: AuthService) -> None:
    """A workspace admin lists its workspace and revokes its keys, but not a key that may more than its own."""
    admin = await service.admin()
    team = await owner(service, admin, role=WORKSPACE_ADMIN)
    made = await team.create(description="mine")
    keys = (await team.list()).api_keys
    assert made.api_key in keys
    (boss,) = [key for key in keys if key.role == ADMIN]
    assert (await team.revoke(key_id=made.api_key.key_id)).HasField("revoke_time")
    assert_denied(await refused(team.revoke(key_id=boss.key_id)), "RevokeApiKey")
    assert_denied(await refused(team.list(workspace_id="another")), "ListApiKeys")


async def test_revoking_is_for_good_and_idempotent(service: AuthService, clock: FakeClock) -> None:
    """Revoking again answers the same record; the key is listed only when revoked ones are asked for."""
    admin = await service.admin()
    made = await admin.create()
    revoked = await admin.revoke(key_id=made.api_key.key_id, request_id=uuid7())
    assert revoked.revoke_time == timestamp_to_proto(clock.time())
    clock.advance(5)
    assert await admin.revoke(key_id=made.api_key.key_id) == revoked
    assert revoked not in (await admin.list()).api_keys
    assert revoked in (await admin.list(show_revoked=True)).api_keys


async def test_revoking_says_what_is_wrong(service: AuthService) -> None:
    """An unknown key is not found; an empty one and a malformed request id are named."""
    admin = await service.admin()
    error = await refused(admin.revoke(key_id="nobody000000"))
    assert (error.reason, error.metadata) == (Reason.NOT_FOUND, {"resource": "api_key", "name": "nobody000000"})
    assert await refused_field(admin.revoke()) == "key_id"
    assert await refused_field(admin.revoke(key_id="nobody000000", request_id="x")) == "request_id"


async def test_pages_follow_one_another(service: AuthService, clock: FakeClock) -> None:
    """Pages hold each key once, newest first, also when a key is made in between."""
    admin = await service.admin()
    for _ in range(4):
        clock.advance(1)
        await admin.create()
    expected = [key.key_id for key in (await admin.list()).api_keys]
    assert len(expected) == 5
    page = await admin.list(page_size=2)
    seen = [key.key_id for key in page.api_keys]
    clock.advance(1)
    await admin.create()
    while page.next_page_token:
        page = await admin.list(page_size=2, page_token=page.next_page_token)
        assert len(page.api_keys) <= 2
        seen += [key.key_id for key in page.api_keys]
    assert seen == expected


async def test_bad_pages_are_named(service: AuthService) -> None:
    """A negative size, a workspace that cannot be, and a made-up or foreign token are refused; a large size is cut down."""
    admin = await service.admin()
    await admin.create()
    token = (await admin.list(page_size=1)).next_page_token
    assert await refused_field(admin.list(page_size=-1)) == "page_size"
    assert await refused_field(admin.list(workspace_id="w\0")) == "workspace_id"
    assert await refused_field(admin.list(page_token=token, show_revoked=True)) == "page_token"
    for made_up in ("x", "😀", "bnVsbA==", "WzFlOTk5LCAieCIsICIiLCBmYWxzZV0="):
        assert await refused_field(admin.list(page_token=made_up)) == "page_token"
    assert len((await admin.list(page_size=2_000_000)).api_keys) == 2


async def test_keys_of_a_tier(service: AuthService, clock: FakeClock) -> None:
    """A tier's keys are those that have it, their own or their workspace's, while they can be used."""
    admin = await service.admin()
    own = (await admin.create(tier="pro")).api_key
    inherited = (await admin.create()).api_key
    revoked = await admin.revoke(key_id=(await admin.create(tier="pro")).api_key.key_id)
    ending = (await admin.create(tier="pro", expire_time=timestamp_to_proto(clock.time() + 5))).api_key

    async def listed(**fields: Any) -> set[str]:
        return {key.key_id for key in (await admin.list(**fields)).api_keys}

    assert await listed(tier="pro") == {own.key_id, ending.key_id}
    assert await listed(tier="free") == {inherited.key_id}
    assert await listed(tier="gold") == set()
    clock.advance(5)
    assert await listed(tier="pro") == {own.key_id}
    assert await listed(tier="pro", show_revoked=True) == {own.key_id, ending.key_id, revoked.key_id}
    assert ending.key_id in await listed()
    page = await admin.list(tier="pro", show_revoked=True, page_size=2)
    assert await refused_field(admin.list(tier="free", page_token=page.next_page_token)) == "page_token"
    rest = await admin.list(tier="pro", show_revoked=True, page_token=page.next_page_token)
    assert len(page.api_keys) + len(rest.api_keys) == 3
    assert await refused_field(admin.list(tier="x" * 65)) == "tier"


async def test_accounting_asks_whether_a_tier_is_in_use(service: AuthService) -> None:
    """Its token sees the keys of every workspace; no other service's token lists keys."""
    admin = await service.admin()
    made = await admin.create(tier="pro")

    def as_service(name: ServiceName) -> KeyOwner:
        return KeyOwner(service.as_service(name))

    assert list((await as_service(ServiceName.ACCOUNTING).list(tier="pro", page_size=1)).api_keys) == [made.api_key]
    for name in set(ServiceName) - {ServiceName.ACCOUNTING}:
        assert (await refused(as_service(name).list(tier="pro"))).reason is Reason.PERMISSION_DENIED
