"""The audit: who changed what, from where, and what it was before and after. An entry is written with the change it tells of.

A change records itself in its own transaction, or it does not happen:

    async with database.writing() as connection:
        await connection.execute(...)
        await audit.record(connection, entry)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc.records import ApiKey, Workspace
from authsvc.tables import audit_entries, micros
from naru.clock import Clock
from naru.context import RequestContext

ADDRESS_CHARACTERS_MAX = 64
"""As many as the table keeps."""
REVOKE_KEY = "api_key.revoke"
"""An action that ends a key, by itself or with what it belonged to."""
Facts = Mapping[str, Any]
"""An object as JSON shows it, without secrets."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who asks for a change and from where, as `naru.api.auth.v1.AuditEntry` documents it; what is not known is empty."""

    actor: str
    client_address: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One change, as `naru.api.auth.v1.AuditEntry` documents it. `time` in seconds since the Unix epoch."""

    entry_id: str
    time: float
    origin: Origin
    action: str
    object_id: str
    workspace_id: str = ""
    before: Facts | None = None
    after: Facts | None = None


class Auditor:
    """Makes the entries of the request that is being served.

    Args:
        origin: Tells who asks now.
        clock: Tells the time.
        new_id: Source of entry ids.
    """

    def __init__(self, *, origin: Callable[[], Origin], clock: Clock, new_id: Callable[[], str]) -> None:
        self._origin = origin
        self._clock = clock
        self._new_id = new_id

    def entry(
        self,
        action: str,
        object_id: str,
        *,
        workspace_id: str = "",
        before: Facts | None = None,
        after: Facts | None = None,
        actor: str = "",
        client_address: str | None = None,
    ) -> AuditEntry:
        """An entry for `record`.

        Args:
            action: Object and verb, such as "api_key.create".
            object_id: What it is done to.
            workspace_id: Whose administrators may see it; empty: only the installation's.
            before: The object as it was; None: there was none. Never with a secret, or a digest of one, in it.
            after: The object as it is now; None: there is none any more.
            actor: Who does it, where they prove it otherwise than by the credential of the request; empty: as that says.
            client_address: Where they are, where the request says it in a field, empty: it does not know; None: as its context
                says.
        """
        asked = self._origin()
        address = asked.client_address if client_address is None else client_address[:ADDRESS_CHARACTERS_MAX]
        origin = replace(asked, actor=actor or asked.actor, client_address=address)
        return AuditEntry(self._new_id(), self._clock.time(), origin, action, object_id, workspace_id, before, after)


async def record(connection: AsyncConnection, entry: AuditEntry) -> None:
    """Writes the entry in the transaction of the change."""
    values = {
        "entry_id": entry.entry_id,
        "time": micros(entry.time),
        **asdict(entry.origin),
        "action": entry.action,
        "object_id": entry.object_id,
        "workspace_id": entry.workspace_id,
        "before": entry.before,
        "after": entry.after,
    }
    await connection.execute(sa.insert(audit_entries).values(values))


def origin_of(request: RequestContext | None) -> Origin:
    """Who asks by a request of ours; not known yet while that is found out, which is before there is a context."""
    if request is None:
        return Origin("")
    principal, service = request.caller.principal, request.caller.service
    if principal is None:
        actor = f"service:{service}"
    else:
        actor = f"key:{principal.key_id}" if principal.key_id else f"user:{principal.user_id}"
    return Origin(actor, request.client_address, request.request_id)


def key_entry(auditor: Auditor, action: str, before: ApiKey, after: ApiKey) -> AuditEntry:
    """A key that is something else now."""
    return auditor.entry(
        action, after.key_id, workspace_id=after.workspace_id, before=key_facts(before), after=key_facts(after)
    )


def key_facts(key: ApiKey) -> Facts:
    """A key, which as a record has no secret. When it was used is no change."""
    facts = asdict(key)
    del facts["last_used_time"]
    return facts


def workspace_facts(workspace: Workspace) -> Facts:
    """A workspace."""
    return asdict(workspace)
