"""For whom a front end makes a request, by what it signed about them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from naru import access_token
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal, Role

HEADER = "X-OpenWebUI-User-Jwt"
_TIMEOUT_SECONDS = 2.0


class Attribution:
    """Makes requests of trusted front ends those of their users.

    authsvc is asked for each: a front end signs anew for every request, so no answer would be of use twice.

    Args:
        client: Authsvc, as the edge.
        trusted: Public ids of the keys whose requests may name a user.
    """

    def __init__(self, client: ServiceClient, trusted: Collection[str]) -> None:
        self._client = client
        self._stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        self._trusted = frozenset(trusted)

    async def attribute(self, principal: Principal, user_tokens: Sequence[str]) -> Principal:
        """Who a request is made for.

        Args:
            principal: Whose credential it came with.
            user_tokens: What its headers say of a user, of which nothing is believed unless the credential is a trusted key.

        Returns:
            The principal itself, or the user: in the key's workspace, with its tier and scopes, and no role but the least.

        Raises:
            NaruError: INVALID_CREDENTIALS, which says what is wrong; PERMISSION_DENIED for a blocked user;
                SERVICE_UNAVAILABLE.
        """
        if not user_tokens or principal.key_id not in self._trusted:
            return principal
        if len(user_tokens) > 1 or not access_token.looks_like(user_tokens[0]):
            raise NaruError(Reason.INVALID_CREDENTIALS, f"The {HEADER} header is no good: it must be one signed token.")
        request = auth_service_pb2.AttributeRequest(user_token=user_tokens[0], workspace_id=principal.workspace_id)
        try:
            response = await self._client.call(self._stub.Attribute, request, timeout=_TIMEOUT_SECONDS)
        except NaruError as error:
            if error.reason is Reason.DEADLINE_EXCEEDED:
                raise unavailable("authsvc", "The authsvc service did not answer in time.") from error
            raise
        return replace(principal, user_id=response.user_id, role=Role.USER)
