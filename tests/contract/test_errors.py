"""The one family of errors, over a real socket and in its tables."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.api.common.v1 import error_reason_pb2
from naru.client import ServiceClient
from naru.convert import error_from_proto, error_to_proto
from naru.errors import NaruError, Reason
from naru.identity import ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from naru.status import GRPC_CODES

ROOT = Path(__file__).parents[2]
TOKEN = "t" * 40
TOKENS = ServiceTokens({ServiceName.EDGE: TOKEN})


class Nobody:
    """Knows no credential."""

    async def authenticate(self, credential: str, client_address: str = "") -> object:
        raise AssertionError("nobody sends a credential here")


class Raising(auth_service_pb2_grpc.AuthServiceServicer):
    """Fails every Authenticate with what it was given."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def Authenticate(self, request: object, context: object) -> auth_service_pb2.AuthenticateResponse:
        raise self.error

    async def WatchInvalidations(self, request: object, context: object) -> object:
        yield auth_service_pb2.WatchInvalidationsResponse(sequence=1)
        raise self.error


async def fail_with(error: Exception, stream: bool = False) -> NaruError:
    """What a client gets when a servicer raises `error`."""
    server = GrpcServer(CallerAuthenticator(TOKENS, Nobody()), metrics=Metrics())
    server.add(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, Raising(error), "naru.api.auth.v1.AuthService")
    port = await server.start("127.0.0.1", 0)
    client = ServiceClient(f"127.0.0.1:{port}", name="authsvc", service_token=TOKEN)
    stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
    try:
        with pytest.raises(NaruError) as raised:
            if stream:
                request = auth_service_pb2.WatchInvalidationsRequest()
                async with client.stream(stub.WatchInvalidations, request, timeout=5) as messages:
                    assert (await anext(messages)).sequence == 1
                    await anext(messages)
            else:
                await client.call(stub.Authenticate, auth_service_pb2.AuthenticateRequest(), timeout=5)
        return raised.value
    finally:
        await client.close()
        await server.stop(0)


@pytest.mark.parametrize("reason", list(Reason))
async def test_every_error_crosses_a_socket_unchanged(reason: Reason) -> None:
    """What a servicer raises is what the client catches: reason, text, metadata, delay."""
    error = NaruError(reason, "A sentence, 한글 too.", metadata={"field": "n", "limit": "10"}, retry_after=1.25)
    assert await fail_with(error) == error


async def test_an_error_in_the_middle_of_a_stream_crosses_unchanged() -> None:
    """A stream that has begun can still fail with an error of the family."""
    error = NaruError(Reason.OVERLOADED, "Full.", metadata={"service": "inference"}, retry_after=2.0)
    assert await fail_with(error, stream=True) == error


async def test_an_unknown_exception_tells_nothing_but_an_incident() -> None:
    """The text of an exception that is not ours never reaches the caller."""
    error = await fail_with(RuntimeError("MARKER /etc/passwd"))
    assert error.reason is Reason.INTERNAL
    assert "MARKER" not in repr(error)
    assert len(error.metadata["incident"]) == 12
    assert error.metadata["incident"] in error.message


def test_the_proto_and_the_family_have_the_same_reasons() -> None:
    """Neither side has a reason that the other lacks."""
    names = {name.removeprefix("ERROR_REASON_") for name in error_reason_pb2.ErrorReason.keys()} - {"UNSPECIFIED"}
    assert names == {reason.value for reason in Reason}
    assert set(GRPC_CODES) == set(Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_an_error_survives_as_a_field_of_a_message(reason: Reason) -> None:
    """Errors of single items use the same family."""
    for retry_after in (None, 0.5):
        error = NaruError(reason, "Text.", metadata={"a": "b"}, retry_after=retry_after)
        assert error_from_proto(error_to_proto(error)) == error


def test_the_docs_table_has_a_row_for_every_reason() -> None:
    """docs/errors.md names each reason with its gRPC code."""
    rows = {
        line.split("|")[1].strip().strip("`"): line
        for line in (ROOT / "docs/errors.md").read_text().splitlines()
        if line.startswith("| `")
    }
    assert set(rows) == {reason.value for reason in Reason}
    for reason, code in GRPC_CODES.items():
        assert f"`{code.name}`" in rows[reason.value]


async def test_a_peer_that_is_away_is_a_clear_error() -> None:
    """Nothing listening is SERVICE_UNAVAILABLE with a hint to try again, not a stack of gRPC."""
    client = ServiceClient("127.0.0.1:1", name="authsvc", service_token=TOKEN)
    stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
    with pytest.raises(NaruError) as raised:
        await client.call(stub.Authenticate, auth_service_pb2.AuthenticateRequest(), timeout=5)
    await client.close()
    assert raised.value.reason is Reason.SERVICE_UNAVAILABLE
    assert raised.value.metadata == {"service": "authsvc"}
    assert raised.value.retry_after is not None


async def test_a_call_gets_no_more_time_than_its_caller_has() -> None:
    """A deadline is handed on, less a shave; with too little left the call is not even made."""
    from naru import deadline

    token = deadline.enter(0.5)
    try:
        assert 0.3 < deadline.bounded(10) < 0.5
        assert deadline.bounded(0.1) == 0.1
    finally:
        deadline.leave(token)
    token = deadline.enter(0.005)
    try:
        with pytest.raises(NaruError) as raised:
            deadline.bounded(10)
        assert raised.value.reason is Reason.DEADLINE_EXCEEDED
    finally:
        deadline.leave(token)
    assert grpc.StatusCode.DEADLINE_EXCEEDED is GRPC_CODES[Reason.DEADLINE_EXCEEDED]
