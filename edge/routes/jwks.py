"""/.well-known/jwks.json: the public keys that users' access tokens are signed with."""

from __future__ import annotations

from typing import cast

import msgspec
from aiohttp import web

from edge.routes.platform import Rpcs
from edge.rpcs import Rpc
from naru.api.auth.v1 import session_service_pb2
from naru.clock import Clock
from naru.convert import duration_from_proto
from naru.errors import NaruError

PATH = "/.well-known/jwks.json"


class JwksRoutes:
    """Shows the keys, asked for again once the answer is as old as it may get; while authsvc is away, those known last.

    Args:
        rpcs: Authsvc.
    """

    def __init__(self, rpcs: Rpcs, clock: Clock) -> None:
        self._rpcs = rpcs
        self._clock = clock
        self._rpc = Rpc("SessionService/GetSigningKeys")
        self._body = b""
        self._max_age = 0
        self._ends = float("-inf")

    async def keys(self, _request: web.Request) -> web.Response:
        """The JSON Web Key Set (RFC 7517, RFC 8037)."""
        now = self._clock.monotonic()
        if now >= self._ends:
            try:
                await self._ask(now)
            except NaruError:
                if not self._body:
                    raise
        headers = {"Cache-Control": f"public, max-age={self._max_age}", "Access-Control-Allow-Origin": "*"}
        return web.Response(body=self._body, content_type="application/jwk-set+json", headers=headers)

    async def _ask(self, now: float) -> None:
        answer = await self._rpcs.call(self._rpc, self._rpc.request(), on_behalf_of=None)
        response = cast(session_service_pb2.GetSigningKeysResponse, answer)
        keys = [
            {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": key.kid, "x": key.x}
            for key in response.keys
        ]
        self._body = msgspec.json.encode({"keys": keys})
        # Half here and half at the client: together no longer than a copy may be kept.
        self._max_age = int(duration_from_proto(response.max_age) / 2)
        self._ends = now + self._max_age
