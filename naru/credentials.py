"""A cache of who credentials belong to, kept honest by authsvc's invalidations.

While the stream of invalidations is up, a revoked key is dropped as soon as its invalidation comes. While it is down an
entry lives 10 seconds. When authsvc itself is away, principals that were known go on for `stale_max` seconds; unknown ones
never get in.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from naru import api_key, deadline
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.clock import Clock
from naru.convert import principal_from_proto, timestamp_from_proto
from naru.errors import NaruError, Reason, invalid_api_key
from naru.identity import Principal
from naru.logs import get_logger

_CAPACITY = 50_000
_UNWATCHED_SECONDS = 10.0
_HEARTBEAT_TIMEOUT_SECONDS = 6.0
_AUTHENTICATE_TIMEOUT_SECONDS = 2.0
_log = get_logger(__name__)


@dataclass(slots=True)
class _Entry:
    principal: Principal
    as_of: int
    expire_time: float
    fetched: float


class CachedAuthenticator:
    """Resolves credentials through authsvc, once per key and not once per request.

    Args:
        client: A client of authsvc with a service token.
        stale_max: Seconds for which known principals go on while authsvc is away.
    """

    def __init__(self, client: ServiceClient, clock: Clock, *, stale_max: float = 60.0) -> None:
        self._client = client
        self._stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        self._clock = clock
        self._stale_max = stale_max
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[Principal]] = {}
        self._invalidated: OrderedDict[str, int] = OrderedDict()
        self._epoch = ""
        self._watched_from = 0
        self._watching = False

    @property
    def watching(self) -> bool:
        """Whether the stream of invalidations is up, which also tells whether authsvc is."""
        return self._watching

    def known(self, credential: str, client_address: str = "") -> Principal | None:
        """Who it is, if that is known and still holds; without waiting."""
        entry = self._entries.get(credential)
        if entry is None or not self._holds(entry):
            return None
        _check_address(entry.principal, client_address)
        return entry.principal

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        """Who it is. Concurrent lookups of one credential share one call.

        Raises NaruError INVALID_API_KEY, PERMISSION_DENIED (wrong address), or SERVICE_UNAVAILABLE.
        """
        principal = self.known(credential, client_address)
        if principal is not None:
            return principal
        api_key.parse(credential)
        lookup = self._lookups.get(credential)
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(credential))
            self._lookups[credential] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(credential, None))
        # One caller that goes away must not cancel the lookup for the others.
        principal = await asyncio.shield(lookup)
        _check_address(principal, client_address)
        return principal

    async def watch(self) -> None:
        """Follows the invalidations for ever; a service keeps this running in the background."""
        pause = 0.1
        while True:
            try:
                await self._follow()
            except (NaruError, TimeoutError) as error:
                _log.debug("stream of invalidations is down", error=str(error))
            if self._watching:
                pause = 0.1
            self._watching = False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _follow(self) -> None:
        request = auth_service_pb2.WatchInvalidationsRequest()
        async with self._client.stream(self._stub.WatchInvalidations, request, timeout=None) as messages:
            while True:
                # Not wait_for: in Python 3.11 it forgets that it was cancelled when the stream fails at that moment.
                async with asyncio.timeout(_HEARTBEAT_TIMEOUT_SECONDS):
                    message = await anext(messages, None)
                if message is None:
                    return
                if not self._watching or message.epoch != self._epoch:
                    # What was revoked while nobody listened is not known: begin anew.
                    self._clear(message)
                    self._watching = True
                for key_id in message.key_ids:
                    self._drop(key_id, message.sequence)

    def _clear(self, message: auth_service_pb2.WatchInvalidationsResponse) -> None:
        self._entries.clear()
        self._invalidated.clear()
        self._epoch, self._watched_from = message.epoch, message.sequence

    def _drop(self, key_id: str, sequence: int) -> None:
        self._invalidated[key_id] = sequence
        if len(self._invalidated) > _CAPACITY:
            self._invalidated.popitem(last=False)
        for credential in [c for c, entry in self._entries.items() if entry.principal.key_id == key_id]:
            if self._entries[credential].as_of < sequence:
                del self._entries[credential]

    def _holds(self, entry: _Entry) -> bool:
        if entry.expire_time and self._clock.time() >= entry.expire_time:
            return False
        return self._watching or self._clock.monotonic() - entry.fetched < _UNWATCHED_SECONDS

    async def _look_up(self, credential: str) -> Principal:
        # Others may wait for it too: it is not bound by the deadline of the caller that happened to be first.
        deadline.enter(None)
        request = auth_service_pb2.AuthenticateRequest(credential=credential)
        try:
            for _ in range(3):
                response = await self._client.call(
                    self._stub.Authenticate, request, timeout=_AUTHENTICATE_TIMEOUT_SECONDS
                )
                principal = principal_from_proto(response.principal)
                if self._is_current(principal.key_id, response):
                    self._keep(credential, principal, response)
                    return principal
            raise invalid_api_key()
        except NaruError as error:
            entry = self._entries.get(credential)
            if error.reason in (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED) and entry is not None:
                expired = entry.expire_time and self._clock.time() >= entry.expire_time
                if not expired and self._clock.monotonic() - entry.fetched < self._stale_max:
                    return entry.principal
            elif error.reason is Reason.INVALID_API_KEY:
                self._entries.pop(credential, None)
            if error.reason is Reason.DEADLINE_EXCEEDED:
                raise NaruError(
                    Reason.SERVICE_UNAVAILABLE,
                    "The authsvc service did not answer in time.",
                    metadata={"service": "authsvc"},
                    retry_after=1.0,
                ) from error
            raise

    def _is_current(self, key_id: str, response: auth_service_pb2.AuthenticateResponse) -> bool:
        """False for an answer given before an invalidation that has come in since, or that the stream never told of."""
        if not self._watching:
            return True
        newest = max(self._watched_from, self._invalidated.get(key_id, 0))
        return response.epoch == self._epoch and response.as_of >= newest

    def _keep(self, credential: str, principal: Principal, response: auth_service_pb2.AuthenticateResponse) -> None:
        expires = timestamp_from_proto(response.expire_time) if response.HasField("expire_time") else 0.0
        self._entries[credential] = _Entry(principal, response.as_of, expires, self._clock.monotonic())
        self._entries.move_to_end(credential)
        if len(self._entries) > _CAPACITY:
            self._entries.popitem(last=False)


def _check_address(principal: Principal, client_address: str) -> None:
    """Raises NaruError PERMISSION_DENIED when the key is bound to other networks than the caller's."""
    networks = principal.scopes.source_cidrs
    if not networks:
        return
    try:
        address = ipaddress.ip_address(client_address)
        # A socket that takes both families shows IPv4 callers as ::ffff:a.b.c.d.
        address = getattr(address, "ipv4_mapped", None) or address
        allowed = any(address in ipaddress.ip_network(network, strict=False) for network in networks)
    except ValueError:
        allowed = False
    if not allowed:
        raise NaruError(Reason.PERMISSION_DENIED, "This API key may not be used from your address.", metadata={})
