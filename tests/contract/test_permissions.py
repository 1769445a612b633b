"""The table of who may call what, walked: every RPC of every proto × every caller, over a real server."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import grpc
import pytest

import naru.api
from naru.convert import principal_to_proto
from naru.identity import Principal, Role, Scopes, ServiceName, ServiceTokens
from naru.interceptors import PRINCIPAL_METADATA, SERVICE_TOKEN_METADATA, CallerAuthenticator
from naru.metrics import Metrics
from naru.permissions import GRANTS
from naru.server import GrpcServer

TOKENS = ServiceTokens({name: f"{name}-" + "x" * 40 for name in ServiceName})


def rpcs() -> dict[str, Any]:
    """Every RPC of our own services, by its full name, with its descriptor."""
    found = {}
    for module in pkgutil.walk_packages(naru.api.__path__, "naru.api."):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(module.name).DESCRIPTOR
            for service in descriptor.services_by_name.values():
                for method in service.methods:
                    found[f"/{service.full_name}/{method.name}"] = method
    return found


class Anybody:
    """Resolves a credential that is a role's name to a principal of that role."""

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        role, _, endpoint = credential.partition("@")
        return Principal("w", role=Role(role), scopes=Scopes(endpoints=(endpoint,) if endpoint else ()))


class Everything(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Implements every RPC by an empty answer."""

    def service(self, details: Any) -> Any:
        method = rpcs().get(details.method)
        if method is None:
            return None
        if method.client_streaming or method.server_streaming:

            async def stream(request: Any, context: Any) -> Any:
                yield b""

            build = (
                grpc.stream_stream_rpc_method_handler
                if method.client_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return build(stream)

        async def unary(request: Any, context: Any) -> bytes:
            return b""

        return grpc.unary_unary_rpc_method_handler(unary)


def add_everything(servicer: Any, server: Any) -> None:
    server.add_generic_rpc_handlers((servicer,))


async def codes(metadata: tuple[tuple[str, str | bytes], ...]) -> dict[str, grpc.StatusCode]:
    """The status that each RPC answers a caller with this metadata."""
    server = GrpcServer(CallerAuthenticator(TOKENS, Anybody()), metrics=Metrics())
    server.add(add_everything, Everything(), "everything")
    port = await server.start("127.0.0.1", 0)
    answers = {}
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name, method in rpcs().items():
            if method.client_streaming:
                # Nothing is written: a write that fails because the call was refused would hide why (grpc/grpc#36066).
                code = await stream_code(channel.stream_stream(name)(metadata=metadata))
            elif method.server_streaming:
                code = await stream_code(channel.unary_stream(name)(b"", metadata=metadata))
            else:
                try:
                    await channel.unary_unary(name)(b"", metadata=metadata)
                    code = grpc.StatusCode.OK
                except grpc.aio.AioRpcError as error:
                    code = error.code()
            answers[name] = code
    await server.stop(0)
    return answers


async def stream_code(call: Any) -> grpc.StatusCode:
    try:
        async for _ in call:
            pass
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_every_rpc_has_a_row() -> None:
    """The table names exactly the RPCs that exist, and reflection."""
    assert {name for name in GRANTS if name.startswith("/naru.")} == set(rpcs())


async def test_nobody_gets_in_without_a_credential() -> None:
    """Without token and key every RPC is UNAUTHENTICATED."""
    assert set((await codes(())).values()) == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize("header", ["Basic abc", "Bearer", "Bearer   ", ""])
async def test_half_a_credential_is_none(header: str) -> None:
    """Another scheme, or a scheme alone, is no credential."""
    assert set((await codes((("authorization", header),))).values()) == {grpc.StatusCode.UNAUTHENTICATED}


async def test_a_wrong_service_token_is_refused() -> None:
    """A token that is nobody's is UNAUTHENTICATED, even beside a good key."""
    metadata = (("x-naru-service-token", "y" * 45), ("authorization", "Bearer admin"))
    assert set((await codes(metadata)).values()) == {grpc.StatusCode.UNAUTHENTICATED}


@pytest.mark.parametrize("service", list(ServiceName))
async def test_services_may_call_what_their_row_says(service: ServiceName) -> None:
    """Each service × each RPC."""
    for name, code in (await codes((("x-naru-service-token", TOKENS.of(service)),))).items():
        allowed = service in GRANTS[name].services
        assert code is (grpc.StatusCode.OK if allowed else grpc.StatusCode.PERMISSION_DENIED), name


@pytest.mark.parametrize("role", list(Role))
async def test_roles_may_call_what_their_row_says(role: Role) -> None:
    """Each role × each RPC."""
    for name, code in (await codes((("authorization", f"Bearer {role}"),))).items():
        least = GRANTS[name].role
        allowed = least is not None and role.rank >= least.rank
        assert code is (grpc.StatusCode.OK if allowed else grpc.StatusCode.PERMISSION_DENIED), name


def on_behalf_of(principal: Principal) -> tuple[str, bytes]:
    return PRINCIPAL_METADATA, principal_to_proto(principal).SerializeToString()


@pytest.mark.parametrize("role", list(Role))
async def test_the_edge_may_call_for_a_principal_what_that_principal_may(role: Role) -> None:
    """Each role × each RPC by the edge: the principal's rights hold, the edge's own do not help."""
    metadata = ((SERVICE_TOKEN_METADATA, TOKENS.of(ServiceName.EDGE)), on_behalf_of(Principal("w", role=role)))
    for name, code in (await codes(metadata)).items():
        least = GRANTS[name].role
        allowed = least is not None and role.rank >= least.rank
        assert code is (grpc.StatusCode.OK if allowed else grpc.StatusCode.PERMISSION_DENIED), name


@pytest.mark.parametrize("service", [name for name in ServiceName if name is not ServiceName.EDGE])
async def test_no_other_service_may_call_for_anybody(service: ServiceName) -> None:
    """Each other service × each RPC: naming a principal is refused, whatever the service may do itself."""
    metadata = ((SERVICE_TOKEN_METADATA, TOKENS.of(service)), on_behalf_of(Principal("w", role=Role.ADMIN)))
    assert set((await codes(metadata)).values()) == {grpc.StatusCode.PERMISSION_DENIED}


async def test_nobody_may_name_themselves_another() -> None:
    """A credential, an admin's included, with a principal beside it is refused."""
    for role in Role:
        metadata = (("authorization", f"Bearer {role}"), on_behalf_of(Principal("w", role=Role.ADMIN)))
        assert set((await codes(metadata)).values()) == {grpc.StatusCode.PERMISSION_DENIED}


async def test_a_key_scoped_to_endpoints_may_call_only_these() -> None:
    """An endpoint scope holds for direct RPCs as it does over HTTP."""
    allowed = "/naru.api.inference.v1.ModelService/ListModels"
    for name, code in (await codes((("authorization", f"Bearer admin@{allowed}"),))).items():
        assert (code is grpc.StatusCode.OK) == (name == allowed)
