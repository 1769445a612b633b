"""The context in which a generation's own tasks run, whoever began it."""

from __future__ import annotations

import re
from contextvars import Context

from opentelemetry import context as otel_context
from opentelemetry.trace import Span, set_span_in_context

from inference.events import GenerationOrder
from naru import context
from naru.identity import Caller

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def context_of(order: GenerationOrder, span: Span) -> Context:
    """A context with the request's id and span, and without the deadline of the call it came by.

    A session's call carries many requests, and what a direct call began must be put in order when its time is over.
    """
    fresh = Context()
    fresh.run(_enter, order, span)
    return fresh


def trace_of(order: GenerationOrder) -> dict[str, str]:
    """The fields by which log lines name the request's trace; none without one."""
    found = _TRACEPARENT.fullmatch(order.traceparent)
    return {"trace_id": found[1]} if found else {}


def _enter(order: GenerationOrder, span: Span) -> None:
    context.enter(
        context.RequestContext(
            request_id=order.request_id,
            caller=Caller(principal=order.principal),
            method=order.endpoint,
            traceparent=order.traceparent,
        )
    )
    otel_context.attach(set_span_in_context(span))
