"""AuthService and ApiKeyService over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import grpc

from authsvc import convert
from authsvc.caller import current_principal
from authsvc.invalidations import InvalidationFeed
from authsvc.key_changes import KeyChanger
from authsvc.key_usage import KeyUsage
from authsvc.management import KeyManager
from authsvc.records import ApiKey
from authsvc.token_authentication import CredentialAuthenticator
from naru.api.auth.v1 import (
    api_key_pb2,
    api_key_service_pb2,
    api_key_service_pb2_grpc,
    auth_service_pb2,
    auth_service_pb2_grpc,
)
from naru.clock import Clock
from naru.context import current
from naru.convert import error_to_proto
from naru.errors import NaruError, invalid_argument
from naru.interceptors import internal_error

_BATCH_MAX = 256


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    """Says who a credential belongs to.

    Args:
        authenticator: Resolves credentials.
        feed: Where invalidations come from.
        manager: Makes the first key.
        usage: Told when keys were used.
    """

    def __init__(
        self, authenticator: CredentialAuthenticator, feed: InvalidationFeed, manager: KeyManager, usage: KeyUsage
    ) -> None:
        self._usage = usage
        self._authenticator = authenticator
        self._feed = feed
        self._manager = manager

    async def Authenticate(
        self,
        request: auth_service_pb2.AuthenticateRequest,
        context: grpc.aio.ServicerContext[auth_service_pb2.AuthenticateRequest, auth_service_pb2.AuthenticateResponse],
    ) -> auth_service_pb2.AuthenticateResponse:
        return await self._authenticate(request)

    async def BatchAuthenticate(
        self,
        request: auth_service_pb2.BatchAuthenticateRequest,
        context: grpc.aio.ServicerContext[
            auth_service_pb2.BatchAuthenticateRequest, auth_service_pb2.BatchAuthenticateResponse
        ],
    ) -> auth_service_pb2.BatchAuthenticateResponse:
        if len(request.requests) > _BATCH_MAX:
            raise invalid_argument("requests", f"requests must have at most {_BATCH_MAX} items.")
        results = await asyncio.gather(*map(self._result, request.requests))
        return auth_service_pb2.BatchAuthenticateResponse(results=results)

    async def _result(self, request: auth_service_pb2.AuthenticateRequest) -> auth_service_pb2.AuthenticateResult:
        try:
            return auth_service_pb2.AuthenticateResult(response=await self._authenticate(request))
        except NaruError as error:
            return auth_service_pb2.AuthenticateResult(error=error_to_proto(error))
        except Exception as cause:  # noqa: BLE001 -- one request's; the log gets the cause, the caller a fixed text
            return auth_service_pb2.AuthenticateResult(error=error_to_proto(internal_error(cause, current().method)))

    async def _authenticate(
        self, request: auth_service_pb2.AuthenticateRequest
    ) -> auth_service_pb2.AuthenticateResponse:
        authentication = await self._authenticator.resolve(
            request.credential, request.client_address, request.workspace_id
        )
        return convert.authentication_to_proto(authentication)

    async def Attribute(
        self,
        request: auth_service_pb2.AttributeRequest,
        context: grpc.aio.ServicerContext[auth_service_pb2.AttributeRequest, auth_service_pb2.AttributeResponse],
    ) -> auth_service_pb2.AttributeResponse:
        user_id = await self._authenticator.attribute(request.user_token, request.workspace_id)
        return auth_service_pb2.AttributeResponse(user_id=user_id)

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

    async def NoteKeyUses(
        self,
        request: auth_service_pb2.NoteKeyUsesRequest,
        context: grpc.aio.ServicerContext[auth_service_pb2.NoteKeyUsesRequest, auth_service_pb2.NoteKeyUsesResponse],
    ) -> auth_service_pb2.NoteKeyUsesResponse:
        self._usage.reported(convert.uses_from_proto(request))
        return auth_service_pb2.NoteKeyUsesResponse()

    async def Bootstrap(
        self,
        request: auth_service_pb2.BootstrapRequest,
        context: grpc.aio.ServicerContext[auth_service_pb2.BootstrapRequest, auth_service_pb2.BootstrapResponse],
    ) -> auth_service_pb2.BootstrapResponse:
        made = await self._manager.bootstrap(request.workspace_name, additional=request.additional)
        return auth_service_pb2.BootstrapResponse(workspace_id=made.key.workspace_id, api_key=made.text)


class ApiKeyServicer(api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """Makes, changes and ends API keys.

    Args:
        manager: Makes and lists them.
        changer: Shows and changes them.
        clock: Tells how they stand.
    """

    def __init__(self, manager: KeyManager, changer: KeyChanger, clock: Clock) -> None:
        self._manager = manager
        self._changer = changer
        self._clock = clock

    async def CreateApiKey(
        self,
        request: api_key_service_pb2.CreateApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.CreateApiKeyRequest, api_key_service_pb2.CreateApiKeyResponse
        ],
    ) -> api_key_service_pb2.CreateApiKeyResponse:
        made = await self._manager.create(current_principal(), convert.wish_from_proto(request))
        return api_key_service_pb2.CreateApiKeyResponse(api_key=self._shown(made.key), secret_key=made.text)

    async def ListApiKeys(
        self,
        request: api_key_service_pb2.ListApiKeysRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.ListApiKeysRequest, api_key_service_pb2.ListApiKeysResponse
        ],
    ) -> api_key_service_pb2.ListApiKeysResponse:
        page = await self._manager.list_page(
            current().caller.principal,
            convert.filters_from_proto(request),
            page_size=request.page_size,
            page_token=request.page_token,
        )
        return convert.page_to_proto(page, self._clock.time())

    async def GetApiKey(
        self,
        request: api_key_service_pb2.GetApiKeyRequest,
        context: grpc.aio.ServicerContext[api_key_service_pb2.GetApiKeyRequest, api_key_service_pb2.GetApiKeyResponse],
    ) -> api_key_service_pb2.GetApiKeyResponse:
        key = await self._changer.get(current_principal(), request.key_id)
        return api_key_service_pb2.GetApiKeyResponse(api_key=self._shown(key))

    async def UpdateApiKey(
        self,
        request: api_key_service_pb2.UpdateApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.UpdateApiKeyRequest, api_key_service_pb2.UpdateApiKeyResponse
        ],
    ) -> api_key_service_pb2.UpdateApiKeyResponse:
        update = convert.update_from_proto(request)
        key = await self._changer.update(current_principal(), request.api_key.key_id, update, request.request_id)
        return api_key_service_pb2.UpdateApiKeyResponse(api_key=self._shown(key))

    async def RotateApiKey(
        self,
        request: api_key_service_pb2.RotateApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.RotateApiKeyRequest, api_key_service_pb2.RotateApiKeyResponse
        ],
    ) -> api_key_service_pb2.RotateApiKeyResponse:
        grace = convert.grace_from_proto(request)
        made = await self._changer.rotate(current_principal(), request.key_id, grace, request.request_id)
        return api_key_service_pb2.RotateApiKeyResponse(api_key=self._shown(made.key), secret_key=made.text)

    async def BlockApiKey(
        self,
        request: api_key_service_pb2.BlockApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.BlockApiKeyRequest, api_key_service_pb2.BlockApiKeyResponse
        ],
    ) -> api_key_service_pb2.BlockApiKeyResponse:
        key = await self._changer.block(current_principal(), request.key_id, request.request_id)
        return api_key_service_pb2.BlockApiKeyResponse(api_key=self._shown(key))

    async def UnblockApiKey(
        self,
        request: api_key_service_pb2.UnblockApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.UnblockApiKeyRequest, api_key_service_pb2.UnblockApiKeyResponse
        ],
    ) -> api_key_service_pb2.UnblockApiKeyResponse:
        key = await self._changer.unblock(current_principal(), request.key_id, request.request_id)
        return api_key_service_pb2.UnblockApiKeyResponse(api_key=self._shown(key))

    async def RevokeApiKey(
        self,
        request: api_key_service_pb2.RevokeApiKeyRequest,
        context: grpc.aio.ServicerContext[
            api_key_service_pb2.RevokeApiKeyRequest, api_key_service_pb2.RevokeApiKeyResponse
        ],
    ) -> api_key_service_pb2.RevokeApiKeyResponse:
        key = await self._changer.revoke(current_principal(), request.key_id, request.request_id)
        return api_key_service_pb2.RevokeApiKeyResponse(api_key=self._shown(key))

    def _shown(self, key: ApiKey) -> api_key_pb2.ApiKey:
        return convert.api_key_to_proto(key, self._clock.time())
