"""What accounting asks of others."""

from __future__ import annotations

from naru.api.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc
from naru.client import ServiceClient

_TIMEOUT_SECONDS = 2.0


class ApiKeys:
    """The keys that authsvc knows.

    Args:
        client: A client of authsvc with accounting's token. It stays whoever's it is.
    """

    def __init__(self, client: ServiceClient) -> None:
        self._client = client
        self._stub = api_key_service_pb2_grpc.ApiKeyServiceStub(client.channel)

    async def have_tier(self, name: str) -> bool:
        """Whether a key that can be used has the tier, its own or its workspace's. Raises NaruError."""
        request = api_key_service_pb2.ListApiKeysRequest(tier=name, page_size=1)
        return bool((await self._client.call(self._stub.ListApiKeys, request, timeout=_TIMEOUT_SECONDS)).api_keys)
