"""Putting keys into authsvc's store and ending them, with an entry of the audit each."""

from __future__ import annotations

from dataclasses import replace

from authsvc.audit import AuditEntry, Auditor, Origin
from authsvc.key_store import KeyChanges
from authsvc.keys import SecretDigest
from authsvc.people_audit import PeopleAudit
from authsvc.records import ApiKey, RequestMark, Workspace
from authsvc.store import KeyStore
from naru.clock import Clock
from naru.database import Database
from naru.ids import uuid7


def entry(action: str = "api_key.create", object_id: str = "", time: float = 1.0) -> AuditEntry:
    """An entry by a test."""
    return AuditEntry(uuid7(), time, Origin("service:test"), action, object_id)


def told(*_: object) -> AuditEntry:
    """An entry about whatever it is."""
    return entry("user.update")


def people_audit(clock: Clock) -> PeopleAudit:
    """Entries about people, by a test."""
    return PeopleAudit(Auditor(origin=lambda: Origin("service:test"), clock=clock, new_id=uuid7))


async def bootstrap(store: KeyStore, workspace: Workspace, key: ApiKey, digest: SecretDigest) -> bool:
    """The first workspace and its key."""
    return await store.bootstrap(workspace, key, digest, entry("installation.bootstrap"))


async def insert_key(
    store: KeyStore, key: ApiKey, digest: SecretDigest, mark: RequestMark | None = None
) -> tuple[ApiKey, bool]:
    """One more key."""
    return await store.insert_key(key, digest, entry(), mark)


async def revoke_key(database: Database, key_id: str, time: float) -> tuple[ApiKey, int | None]:
    """Ends a key that is not revoked."""

    def change(key: ApiKey) -> ApiKey:
        return key if key.revoke_time is not None else replace(key, revoke_time=time)

    return await KeyChanges(database).change(key_id, change, lambda *_: entry("api_key.revoke", key_id), time)
