"""Showing, changing, rotating and blocking keys over gRPC."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from authsvc.app import migrate, running
from authsvc.config import AuthsvcConfig
from naru import api_key
from naru.api.auth.v1 import api_key_pb2, auth_service_pb2, auth_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.convert import duration_to_proto, timestamp_from_proto, timestamp_to_proto
from naru.errors import Reason, invalid_api_key, not_found
from naru.identity import ServiceName
from naru.ids import uuid7
from naru.lifecycle import Lifecycle
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import AuthService, KeyOwner, refused, refused_field, serving

ApiKey, Scopes = api_key_pb2.ApiKey, principal_pb2.Scopes
WORKSPACE_ADMIN = principal_pb2.ROLE_WORKSPACE_ADMIN


def mask(*paths: str) -> FieldMask:
    return FieldMask(paths=paths)


async def team(service: AuthService, admin: KeyOwner, **fields: Any) -> KeyOwner:
    """The owner of a workspace admin's key."""
    return service.as_owner((await admin.create(role=WORKSPACE_ADMIN, **fields)).secret_key)


async def test_an_update_changes_what_its_mask_names(service: AuthService, clock: FakeClock) -> None:
    """What the mask names is set or cleared, all else stays; the next authentication is by the new values."""
    admin = await service.admin()
    expire_time = timestamp_to_proto(clock.time() + 60)
    made = await admin.create(
        description="old",
        tier="pro",
        service_account="ci",
        scopes=Scopes(models=["a*"], endpoints=["/v1/*"]),
        expire_time=expire_time,
        metadata={"team": "search"},
    )
    key_id = made.api_key.key_id
    changed = await admin.update(
        api_key=ApiKey(key_id=key_id, description="new", scopes=Scopes(models=["b*"]), metadata={"cost": "7"}),
        update_mask=mask("description", "tier", "scopes.models", "metadata"),
    )
    expected = ApiKey()
    expected.CopyFrom(made.api_key)
    expected.description, expected.tier = "new", ""
    expected.scopes.models[:] = ["b*"]
    expected.metadata.clear()
    expected.metadata["cost"] = "7"
    assert changed == expected == await admin.get(key_id=key_id)
    found = await service.authenticate(made.secret_key)
    assert (found.principal.tier, found.as_of) == ("free", 1)
    assert found.principal.scopes == Scopes(models=["b*"], endpoints=["/v1/*"])
    cleared = await admin.update(api_key=ApiKey(key_id=key_id), update_mask=mask("*"))
    assert not cleared.HasField("expire_time")
    assert (cleared.description, cleared.scopes, dict(cleared.metadata)) == ("", Scopes(), {})
    assert (cleared.service_account, cleared.create_time) == ("ci", made.api_key.create_time)


async def test_without_a_mask_what_is_set_changes(service: AuthService) -> None:
    """An update without a mask changes the fields that are set; one with an empty mask, and one that says nothing new, none."""
    admin = await service.admin()
    made = (await admin.create(description="old", tier="pro")).api_key
    changed = await admin.update(api_key=ApiKey(key_id=made.key_id, description="new"))
    assert (changed.description, changed.tier) == ("new", "pro")
    assert await admin.update(api_key=changed, update_mask=FieldMask()) == changed
    assert await admin.update(api_key=changed, update_mask=mask("description", "tier")) == changed
    assert len((await admin.audit(action="api_key.update")).entries) == 1


@pytest.mark.parametrize(
    ("fields", "paths", "field"),
    [
        ({"role": principal_pb2.ROLE_ADMIN}, ["role"], "api_key.role"),
        ({}, ["workspace_id"], "api_key.workspace_id"),
        ({"description": "x" * 201}, ["description"], "api_key.description"),
        ({"tier": "x\ny"}, ["tier"], "api_key.tier"),
        ({"scopes": Scopes(source_cidrs=["10.0.0.1/8"])}, ["scopes"], "scopes.source_cidrs"),
        ({"expire_time": timestamp_to_proto(FakeClock().time())}, ["expire_time"], "expire_time"),
        ({"metadata": {"": "x"}}, ["metadata"], "metadata"),
        ({"metadata": {str(n): "x" for n in range(17)}}, ["metadata"], "metadata"),
        ({"metadata": {"a": "x" * 513}}, ["metadata"], "metadata.a"),
    ],
)
async def test_a_wrong_update_names_its_field(
    service: AuthService, fields: dict[str, Any], paths: list[str], field: str
) -> None:
    """What cannot be changed, or not to that, is refused with its name and changes nothing."""
    admin = await service.admin()
    made = (await admin.create(description="same")).api_key
    update = admin.update(api_key=ApiKey(key_id=made.key_id, **fields), update_mask=mask(*paths))
    assert await refused_field(update) == field
    assert await admin.get(key_id=made.key_id) == made


