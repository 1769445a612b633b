"""The context in which a generation's own tasks run, whoever began it."""

from __future__ import annotations

from contextvars import Context

from opentelemetry import context as otel_context
from opentelemetry.trace import Span, set_span_in_context

from inference.events import GenerationOrder
from naru import context
from naru.identity import Caller


def context_of(order: GenerationOrder, span: Span) -> Context:
    """A context with the request's id and span, and without the deadline of the call it came by.

    A session's call carries many requests, and what a direct call began must be put in order when its time is over.
    """
    fresh = Context()
    fresh.run(_enter, order, span)
    return fresh


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
