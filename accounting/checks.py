"""What is allowed in requests, pure. Raises NaruError INVALID_ARGUMENT that names the field."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

from accounting.quota import MAX_ATTEMPT, MAX_TOKENS, EventRef
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Principal, ServiceName
from naru.ids import is_uuid
from naru.usage import Evidence

MAX_ID = 64
MAX_MODEL = 512
MAX_ENDPOINT = 128
MAX_REQUEST_ID = 128
MAX_FINISH_REASON = 32
_REPORTERS = {
    Evidence.ACCEPTED: ServiceName.INFERENCE,
    Evidence.FINAL: ServiceName.INFERENCE,
    Evidence.DELIVERED: ServiceName.EDGE,
}


def event_ref(event_id: str, attempt: int) -> EventRef:
    """Which attempt of which event this is."""
    if not is_uuid(event_id):
        raise invalid_argument("event_id", "event_id must be a UUID in its canonical form.")
    if not 0 <= attempt <= MAX_ATTEMPT:
        raise invalid_argument("attempt", f"attempt must be from 0 to {MAX_ATTEMPT}.")
    return EventRef(event_id, attempt)


def principal(given: Principal) -> Principal:
    """A principal that somebody can be billed by."""
    if not given.workspace_id:
        raise invalid_argument("principal.workspace_id", "principal.workspace_id must be set.")
    for name, value in (
        ("workspace_id", given.workspace_id),
        ("key_id", given.key_id),
        ("user_id", given.user_id),
        ("service_account", given.service_account),
        ("tier", given.tier),
    ):
        if len(value) > MAX_ID or "\0" in value:
            text(f"principal.{name}", value)
    return given


def text(field: str, value: str, most: int = MAX_ID) -> str:
    """A text that every store takes."""
    if len(value) > most or "\0" in value:
        raise invalid_argument(field, f"{field} must have at most {most} characters, none of them NUL.")
    return value


def clipped(value: str, most: int) -> str:
    """As much of a description as is kept. What a client called a model must not keep its usage from being counted."""
    return value.replace("\0", "")[:most]


@lru_cache(maxsize=4_096)
def address(value: str) -> str:
    """An IP address in its one form; empty for what is none: nobody is refused for where they seem to come from."""
    try:
        return str(ipaddress.ip_address(value)) if value else ""
    except ValueError:
        return ""


def choices(value: int) -> int:
    """A number of choices; 1 where none is given."""
    if value < 0:
        raise invalid_argument("choices", "choices must be at least 0.")
    return value or 1


def tokens(field: str, value: int) -> int:
    """A number of tokens."""
    if not 0 <= value <= MAX_TOKENS:
        raise invalid_argument(field, f"{field} must be from 0 to {MAX_TOKENS}.")
    return value


def reporter(evidence: Evidence, service: ServiceName | None) -> None:
    """Raises NaruError PERMISSION_DENIED unless the service can know what it claims."""
    if _REPORTERS.get(evidence) is not service:
        raise NaruError(
            Reason.PERMISSION_DENIED,
            f"{service or 'This caller'} cannot report this evidence.",
            metadata={"method": "/naru.api.accounting.v1.UsageService/RecordUsage"},
        )


def batch(field: str, count: int, most: int) -> None:
    """Raises unless a request has at most `most` items."""
    if count > most:
        raise invalid_argument(field, f"{field} must have at most {most} items, not {count}.")
