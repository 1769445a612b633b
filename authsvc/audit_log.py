"""Who may read what of the audit, page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import astuple, replace

from authsvc.audit import AuditEntry
from authsvc.audit_store import AuditPosition, AuditQuery, AuditStore
from authsvc.checks import NAME_CHARACTERS_MAX, check_text
from authsvc.tables import micros
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Principal, Role
from naru.paging import page_size, read_token, write_token

_EXPORTED_AT_ONCE = 500


class AuditLog:
    """Answers questions about the audit.

    A workspace's administrator sees what was done in its workspace, the installation's administrator and the operator all.
    """

    def __init__(self, store: AuditStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def page(
        self, caller: Principal | None, query: AuditQuery, *, size: int, token: str, method: str
    ) -> tuple[list[AuditEntry], str]:
        """One page, newest first, and the token of the next; empty: it was the last.

        Raises NaruError INVALID_ARGUMENT naming the field, or PERMISSION_DENIED for somebody else's workspace.
        """
        query = _visible(caller, query, method)
        limit, filters = page_size(size), astuple(query)
        found = await self._store.entries(query, after=_position(filters, token), limit=limit + 1)
        page = found[:limit]
        return page, write_token(filters, _place(page[-1])) if len(found) > limit else ""

    async def export(
        self, caller: Principal | None, query: AuditQuery, *, method: str
    ) -> AsyncGenerator[list[AuditEntry], None]:
        """All entries written before now, oldest first, some hundred at a time. Raises NaruError as `page`."""
        query = _visible(caller, query, method)
        now = micros(self._clock.time())
        query = replace(query, end_time=now if query.end_time is None else min(query.end_time, now))
        after = None
        while True:
            found = await self._store.entries(query, after=after, limit=_EXPORTED_AT_ONCE, oldest_first=True)
            yield found
            if len(found) < _EXPORTED_AT_ONCE:
                return
            after = AuditPosition(micros(found[-1].time), found[-1].entry_id)


def _visible(caller: Principal | None, query: AuditQuery, method: str) -> AuditQuery:
    """The query, narrowed to what the caller may see."""
    for name in ("actor", "action", "object_id", "workspace_id"):
        check_text(name, getattr(query, name), NAME_CHARACTERS_MAX)
    if caller is None or caller.role is Role.ADMIN:
        return query
    if caller.role is not Role.WORKSPACE_ADMIN or query.workspace_id not in ("", caller.workspace_id):
        raise NaruError(
            Reason.PERMISSION_DENIED, "You may not see the audit of this workspace.", metadata={"method": method}
        )
    return replace(query, workspace_id=caller.workspace_id)


def _place(entry: AuditEntry) -> tuple[int, str]:
    return micros(entry.time), entry.entry_id


def _position(filters: tuple[object, ...], token: str) -> AuditPosition | None:
    found = read_token(filters, token, (int, str))
    return None if found is None else AuditPosition(int(found[0]), str(found[1]))
