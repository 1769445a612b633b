"""An authsvc that knows the keys a test gives it, and records whom it was asked about."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.convert import principal_to_proto
from naru.errors import invalid_api_key
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.interceptors import CallerAuthenticator
from naru.metrics import Metrics
from naru.server import GrpcServer
from tests.support import authenticating
from tests.support.service_tokens import NobodyKnown


class FakeAuth:
    """The service.

    Attributes:
        principals: By key.
        asked: The credentials it was asked about.
    """

    def __init__(self) -> None:
        self.principals: dict[str, Principal] = {}
        self.asked: list[str] = []
        self.port = 0
        self._server: GrpcServer | None = None

    async def start(self, tokens: dict[ServiceName, str]) -> None:
        """Listens."""
        self._server = GrpcServer(CallerAuthenticator(ServiceTokens(tokens), NobodyKnown()), metrics=Metrics())
        self._server.add(auth_service_pb2_grpc.add_AuthServiceServicer_to_server, _Auth(self), "auth")
        self.port = await self._server.start("127.0.0.1", 0)
        await self._server.set_serving(True)

    async def kill(self) -> None:
        """Goes away."""
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)


class _Auth(auth_service_pb2_grpc.AuthServiceServicer):
    def __init__(self, fake: FakeAuth) -> None:
        self._fake = fake

    async def Authenticate(self, request: Any, context: Any) -> auth_service_pb2.AuthenticateResponse:
        self._fake.asked.append(request.credential)
        principal = self._fake.principals.get(request.credential)
        if principal is None:
            raise invalid_api_key()
        return auth_service_pb2.AuthenticateResponse(principal=principal_to_proto(principal), as_of=1, epoch="one")

    async def BatchAuthenticate(self, request: Any, context: Any) -> auth_service_pb2.BatchAuthenticateResponse:
        return await authenticating.answered(self.Authenticate, request, context)

    async def WatchInvalidations(self, request: Any, context: Any) -> AsyncIterator[Any]:
        while True:
            yield auth_service_pb2.WatchInvalidationsResponse(sequence=1, epoch="one")
            await asyncio.sleep(2)
