"""Spans that continue a caller's trace."""

from __future__ import annotations

import grpc
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, ParentBased, Sampler

from naru.tracing import Tracing, traceparent_of

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("sampler", "flags", "recording"),
    [
        (ParentBased(ALWAYS_ON), "00", False),
        (ParentBased(ALWAYS_ON), "02", False),
        (ParentBased(ALWAYS_OFF), "01", True),
        (ParentBased(ALWAYS_OFF), "03", True),
        (ALWAYS_ON, "00", True),
        (ALWAYS_OFF, "01", False),
    ],
)
def test_a_span_is_recorded_as_its_sampler_says(sampler: Sampler, flags: str, *, recording: bool) -> None:
    """A sampler that follows its callers records what they do; whichever decides, the trace goes on."""
    tracing = Tracing(TracerProvider(sampler=sampler))
    span = tracing.start_span("x", f"00-{TRACE_ID}-{SPAN_ID}-{flags}")
    assert span.is_recording() is recording
    version, trace_id, span_id, sampled = traceparent_of(span).split("-")
    assert (version, trace_id) == ("00", TRACE_ID)
    assert len(span_id) == len(SPAN_ID)
    assert bool(int(sampled, 16) & 1) is recording
    span.end()
    tracing.close()


@pytest.mark.parametrize(
    "traceparent",
    [
        "",
        "x",
        f"00-{TRACE_ID}-{SPAN_ID}",
        f"00-{'0' * 32}-{SPAN_ID}-00",
        f"ff-{TRACE_ID}-{SPAN_ID}-00",
        f"00-{TRACE_ID}-00",
    ],
)
def test_what_is_no_traceparent_begins_a_trace(traceparent: str) -> None:
    """A malformed one is ignored (W3C Trace Context, 3.2)."""
    tracing = Tracing(TracerProvider(sampler=ParentBased(ALWAYS_ON)))
    span = tracing.start_span("x", traceparent)
    assert span.is_recording()
    assert TRACE_ID not in traceparent_of(span)
    span.end()
    tracing.close()


def test_without_a_provider_there_is_no_trace() -> None:
    """Spans are no-ops, and nothing is carried on."""
    assert traceparent_of(Tracing().start_span("x")) == ""


def test_calls_carry_the_trace_and_sessions_are_left_alone() -> None:
    """Messages of sessions name their traces themselves, and an interceptor would cost each of them two tasks."""
    tracing = Tracing(TracerProvider())
    kinds = tracing.client_interceptors()
    assert any(isinstance(one, grpc.aio.UnaryUnaryClientInterceptor) for one in kinds)
    assert not any(isinstance(one, grpc.aio.StreamStreamClientInterceptor) for one in kinds)
    tracing.close()