async def test_nobody_widens_a_key_beyond_their_own(service: AuthService) -> None:
    """A workspace admin changes, rotates and unblocks no key that may more than its own, and makes none may more."""
    admin = await service.admin()
    narrow = await team(service, admin, scopes=Scopes(models=["small-*"]))
    mine = (await narrow.create(scopes=Scopes(models=["small-1", "small-x*"]))).api_key
    wider = (await admin.create()).api_key
    boss = (await admin.create(role=principal_pb2.ROLE_ADMIN)).api_key
    for fields in ({"scopes": Scopes(models=["big"])}, {"scopes": Scopes()}, {"tier": "pro"}):
        update = narrow.update(api_key=ApiKey(key_id=mine.key_id, **fields), update_mask=mask(*fields))
        assert (await refused(update)).reason is Reason.PERMISSION_DENIED
    for other in (wider, boss):
        calls = (
            narrow.update(api_key=ApiKey(key_id=other.key_id, description="x")),
            narrow.rotate(key_id=other.key_id),
            narrow.unblock(key_id=other.key_id),
        )
        for call in calls:
            assert (await refused(call)).reason is Reason.PERMISSION_DENIED
    assert (await refused(narrow.block(key_id=boss.key_id))).reason is Reason.PERMISSION_DENIED
    assert (await narrow.block(key_id=wider.key_id)).state == api_key_pb2.API_KEY_STATE_BLOCKED
    changed = await narrow.update(api_key=ApiKey(key_id=mine.key_id, scopes=Scopes(models=["small-2"])))
    assert list(changed.scopes.models) == ["small-2"]


async def test_nobody_rotates_what_they_could_not_make(service: AuthService, clock: FakeClock) -> None:
    """A workspace admin gets no secret of another's key, of a tier they may not give, or of one that outlives their own."""
    admin = await service.admin()
    tomorrow, later = (timestamp_to_proto(clock.time() + days * 86_400) for days in (1, 2))
    own = await admin.create(role=WORKSPACE_ADMIN, tier="pro", expire_time=tomorrow)
    ends, endless = service.as_owner(own.secret_key), await team(service, admin)
    refusals = (
        (endless, {"user_id": await admin.new_user()}),
        (endless, {"tier": "pro"}),
        (ends, {}),
        (ends, {"expire_time": later}),
    )
    for boss, fields in refusals:
        made = await admin.create(**fields)
        assert (await refused(boss.rotate(key_id=made.api_key.key_id))).reason is Reason.PERMISSION_DENIED, fields
        assert await service.authenticate(made.secret_key)
        assert (await boss.block(key_id=made.api_key.key_id)).state == api_key_pb2.API_KEY_STATE_BLOCKED
        assert (await boss.revoke(key_id=made.api_key.key_id)).state == api_key_pb2.API_KEY_STATE_REVOKED
        assert (await admin.rotate(key_id=(await admin.create(**fields)).api_key.key_id)).secret_key
    for boss, fields in ((endless, {}), (endless, {"tier": "free"}), (ends, {"expire_time": tomorrow})):
        assert (await boss.rotate(key_id=(await admin.create(**fields)).api_key.key_id)).secret_key, fields
    assert (await ends.rotate(key_id=own.api_key.key_id)).secret_key, "its own, whatever its tier"


async def test_users_learn_nothing_of_keys(service: AuthService) -> None:
    """A user's key is refused before it is looked whether there is such a key."""
    admin = await service.admin()
    made = await admin.create()
    user = service.as_owner(made.secret_key)
    for key_id in (made.api_key.key_id, "nobody000000"):
        for verb in ("get", "rotate", "block", "unblock", "revoke"):
            assert (await refused(getattr(user, verb)(key_id=key_id))).reason is Reason.PERMISSION_DENIED
        assert (await refused(user.update(api_key=ApiKey(key_id=key_id)))).reason is Reason.PERMISSION_DENIED


async def test_a_rotated_key_has_two_secrets_for_a_while(service: AuthService, clock: FakeClock) -> None:
    """The new secret works at once, the old one for the grace; both are one key, with its id and settings."""
    admin = await service.admin()
    made = await admin.create(description="ci", tier="pro")
    clock.advance(5)
    rotated = await admin.rotate(key_id=made.api_key.key_id, grace_period=duration_to_proto(60))
    assert api_key.parse(rotated.secret_key).key_id == made.api_key.key_id
    assert rotated.secret_key != made.secret_key
    assert timestamp_from_proto(rotated.api_key.rotate_time) == clock.time()
    assert timestamp_from_proto(rotated.api_key.earlier_secrets_expire_time) == clock.time() + 60
    old, new = await service.authenticate(made.secret_key), await service.authenticate(rotated.secret_key)
    assert old.principal == new.principal
    assert timestamp_from_proto(old.expire_time) == clock.time() + 60
    assert not new.HasField("expire_time")
    clock.advance(60)
    assert await refused(service.authenticate(made.secret_key)) == invalid_api_key()
    assert (await service.authenticate(rotated.secret_key)).principal == new.principal


