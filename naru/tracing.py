"""OpenTelemetry traces, on when `OTEL_EXPORTER_OTLP_ENDPOINT` is set.

The session RPCs are left out of gRPC's instrumentation: they live as long as the process, so each request's span starts from
the `traceparent` that its message carries.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_client_interceptors, aio_server_interceptor, filters
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_UNTRACED = filters.negate(
    filters.any_of(
        filters.method_name("GenerateSession"),
        filters.method_name("ReserveSession"),
        filters.method_name("WatchInvalidations"),
        filters.service_name("grpc.health.v1.Health"),
        filters.service_prefix("grpc.reflection"),
    )
)
_PROPAGATOR = TraceContextTextMapPropagator()
_UNSAMPLED = re.compile("00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f][02468ace])")
"""A `traceparent` that says that its trace is not sampled: the last bit of its flags (W3C Trace Context, 3.2.2.5)."""


class Tracing:
    """A process's tracer. Without a provider every span is a no-op and nothing is instrumented."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._follows_parents = provider is not None and isinstance(provider.sampler, ParentBased)
        self.tracer: trace.Tracer = (provider or trace.NoOpTracerProvider()).get_tracer("naru")

    @classmethod
    def from_environment(cls, service: str) -> Tracing:
        """Exports by OTLP over gRPC when `OTEL_EXPORTER_OTLP_ENDPOINT` (or `..._TRACES_ENDPOINT`) is set."""
        if not (os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") or os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")):
            return cls()
        provider = TracerProvider(resource=Resource.create({"service.name": f"naru-{service}"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=500))
        return cls(provider)

    @property
    def enabled(self) -> bool:
        """Whether spans go anywhere."""
        return self._provider is not None

    @property
    def provider(self) -> TracerProvider | None:
        """For instrumentation that asks for one."""
        return self._provider

    def server_interceptors(self) -> list[grpc.aio.ServerInterceptor]:
        """What a gRPC server needs to continue its callers' traces."""
        if self._provider is None:
            return []
        interceptor: grpc.aio.ServerInterceptor = aio_server_interceptor(  # type: ignore[no-untyped-call] # not typed
            tracer_provider=self._provider, filter_=_UNTRACED
        )
        return [interceptor]

    def client_interceptors(self) -> list[grpc.aio.ClientInterceptor]:
        """What a channel needs to carry the trace to the services it calls."""
        if self._provider is None:
            return []
        interceptors: list[grpc.aio.ClientInterceptor] = aio_client_interceptors(  # type: ignore[no-untyped-call] # not typed
            tracer_provider=self._provider, filter_=_UNTRACED
        )
        # The messages of sessions name their traces themselves. An interceptor, even one that looks at none of them, has each
        # written through a queue and two tasks.
        return [one for one in interceptors if not isinstance(one, grpc.aio.StreamStreamClientInterceptor)]

    def start_span(
        self,
        name: str,
        traceparent: str = "",
        attributes: Mapping[str, Any] | None = None,
        kind: trace.SpanKind = trace.SpanKind.INTERNAL,
    ) -> trace.Span:
        """Starts a span under `traceparent`, or under the current span when that is empty. The caller ends it."""
        if self._follows_parents and (unsampled := _UNSAMPLED.fullmatch(traceparent)):
            # What the sampler would decide, without asking it: nearly every request of a busy installation is one of these.
            trace_id, span_id, flags = (int(field, 16) for field in unsampled.groups())
            context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
            if context.is_valid:
                return trace.NonRecordingSpan(context)
        parent = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else otel_context.get_current()
        return self.tracer.start_span(name, context=parent, attributes=dict(attributes or {}), kind=kind)

    def close(self) -> None:
        """Sends what is left; blocks for up to a few seconds when nobody listens."""
        if self._provider is not None:
            self._provider.shutdown()


def traceparent_of(span: trace.Span) -> str:
    """The W3C `traceparent` that continues `span`; empty for a no-op span."""
    context = span.get_span_context()
    if not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_traceparent() -> str:
    """The W3C `traceparent` of the current span; empty when there is none."""
    return traceparent_of(trace.get_current_span())


def current_trace_id() -> str:
    """The trace id of the current span, 32 hexadecimal digits; empty when there is none."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
