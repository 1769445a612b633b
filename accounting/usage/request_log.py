"""The request log, pure: what is kept of every HTTP request, and what can be asked of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import msgspec

from naru.errors import invalid_argument
from naru.identity import Principal
from naru.usage import Accuracy, Outcome, Usage

_TRACE_ID = re.compile("[0-9a-f]{32}")


class RequestRecord(msgspec.Struct, frozen=True):
    """What the edge saw of one HTTP request. Times and spans in microseconds, sizes in bytes."""

    request_id: str
    start_time: int
    event_id: str
    principal: Principal | None
    endpoint: str
    requested_model: str
    status: int
    reason: str
    duration_us: int
    first_byte_us: int
    request_bytes: int
    response_bytes: int
    stream: bool
    trace_id: str
    finish_reason: str = ""


@dataclass(frozen=True, slots=True)
class RequestQuery:
    """Which requests to list. Empty texts, 0 and None do not narrow; times are microseconds since the Unix epoch.

    Attributes:
        model: As the caller named it or as it was served.
        status_class: The first digit of the status.
    """

    key_id: str = ""
    user_id: str = ""
    workspace_id: str = ""
    model: str = ""
    endpoint: str = ""
    status: int = 0
    status_class: int = 0
    start_time: int | None = None
    end_time: int | None = None
    request_id: str = ""
    trace_id: str = ""

    def check(self) -> None:
        """Raises NaruError INVALID_ARGUMENT, naming the field, for a filter that no request can pass."""
        if self.status and not 100 <= self.status <= 599:
            raise invalid_argument("status", "status must be from 100 to 599.")
        if not 0 <= self.status_class <= 5:
            raise invalid_argument("status_class", "status_class must be from 1 to 5.")
        if self.status and self.status_class:
            raise invalid_argument("status_class", "Give either status or status_class.")
        if self.trace_id and _TRACE_ID.fullmatch(self.trace_id) is None:
            raise invalid_argument("trace_id", "trace_id must be 32 hexadecimal digits, letters in lower case.")
        if self.start_time is not None and self.end_time is not None and self.end_time <= self.start_time:
            raise invalid_argument("end_time", "end_time must be after start_time.")


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """What a request used, once that is settled. `cost` is in nano-units."""

    served_model: str
    usage: Usage
    cost: int
    outcome: Outcome
    accuracy: Accuracy


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """A line of the request log; `usage` None: nothing was used, or it is not settled yet."""

    record: RequestRecord
    usage: RequestUsage | None
