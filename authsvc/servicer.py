"""AuthService and ApiKeyService over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from authsvc import convert
from authsvc.authentication import Authenticator
from authsvc.invalidations import InvalidationFeed
from authsvc.management import KeyManager
from naru.api.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc, auth_service_pb2, auth_service_pb2_grpc
from naru.context import current
from naru.errors import NaruError, Reason
from naru.identity import Principal


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    """Says who a credential belongs to.

    Args:
        authenticator: Resolves credentials.
        feed: Where invalidations come from.
        manager: Makes the first key.
    """

    def __init__(self, authenticator: Authenticator, feed: InvalidationFeed, manager: KeyManager) -> None:
        self._authenticator = authenticator
        self._feed = feed
        self._manager = manager

    async def Authenticate(
        self,
        request: auth_service_pb2.AuthenticateRequest,
        context: grpc.aio.ServicerContext[auth_service_pb2.AuthenticateRequest, auth_service_pb2.AuthenticateResponse],
    ) -> auth_service_pb2.AuthenticateResponse:
        authentication = await self._authenticator.resolve(request.credential, request.client_address)
        return convert.authentication_to_proto(authentication)

    async def WatchInvalidations(
        self,
        request: auth_service_pb2.WatchInvalidationsRequest,
        context: grpc.aio.ServicerContext[
            auth_service_pb2.WatchInvalidationsRequest, auth_service_pb2.WatchInvalidationsResponse
        ],
    ) -> AsyncIterator[auth_service_pb2.WatchInvalidationsResponse]:
        async with aclosing(self._feed.watch()) as notices:
            async for notice in notices:
                yield convert.notice_to_proto(notice)

    async def Bootstrap(
        self,
        request: auth_service_pb2.BootstrapRequest,
        context: grpc.aio.ServicerContext[auth_service_pb2.BootstrapRequest, auth_service_pb2.BootstrapResponse],
    ) -> auth_service_pb2.BootstrapResponse:
        made = await self._manager.bootstrap(request.workspace_name, additional=request.additional)
        return auth_service_pb2.BootstrapResponse(workspace_id=made.key.workspace_id, api_key=made.text)


class ApiKeyServicer(api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """Makes and ends API keys.

    Args:
        manager: Decides and does it.
    """

    def __init__(self, manager: KeyManager) -> None:
        self._manager = manager

    async def CreateApiKey(
        self,
        request: api_key_service_pb2.CreateApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.CreateApiKeyRequest, api_key_service_pb2.CreateApiKeyResponse
        ],
    ) -> api_key_service_pb2.CreateApiKeyResponse:
        made = await self._manager.create(_principal(), convert.wish_from_proto(request))
        return api_key_service_pb2.CreateApiKeyResponse(
            api_key=convert.api_key_to_proto(made.key), secret_key=made.text
        )

    async def ListApiKeys(
        self,
        request: api_key_service_pb2.ListApiKeysRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.ListApiKeysRequest, api_key_service_pb2.ListApiKeysResponse
        ],
    ) -> api_key_service_pb2.ListApiKeysResponse:
        page = await self._manager.list_page(
            current().caller.principal,
            page_size=request.page_size,
            page_token=request.page_token,
            workspace_id=request.workspace_id,
            show_revoked=request.show_revoked,
            tier=request.tier,
        )
        return convert.page_to_proto(page)

    async def RevokeApiKey(
        self,
        request: api_key_service_pb2.RevokeApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.RevokeApiKeyRequest, api_key_service_pb2.RevokeApiKeyResponse
        ],
    ) -> api_key_service_pb2.RevokeApiKeyResponse:
        key = await self._manager.revoke(_principal(), request.key_id, request.request_id)
        return api_key_service_pb2.RevokeApiKeyResponse(api_key=convert.api_key_to_proto(key))


def _principal() -> Principal:
    """Whoever calls; services manage no keys."""
    request = current()
    if request.caller.principal is None:
        raise NaruError(
            Reason.PERMISSION_DENIED, "You are not allowed to make this call.", metadata={"method": request.method}
        )
    return request.caller.principal
