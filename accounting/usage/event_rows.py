"""Usage events as rows of their table, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sqlalchemy as sa

from accounting.ledger.ledger import Attempt
from accounting.quota import EventRef
from accounting.settlement import BookedEvent, Exact, StoredEvent
from accounting.usage.counting import HOUR_MICROS, Bucket, Figures, Share
from naru.usage import Evidence, Usage

_FIGURES: dict[str, Callable[[BookedEvent], Any]] = {
    "evidence": lambda one: one.event.evidence.value,
    "accuracy": lambda one: one.event.accuracy.value,
    "outcome": lambda one: one.event.outcome.value,
    "key_id": lambda one: one.event.work.principal.key_id,
    "user_id": lambda one: one.event.work.principal.user_id,
    "service_account": lambda one: one.event.work.principal.service_account,
    "workspace_id": lambda one: one.event.work.principal.workspace_id,
    "tier": lambda one: one.event.work.principal.tier,
    "requested_model": lambda one: one.event.work.requested_model,
    "served_model": lambda one: one.event.work.served_model,
    "endpoint": lambda one: one.event.work.endpoint,
    "prompt_tokens": lambda one: one.event.usage.prompt_tokens,
    "completion_tokens": lambda one: one.event.usage.completion_tokens,
    "cached_prompt_tokens": lambda one: one.event.usage.cached_prompt_tokens,
    "reasoning_tokens": lambda one: one.event.usage.reasoning_tokens,
    "accept_time": lambda one: one.event.accept_time,
    "end_time": lambda one: one.event.end_time,
    "request_id": lambda one: one.event.work.request_id,
    "replica": lambda one: one.event.replica,
    "epoch": lambda one: one.event.epoch,
    "cost": lambda one: one.cost,
    "price_id": lambda one: one.price_id,
}
_OUTBOX: dict[str, Callable[[Exact], Any]] = {
    "event_id": lambda one: one.ref.event_id,
    "attempt": lambda one: one.ref.attempt,
    "evidence": lambda one: one.evidence.value,
    "prompt_tokens": lambda one: one.usage.prompt_tokens,
    "completion_tokens": lambda one: one.usage.completion_tokens,
    "cost": lambda one: one.cost,
}
EVENT_COLUMNS = ("event_id", "attempt", "reserve_time", "record_time", "settled_time", *_FIGURES)
OUTBOX_COLUMNS = (*_OUTBOX, "create_time")


def figures(booked: BookedEvent) -> dict[str, Any]:
    """Whatever better evidence replaces."""
    return {name: read(booked) for name, read in _FIGURES.items()}


def event_columns(events: Sequence[BookedEvent], now: int, settled: Sequence[bool]) -> dict[str, Sequence[Any]]:
    """The values of each of `EVENT_COLUMNS`, for events that are new and may count at once."""
    return {
        "event_id": [one.event.ref.event_id for one in events],
        "attempt": [one.event.ref.attempt for one in events],
        "reserve_time": [one.reserve_time for one in events],
        "record_time": [now] * len(events),
        "settled_time": [now if one else None for one in settled],
        **{name: [read(one) for one in events] for name, read in _FIGURES.items()},
    }


def outbox_columns(settled: Sequence[Exact], now: int) -> dict[str, Sequence[Any]]:
    """The values of each of `OUTBOX_COLUMNS`."""
    columns: dict[str, Sequence[Any]] = {name: [read(one) for one in settled] for name, read in _OUTBOX.items()}
    return {**columns, "create_time": [now] * len(settled)}


def reference_columns(told: Sequence[Exact]) -> dict[str, Sequence[Any]]:
    """The values of the columns of the outbox that tell which evidence of which attempt a row is about."""
    return {name: [_OUTBOX[name](one) for one in told] for name in ("event_id", "attempt", "evidence")}


def stored_event(row: sa.Row[Any]) -> StoredEvent:
    """What is kept of an event."""
    usage = Usage(row.prompt_tokens, row.completion_tokens, row.cached_prompt_tokens, row.reasoning_tokens)
    return StoredEvent(Evidence(row.evidence), usage, row.cost, row.reserve_time, row.settled_time)


def exact(row: sa.Row[Any]) -> Exact:
    """What an event, or a row of the outbox, counts with."""
    usage = Usage(row.prompt_tokens, row.completion_tokens)
    return Exact(EventRef(row.event_id, row.attempt), Evidence(row.evidence), usage, row.cost)


def settled_attempt(booked: BookedEvent) -> Attempt:
    """An event that counts, as the ledger sees it."""
    event = booked.event
    return Attempt(
        event.ref, event.work.principal.workspace_id, event.evidence.value, booked.cost, booked.reserve_time, True
    )


def share(booked: BookedEvent, *, settled: bool) -> Share:
    """What an event adds to sums."""
    event = booked.event
    work, usage = event.work, event.usage
    who = work.principal
    return Share(
        event.ref,
        settled,
        Bucket(
            booked.reserve_time // HOUR_MICROS,
            who.workspace_id,
            who.key_id,
            who.user_id,
            who.service_account,
            work.served_model,
            work.endpoint,
        ),
        Figures(
            1,
            int(booked.price_id == ""),
            booked.cost,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_prompt_tokens,
            usage.reasoning_tokens,
        ),
    )


def stored_share(row: sa.Row[Any]) -> Share:
    """What a row of an event adds to sums."""
    return Share(
        EventRef(row.event_id, row.attempt),
        row.settled_time is not None,
        Bucket(
            row.reserve_time // HOUR_MICROS,
            row.workspace_id,
            row.key_id,
            row.user_id,
            row.service_account,
            row.served_model,
            row.endpoint,
        ),
        Figures(
            1,
            int(row.price_id == ""),
            row.cost,
            row.prompt_tokens,
            row.completion_tokens,
            row.cached_prompt_tokens,
            row.reasoning_tokens,
        ),
    )
