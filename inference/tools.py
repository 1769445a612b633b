"""What generations work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from opentelemetry.trace import Span

from inference.admission import Leases, Reservations
from inference.engine import Engine
from inference.journal import Journal
from inference.metrics import InferenceMetrics
from inference.turns import Turns
from naru.clock import Clock
from naru.errors import NaruError
from naru.logs import Logger

StartSpan = Callable[[str, str, Mapping[str, str | int]], Span]
"""Begins a span: its name, the W3C traceparent of the caller's span or "", its attributes."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What generations work with.

    Attributes:
        internal_error: Logs a fault of ours and returns what the caller is told; it takes the fault and where it was.
        replica: This replica's name in usage events.
        epoch: This run of the engine in usage events.
        abort_patience: Seconds the engine gets to report what it had generated of a cancelled request.
    """

    engine: Engine
    journal: Journal
    leases: Leases
    reservations: Reservations
    turns: Turns
    clock: Clock
    logger: Logger
    metrics: InferenceMetrics
    start_span: StartSpan
    internal_error: Callable[[BaseException, str], NaruError]
    replica: str
    epoch: str
    abort_patience: float = 10.0
