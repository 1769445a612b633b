"""What the managers of tiers, budgets and prices share, pure."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Caller
from naru.ids import is_uuid
from naru.paging import Position, write_token

MICROS = 1_000_000
Refresh = Callable[[], Awaitable[None]]
"""Brings a change into force on this process; raises NaruError SERVICE_UNAVAILABLE."""

# Ids of what was made by a request with an id of its own are derived below this.
_REQUESTS = uuid.UUID("6f1b5a0e-52a6-4d0f-9f0c-0d2b8f1f7c11")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Row]):
    """Rows of a list, and where the next page begins; an empty token: this was the last."""

    rows: tuple[Row, ...]
    next_page_token: str


def page_of(rows: list[Row], size: int, filters: tuple[object, ...], position: Callable[[Row], Position]) -> Page[Row]:
    """The page of `size` rows, given one more where there is one."""
    token = write_token(filters, position(rows[size - 1])) if len(rows) > size else ""
    return Page(tuple(rows[:size]), token)


def check_request_id(request_id: str) -> None:
    """Raises NaruError INVALID_ARGUMENT unless it is empty or a UUID."""
    if request_id and not is_uuid(request_id):
        raise invalid_argument("request_id", "request_id must be a UUID in lower case, or empty.")


def check_id(field: str, value: str) -> None:
    """Raises NaruError INVALID_ARGUMENT unless it is a UUID."""
    if not is_uuid(value):
        raise invalid_argument(field, f"{field} must be a UUID in lower case.")


def requested_id(resource: str, caller: Caller, request_id: str, new_id: Callable[[], str]) -> str:
    """The id of what a request makes: the same for the same request of the same caller, else a new one."""
    if not request_id:
        return new_id()
    return str(uuid.uuid5(_REQUESTS, f"{resource} {caller_name(caller)} {request_id}"))


def caller_name(caller: Caller) -> str:
    """Who it is, such as "key:x7Gq01abcdEF"."""
    principal = caller.principal
    if principal is None:
        return f"service:{caller.service}"
    return f"key:{principal.key_id}" if principal.key_id else f"user:{principal.user_id}"


def already_exists(resource: str, name: str, message: str) -> NaruError:
    """The error for making something else under an id or a name that is taken."""
    return NaruError(Reason.ALREADY_EXISTS, message, metadata={"resource": resource, "name": name})


def failed_precondition(resource: str, name: str, message: str) -> NaruError:
    """The error for what its state forbids."""
    return NaruError(Reason.FAILED_PRECONDITION, message, metadata={"resource": resource, "name": name})


def other_request(resource: str, request_id: str) -> NaruError:
    """The error for a request id that comes again with another body."""
    return already_exists(resource, request_id, f"This request_id was used before for another {resource}.")
