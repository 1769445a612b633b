"""How the limiter's script is told of reservations, and what it remembers of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from accounting.idempotency import name_of
from accounting.quota import EventRef, Limit, LimitWindow, Reservation, Work
from naru.identity import Principal, Role


def encode_idempotency(reservation: Reservation) -> dict[str, Any]:
    """What the script is told of a reservation's key, if it has one."""
    given = reservation.idempotency
    if given is None:
        return {}
    name = name_of(reservation.work.principal, given.key)
    return {"idempotency": {"name": name, "digest": given.digest.hex()}}


def encode_limit(limit: Limit) -> dict[str, Any]:
    """A limit as the script reads it."""
    encoded = asdict(limit)
    if limit.window is LimitWindow.TOTAL:  # more than the script's numbers may hold
        encoded["exact"] = str(limit.limit)
    return encoded


def encode_refs(refs: Sequence[EventRef]) -> list[dict[str, Any]]:
    """Attempts as the script reads them."""
    return [{"event": ref.event_id, "attempt": ref.attempt} for ref in refs]


def decode_ref(text: str) -> EventRef:
    """The attempt that the script names."""
    event_id, _, attempt = text.rpartition(":")
    return EventRef(event_id, int(attempt))


def encode_work(work: Work) -> str:
    """What a reservation remembers of its work."""
    who = work.principal
    principal = [who.workspace_id, who.role, who.tier, who.key_id, who.user_id, who.service_account]
    return json.dumps([principal, work.requested_model, work.served_model, work.endpoint, work.request_id])


def decode_work(text: str) -> Work:
    """The work that a reservation remembers."""
    principal, requested_model, served_model, endpoint, request_id = json.loads(text)
    workspace_id, role, tier, key_id, user_id, service_account = principal
    return Work(
        Principal(
            workspace_id=workspace_id,
            role=Role(role),
            tier=tier,
            key_id=key_id,
            user_id=user_id,
            service_account=service_account,
        ),
        requested_model,
        served_model,
        endpoint,
        request_id,
    )
