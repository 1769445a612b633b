"""How the limiter's script is told of reservations, and what it remembers of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from accounting.idempotency import name_of
from accounting.quota import EventRef, Limit, LimitWindow, Reservation, Work
from naru.identity import Principal, Role


class _WireLimit(msgspec.Struct, omit_defaults=True):
    scope: str
    scope_id: str
    kind: str
    window: str
    limit: float
    exact: str | None = None
    model: str = ""
    shadow: bool = False
    soft_thresholds: tuple[int, ...] = ()
    credit: bool = False


class WireReservation(msgspec.Struct, omit_defaults=True):
    """A reservation as the script reads it; `limits` by their numbers in a table; `since` when it is to have been made before."""

    event: str
    attempt: int
    revision: int
    input: int
    output: int
    cost: int
    about: str
    limits: list[int]
    idempotency: dict[str, str] | None = None
    since: int | None = None
    spares: tuple[str, ...] | None = None


class LimitTable:
    """The limits of one call, each once, by the numbers (from 1) that its items name them by."""

    def __init__(self) -> None:
        # By identity: equal ones are rarely two, and do no harm, while comparing would cost more than all else here.
        self._numbers: dict[int, int] = {}
        self.encoded: list[_WireLimit] = []

    def numbers(self, limits: Iterable[Limit]) -> list[int]:
        """The numbers of these limits, which the caller keeps for as long as the table."""
        return [self._numbers.get(id(limit)) or self._add(limit) for limit in limits]

    def _add(self, limit: Limit) -> int:
        total = limit.window is LimitWindow.TOTAL
        self.encoded.append(
            _WireLimit(
                limit.scope,
                limit.scope_id,
                limit.kind,
                limit.window,
                limit.limit if not total else float(limit.limit),
                # More than the script's numbers may hold.
                str(limit.limit) if total else None,
                limit.model,
                limit.shadow,
                limit.soft_thresholds,
                limit.credit,
            )
        )
        self._numbers[id(limit)] = len(self.encoded)
        return len(self.encoded)


def encode_reservation(reservation: Reservation, limits: list[int], since: int | None = None) -> WireReservation:
    """A reservation with the numbers of its limits."""
    return WireReservation(
        reservation.ref.event_id,
        reservation.ref.attempt,
        reservation.revision,
        reservation.input_tokens,
        reservation.output_tokens,
        reservation.cost,
        _encode_work(reservation.work),
        limits,
        _encode_idempotency(reservation),
        since,
        reservation.spares or None,
    )


def _encode_idempotency(reservation: Reservation) -> dict[str, str] | None:
    given = reservation.idempotency
    if given is None:
        return None
    return {"name": name_of(reservation.work.principal, given.key), "digest": given.digest.hex()}


def encode_refs(refs: Sequence[EventRef]) -> list[dict[str, Any]]:
    """Attempts as the script reads them."""
    return [{"event": ref.event_id, "attempt": ref.attempt} for ref in refs]


def decode_ref(text: str) -> EventRef:
    """The attempt that the script names."""
    event_id, _, attempt = text.rpartition(":")
    return EventRef(event_id, int(attempt))


def amounts_held(reservation: bytes | None) -> dict[str, int]:
    """What a reservation, as the script wrote it, holds of each place that counts amounts; nothing if there is none."""
    if reservation is None:
        return {}
    # By `entry_of` of `quota_places.lua`.
    return {entry[0]: int(entry[2]) for entry in msgspec.msgpack.decode(reservation[1:])["held"] if len(entry) > 1}


def _encode_work(work: Work) -> str:
    who = work.principal
    principal = [who.workspace_id, who.role, who.tier, who.key_id, who.user_id, who.service_account]
    described = [principal, work.requested_model, work.served_model, work.endpoint, work.request_id]
    return msgspec.json.encode(described).decode()


def decode_work(text: str) -> Work:
    """The work that a reservation remembers."""
    principal, requested_model, served_model, endpoint, request_id = msgspec.json.decode(text)
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
