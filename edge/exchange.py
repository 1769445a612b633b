"""What the edge knows of one HTTP request while it answers it."""

from __future__ import annotations

from dataclasses import dataclass, field

from aiohttp import web

from edge.dialect import OPENAI, Dialect
from edge.ports import Progress
from naru.errors import Reason
from naru.identity import Principal


@dataclass(slots=True)
class Exchange:
    """Filled in as the request goes on; read by headers, log, metrics and the request log.

    Attributes:
        endpoint: The canonical path, such as "/v1/chat/completions", whichever alias was called.
        api: Whether it belongs in the request log.
        dialect: The API whose client asks.
        credential: What the principal is known by; a secret.
        started: Monotonic seconds.
        start_time: Seconds since the Unix epoch.
        auth_seconds: Time it took to know who asks.
        first_byte: Seconds from the start to the first byte of the body; 0 when there was none.
        status: HTTP status; 499 when the client went away before any.
    """

    request_id: str
    endpoint: str
    api: bool
    started: float
    start_time: float
    client_address: str = ""
    dialect: Dialect = OPENAI
    credential: str = field(default="", repr=False)
    principal: Principal | None = None
    requested_model: str = ""
    stream: bool = False
    progress: Progress = field(default_factory=Progress)
    auth_seconds: float = 0.0
    first_byte: float = 0.0
    request_bytes: int = 0
    response_bytes: int = 0
    status: int = 0
    reason: Reason | None = None
    trace_id: str = ""


EXCHANGE = web.RequestKey("exchange", Exchange)
