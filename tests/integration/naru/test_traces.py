"""What the spans of calls say, over a real socket."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.client import ServiceClient
from naru.errors import NaruError, invalid_api_key, invalid_argument, unavailable
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from naru.tracing import Tracing

TOKENS = ServiceTokens({name: os.urandom(32).hex() for name in ServiceName})
TOKEN = TOKENS.of(ServiceName.OPERATOR)


class Usage(usage_service_pb2_grpc.UsageServiceServicer):
    """Fails as it is told."""

    def __init__(self, failure: Exception | None) -> None:
        self._failure = failure

    async def QueryUsage(self, request: Any, context: Any) -> usage_service_pb2.QueryUsageResponse:
        if self._failure is not None:
            raise self._failure
        return usage_service_pb2.QueryUsageResponse()

    async def ExportUsage(self, request: Any, context: Any) -> AsyncIterator[usage_service_pb2.ExportUsageResponse]:
        yield usage_service_pb2.ExportUsageResponse()
        if self._failure is not None:
            raise self._failure


class Nobody:
    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        raise invalid_api_key()


async def spans(failure: Exception | None, token: str) -> list[ReadableSpan]:
    """Those of a call and of a stream."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    server = GrpcServer(CallerAuthenticator(TOKENS, Nobody()), metrics=Metrics(), tracing=Tracing(provider))
    server.add(usage_service_pb2_grpc.add_UsageServiceServicer_to_server, Usage(failure), "usage")
    client = ServiceClient(f"127.0.0.1:{await server.start('127.0.0.1', 0)}", name="usage", service_token=token)
    stub = usage_service_pb2_grpc.UsageServiceStub(client.channel)
    failed = 0
    try:
        await client.call(stub.QueryUsage, usage_service_pb2.QueryUsageRequest(), timeout=10)
    except NaruError:
        failed += 1
    try:
        async with client.stream(stub.ExportUsage, usage_service_pb2.ExportUsageRequest(), timeout=10) as responses:
            assert [response async for response in responses]
    except NaruError:
        failed += 1
    await client.close()
    await server.stop(10)
    assert failed in (0, 2)
    provider.shutdown()
    return list(exporter.get_finished_spans())


@pytest.mark.parametrize(
    ("failure", "token", "code", "status"),
    [
        (None, TOKEN, grpc.StatusCode.OK, StatusCode.UNSET),
        (None, "x" * 40, grpc.StatusCode.UNAUTHENTICATED, StatusCode.UNSET),
        (invalid_argument("x", "No."), TOKEN, grpc.StatusCode.INVALID_ARGUMENT, StatusCode.UNSET),
        (unavailable("database"), TOKEN, grpc.StatusCode.UNAVAILABLE, StatusCode.ERROR),
        (ValueError("a secret"), TOKEN, grpc.StatusCode.INTERNAL, StatusCode.ERROR),
    ],
)
async def test_a_span_says_how_its_call_ended(
    failure: Exception | None, token: str, code: grpc.StatusCode, status: StatusCode
) -> None:
    """By gRPC's code; what is the caller's own fault is no error of the service's (OpenTelemetry, gRPC semantic conventions)."""
    ended = await spans(failure, token)
    assert len(ended) == 2
    for span in ended:
        assert span.attributes is not None
        assert (span.attributes["rpc.grpc.status_code"], span.status.status_code) == (code.value[0], status)
        assert "a secret" not in str(span.status.description)