async def test_without_grace_the_old_secret_ends_at_once(service: AuthService) -> None:
    """No grace ends every earlier secret, also those of rotations before that had one; revoking ends them all."""
    admin = await service.admin()
    made = await admin.create()
    key_id = made.api_key.key_id
    second = await admin.rotate(key_id=key_id)
    assert await service.authenticate(made.secret_key)
    third = await admin.rotate(key_id=key_id, grace_period=duration_to_proto(0))
    for ended in (made, second):
        assert await refused(service.authenticate(ended.secret_key)) == invalid_api_key()
    fourth = await admin.rotate(key_id=key_id)
    assert await service.authenticate(third.secret_key)
    await admin.revoke(key_id=key_id)
    for ended in (third, fourth):
        assert await refused(service.authenticate(ended.secret_key)) == invalid_api_key()
    assert (await refused(admin.rotate(key_id=key_id))).reason is Reason.FAILED_PRECONDITION


async def test_two_earlier_secrets_work_at_most(service: AuthService, clock: FakeClock) -> None:
    """Whoever lost a new secret rotates again without breaking what uses the old; a third rotation ends the oldest."""
    admin = await service.admin()
    made = await admin.create()
    secrets = [made.secret_key]
    for _ in range(3):
        clock.advance(1)
        secrets.append((await admin.rotate(key_id=made.api_key.key_id)).secret_key)
    assert await refused(service.authenticate(secrets[0])) == invalid_api_key()
    for secret in secrets[1:]:
        assert await service.authenticate(secret)


async def test_the_same_rotation_is_made_once(service: AuthService, clock: FakeClock) -> None:
    """A repeated request_id rotates nothing more and shows no secret; another body is refused; a day later it rotates."""
    admin = await service.admin()
    made = await admin.create()
    fields: dict[str, Any] = {"key_id": made.api_key.key_id, "request_id": uuid7()}
    rotated = await admin.rotate(**fields)
    again = await admin.rotate(**fields)
    assert (again.api_key, again.secret_key) == (rotated.api_key, "")
    assert await service.authenticate(rotated.secret_key)
    other = await admin.create()
    for wrong in ({"grace_period": duration_to_proto(1)}, {"key_id": other.api_key.key_id}):
        assert (await refused(admin.rotate(**fields | wrong))).reason is Reason.ALREADY_EXISTS
    clock.advance(24 * 3600)
    assert (await admin.rotate(**fields)).secret_key


async def test_racing_rotations_leave_every_new_secret_known(service: AuthService) -> None:
    """Rotations at once happen one after the other: the newest secrets work and the audit has each of them."""
    admin = await service.admin()
    made = await admin.create()
    rotated = await asyncio.gather(*(admin.rotate(key_id=made.api_key.key_id) for _ in range(3)))
    works = [await _works(service, one.secret_key) for one in rotated]
    assert sum(works) == 3
    assert len((await admin.audit(action="api_key.rotate")).entries) == 3


@pytest.mark.parametrize("grace", [-1.0, 30 * 24 * 3600 + 1.0])
async def test_a_grace_has_bounds(service: AuthService, grace: float) -> None:
    """A grace is neither negative nor longer than 30 days."""
    admin = await service.admin()
    made = await admin.create()
    rotation = admin.rotate(key_id=made.api_key.key_id, grace_period=duration_to_proto(grace))
    assert await refused_field(rotation) == "grace_period"


async def test_a_blocked_key_comes_back(service: AuthService, clock: FakeClock) -> None:
    """A blocked key does not work until it is unblocked, also not by its earlier secrets; each is told to the caches."""
    admin = await service.admin()
    made = await admin.create()
    key_id = made.api_key.key_id
    rotated = await admin.rotate(key_id=key_id)
    async with service.watch() as messages, asyncio.timeout(20):
        await anext(messages)
        blocked = await admin.block(key_id=key_id)
        assert list((await anext(messages)).key_ids) == [key_id]
        assert (blocked.state, blocked.block_time) == (
            api_key_pb2.API_KEY_STATE_BLOCKED,
            timestamp_to_proto(clock.time()),
        )
        for secret in (made.secret_key, rotated.secret_key):
            assert await refused(service.authenticate(secret)) == invalid_api_key()
        clock.advance(1)
        assert await admin.block(key_id=key_id) == blocked
        unblocked = await admin.unblock(key_id=key_id)
        assert unblocked.state == api_key_pb2.API_KEY_STATE_ACTIVE
        assert list((await anext(messages)).key_ids) == [key_id]
    assert await admin.unblock(key_id=key_id) == unblocked
    assert await service.authenticate(made.secret_key)
    await admin.revoke(key_id=key_id)
    for call in (admin.block(key_id=key_id), admin.unblock(key_id=key_id), admin.update(api_key=made.api_key)):
        assert (await refused(call)).reason is Reason.FAILED_PRECONDITION


