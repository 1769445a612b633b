"""Questions about usage, pure: what is asked, who may see what, and where a page begins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from accounting.quota import EventRef, Work
from accounting.usage.request_log import RequestQuery
from naru.errors import NaruError, Reason
from naru.identity import Caller, Role
from naru.paging import read_token
from naru.usage import Accuracy, Outcome, Usage


class Dimension(StrEnum):
    """What usage can be grouped by; days and hours are those of UTC."""

    KEY = "key"
    MODEL = "model"
    DAY = "day"
    WORKSPACE = "workspace"
    USER = "user"
    ENDPOINT = "endpoint"
    HOUR = "hour"
    SERVICE_ACCOUNT = "service_account"

    @property
    def is_time(self) -> bool:
        """Whether its values are numbers of days or hours since the Unix epoch; those of all others are texts."""
        return self in (Dimension.DAY, Dimension.HOUR)


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which settled usage to sum. Empty texts and None do not narrow; times are microseconds since the Unix epoch."""

    group_by: tuple[Dimension, ...] = ()
    start_time: int | None = None
    end_time: int | None = None
    key_id: str = ""
    user_id: str = ""
    model: str = ""
    workspace_id: str = ""
    endpoint: str = ""


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One row of an answer: a value for each dimension asked for (times as numbers since the Unix epoch), and sums.

    Attributes:
        cost: In nano-units.
        unpriced_requests: How many of the requests cost nothing because nobody had set a price.
    """

    group: tuple[str | int, ...]
    requests: int
    usage: Usage
    cost: int = 0
    unpriced_requests: int = 0


@dataclass(frozen=True, slots=True)
class UsageRecord:
    """One attempt that counts. Times are microseconds since the Unix epoch, `cost` is in nano-units."""

    ref: EventRef
    reserve_time: int
    end_time: int | None
    work: Work
    outcome: Outcome
    accuracy: Accuracy
    usage: Usage
    cost: int
    price_id: str


Asked = TypeVar("Asked", UsageQuery, RequestQuery)


def visible(query: Asked, caller: Caller, method: str) -> Asked:
    """The query, narrowed to what the caller may see. Raises NaruError PERMISSION_DENIED when it asks for more."""
    principal = caller.principal
    if principal is None or principal.role is Role.ADMIN:
        return query
    if query.workspace_id not in ("", principal.workspace_id):
        raise _denied(method)
    query = replace(query, workspace_id=principal.workspace_id)
    if principal.role is Role.WORKSPACE_ADMIN:
        return query
    if query.key_id not in ("", principal.key_id) or query.user_id not in ("", principal.user_id):
        raise _denied(method)
    if principal.key_id:
        return replace(query, key_id=principal.key_id)
    if principal.user_id:
        return replace(query, user_id=principal.user_id)
    raise _denied(method)


def page_position(query: UsageQuery, token: str) -> tuple[str | int, ...] | None:
    """The row after which the page begins; None for the first page.

    Raises NaruError INVALID_ARGUMENT for a token of another query, or none of ours.
    """
    return read_token((query,), token, [int if dimension.is_time else str for dimension in query.group_by])


def _denied(method: str) -> NaruError:
    return NaruError(Reason.PERMISSION_DENIED, "You may not see this usage.", metadata={"method": method})
