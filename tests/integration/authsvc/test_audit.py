"""The audit: every change leaves an entry, in its own transaction, that nobody changes or deletes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa

from authsvc import audit
from authsvc.audit_store import AuditQuery, AuditStore
from authsvc.keys import SecretDigest
from authsvc.records import ApiKey, Workspace
from authsvc.store import KeyStore
from authsvc.tables import audit_entries
from naru import api_key
from naru.api.auth.v1 import api_key_pb2
from naru.api.common.v1 import principal_pb2
from naru.convert import timestamp_to_proto
from naru.database import Database
from naru.errors import Reason
from naru.identity import ServiceName
from naru.testing.clock import FakeClock
from tests.integration.authsvc.harness import AuthService, KeyOwner, refused, refused_field
from tests.support.auth_store import bootstrap, entry, revoke_key


async def test_every_change_is_told(service: AuthService, clock: FakeClock) -> None:
    """Who, from where, what, and before and after, newest first; what changed nothing and what was refused is not there."""
    made = await service.bootstrap(workspace_name="acme")
    admin = service.as_owner(made.api_key)
    key = await admin.create(description="ci")
    key_id = key.api_key.key_id
    clock.advance(1)
    await admin.update(api_key=api_key_pb2.ApiKey(key_id=key_id, description="new"))
    rotated = await admin.rotate(key_id=key_id)
    for verb in ("block", "block", "unblock", "revoke", "revoke"):
        await getattr(admin, verb)(key_id=key_id)
    await refused(admin.block(key_id=key_id))
    entries = (await admin.audit()).entries
    assert [one.action for one in entries] == [
        *("api_key.revoke", "api_key.unblock", "api_key.block", "api_key.rotate", "api_key.update", "api_key.create"),
        "installation.bootstrap",
    ]
    first, update = entries[-1], entries[-3]
    assert (first.actor, first.object_id, first.before_json) == ("service:operator", made.workspace_id, "")
    assert json.loads(first.after_json)["workspace"]["name"] == "acme"
    assert update.actor == f"key:{api_key.parse(made.api_key).key_id}"
    assert (update.client_address, update.time) == ("127.0.0.1", timestamp_to_proto(clock.time()))
    assert update.request_id.startswith("req_")
    assert (update.object_id, update.workspace_id) == (key_id, made.workspace_id)
    before, after = json.loads(update.before_json), json.loads(update.after_json)
    assert {name for name in after if after[name] != before[name]} == {"description"}
    assert (before["description"], after["description"]) == ("ci", "new")
    shown = "".join(str(one) for one in entries)
    for text in (made.api_key, key.secret_key, rotated.secret_key):
        assert api_key.parse(text).secret not in shown
    assert "digest" not in shown


async def test_the_audit_is_filtered_and_paged(service: AuthService, clock: FakeClock) -> None:
    """Actor, action, object, workspace and time narrow it; pages follow one another; a token is of its filters."""
    admin = await service.admin()
    made = []
    for _ in range(4):
        clock.advance(1)
        made.append((await admin.create()).api_key)
    await admin.revoke(key_id=made[0].key_id)

    async def actions(**fields: Any) -> list[str]:
        return [one.action for one in (await admin.audit(**fields)).entries]

    assert await actions(object_id=made[0].key_id) == ["api_key.revoke", "api_key.create"]
    assert await actions(actor="service:operator") == ["installation.bootstrap"]
    assert await actions(action="api_key.revoke") == ["api_key.revoke"]
    assert len(await actions(action="api_key.*")) == 5
    assert await actions(action="api%.*") == await actions(action="api.*") == await actions(workspace_id="none") == []
    third, fourth = made[2].create_time, made[3].create_time
    assert await actions(start_time=third, end_time=fourth) == ["api_key.create"]
    page = await admin.audit(page_size=4)
    rest = await admin.audit(page_size=4, page_token=page.next_page_token)
    assert [*page.entries, *rest.entries] == list((await admin.audit()).entries)
    assert (len(page.entries), rest.next_page_token) == (4, "")
    assert await refused_field(admin.audit(actor="x", page_token=page.next_page_token)) == "page_token"
    assert await refused_field(admin.audit(action="x\0")) == "action"
    assert await refused_field(admin.audit(page_size=-1)) == "page_size"


async def test_a_workspace_admin_sees_its_workspace(service: AuthService) -> None:
    """It sees what was done there and nothing else; a user sees nothing; the operator sees all."""
    admin = await service.admin()
    made = await admin.create(role=principal_pb2.ROLE_WORKSPACE_ADMIN)
    team = service.as_owner(made.secret_key)
    own = made.api_key.workspace_id
    assert {one.workspace_id for one in (await team.audit()).entries} == {own}
    assert (await refused(team.audit(workspace_id="other"))).reason is Reason.PERMISSION_DENIED
    user = service.as_owner((await admin.create()).secret_key)
    for call in (user.audit(), user.exported()):
        assert (await refused(call)).reason is Reason.PERMISSION_DENIED
    operator = KeyOwner(service.as_service(ServiceName.OPERATOR))
    assert len((await operator.audit()).entries) == 3


async def test_an_export_is_the_list_the_other_way_round(service: AuthService, clock: FakeClock) -> None:
    """An export has all entries that were written before it, oldest first, with the same filters."""
    admin = await service.admin()
    for _ in range(3):
        clock.advance(1)
        await admin.create()
    clock.advance(1)
    listed = list((await admin.audit()).entries)
    assert list(await admin.exported()) == listed[::-1]
    assert [one.action for one in await admin.exported(action="installation.*")] == ["installation.bootstrap"]
    assert await admin.exported(actor="nobody") == ()


async def test_an_entry_is_of_its_change(database: Database, store: KeyStore) -> None:
    """An entry whose change did not happen is not there, and a change whose entry cannot be written does not happen."""
    key = ApiKey("key000000000", "w1", 1.0)
    assert await bootstrap(store, Workspace("w1", "default", "free", 1.0), key, SecretDigest(1, b"d" * 32))
    log = AuditStore(database)
    with pytest.raises(RuntimeError):
        async with database.writing() as connection:
            await audit.record(connection, entry("user.create", "u1"))
            raise RuntimeError("the change failed")
    assert [one.action for one in await log.entries(AuditQuery(), after=None, limit=10)] == ["installation.bootstrap"]
    (written,) = await log.entries(AuditQuery(), after=None, limit=10)
    with pytest.raises(sa.exc.IntegrityError):
        await store.insert_key(ApiKey("key000000001", "w1", 2.0), SecretDigest(1, b"e" * 32), written)
    assert await store.get_key("key000000001") is None


@pytest.mark.parametrize(
    "statement",
    [
        sa.update(audit_entries).values(actor="nobody"),
        sa.delete(audit_entries),
        sa.delete(audit_entries).where(audit_entries.c.actor == "service:test"),
    ],
)
async def test_entries_stay_as_they_are(database: Database, store: KeyStore, statement: Any) -> None:
    """The database refuses to change or to delete an entry, also for authsvc's own role."""
    key = ApiKey("key000000000", "w1", 1.0)
    assert await bootstrap(store, Workspace("w1", "default", "free", 1.0), key, SecretDigest(1, b"d" * 32))
    await revoke_key(database, key.key_id, 2.0)
    with pytest.raises(sa.exc.DBAPIError, match="never changed or deleted"):
        async with database.writing() as connection:
            await connection.execute(statement)
    if database.is_postgresql:
        with pytest.raises(sa.exc.DBAPIError, match="never changed or deleted"):
            async with database.writing() as connection:
                await connection.execute(sa.text("TRUNCATE audit_entries"))
    found = await AuditStore(database).entries(AuditQuery(), after=None, limit=10)
    assert {one.origin.actor for one in found} == {"service:test"}
    assert len(found) == 2