async def test_lists_are_filtered(service: AuthService, clock: FakeClock) -> None:
    """Keys are found by owner, by how they stand, and by a part of their description, whatever its case."""
    admin = await service.admin()
    user_id = await admin.new_user()
    made = {
        "active": await admin.create(description="Search 100%", service_account="ci"),
        "user": await admin.create(user_id=user_id, description="한국어 검색"),
        "blocked": await admin.create(description="search_1"),
        "expired": await admin.create(expire_time=timestamp_to_proto(clock.time() + 1)),
        "revoked": await admin.create(description="SEARCH"),
    }
    await admin.block(key_id=made["blocked"].api_key.key_id)
    await admin.revoke(key_id=made["revoked"].api_key.key_id)
    clock.advance(1)
    names = {one.api_key.key_id: name for name, one in made.items()}

    async def listed(**fields: Any) -> set[str]:
        return {names.get(key.key_id, "bootstrap") for key in (await admin.list(**fields)).api_keys}

    assert await listed(service_account="ci") == {"active"}
    assert await listed(user_id=user_id) == {"user"}
    assert await listed(state=api_key_pb2.API_KEY_STATE_ACTIVE) == {"active", "user", "bootstrap"}
    assert await listed(state=api_key_pb2.API_KEY_STATE_BLOCKED) == {"blocked"}
    assert await listed(state=api_key_pb2.API_KEY_STATE_EXPIRED) == {"expired"}
    assert await listed(state=api_key_pb2.API_KEY_STATE_REVOKED) == {"revoked"}
    assert await listed(description_contains="sEaRCh") == {"active", "blocked"}
    assert await listed(description_contains="0%") == {"active"}
    assert await listed(description_contains="h_") == {"blocked"}
    assert await listed(description_contains="검색") == {"user"}
    states = {key.key_id: key.state for key in (await admin.list(show_revoked=True)).api_keys}
    assert states[made["expired"].api_key.key_id] == api_key_pb2.API_KEY_STATE_EXPIRED
    assert await refused_field(admin.list(state=99)) == "state"


async def test_uses_outlive_a_restart(config: AuthsvcConfig, clock: FakeClock) -> None:
    """When keys were used, here or as another service tells, is written at the latest when authsvc stops."""
    await migrate(config)
    async with running(config, Lifecycle(), clock=clock) as up, serving(config, up) as service:
        boss = (await service.bootstrap()).api_key
        here, elsewhere = [await service.as_owner(boss).create() for _ in range(2)]
        clock.advance(5)
        await service.authenticate(here.secret_key)
        client = service.as_service(ServiceName.EDGE)
        use = auth_service_pb2.KeyUse(key_id=elsewhere.api_key.key_id, time=timestamp_to_proto(clock.time() - 2))
        stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        await client.call(stub.NoteKeyUses, auth_service_pb2.NoteKeyUsesRequest(uses=[use]), timeout=5.0)
        assert not (await service.as_owner(boss).get(key_id=here.api_key.key_id)).HasField("last_used_time")
    async with running(config, Lifecycle(), clock=clock) as up, serving(config, up) as service:
        for key, used in ((here, clock.time()), (elsewhere, clock.time() - 2)):
            found = await service.as_owner(boss).get(key_id=key.api_key.key_id)
            assert timestamp_from_proto(found.last_used_time) == used


async def test_a_key_has_one_owner(service: AuthService) -> None:
    """A key is a user's or a service account's; only an administrator makes one for somebody else."""
    admin = await service.admin()
    user_id = await admin.new_user()
    assert await refused_field(admin.create(user_id=user_id, service_account="ci")) == "user_id"
    for one in (user_id, "nobody"):
        assert (await refused((await team(service, admin)).create(user_id=one))).reason is Reason.PERMISSION_DENIED
    assert await refused(admin.create(user_id="nobody")) == not_found("user", "nobody")
    made = await admin.create(user_id=user_id)
    assert (await service.authenticate(made.secret_key)).principal.user_id == user_id


async def _works(service: AuthService, secret: str) -> bool:
    return bool((await service.authenticate(secret)).principal.key_id)
