"""A cache of who credentials belong to, kept honest by authsvc's invalidations.

While the stream of invalidations is up, a revoked key is dropped as soon as its invalidation comes. While it is down, what was
revoked works for at most 10 seconds more. When authsvc itself is away, principals that were known go on for `stale_max`
seconds; unknown ones never get in.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc

from naru import access_token, deadline
from naru.addresses import is_within
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.client import ServiceClient
from naru.clock import Clock
from naru.coalescing import Coalescer
from naru.convert import error_from_proto, principal_from_proto, timestamp_from_proto, timestamp_to_proto
from naru.errors import NaruError, Reason, invalid_api_key
from naru.identity import Principal
from naru.key_uses import KeyUses
from naru.lifecycle import Background
from naru.logs import get_logger
from naru.refusals import RefusedCredentials, WrongKeyLimit
from naru.sharing import SharedCalls

_CAPACITY = 50_000
_BATCH_MAX = 256
_UNWATCHED_SECONDS = 9.0
"""Leaves a second of the promised 10 for asking anew, which takes a while under load."""
_HEARTBEAT_TIMEOUT_SECONDS = 6.0
_FIRST_TIMEOUT_SECONDS = 1.0
"""How long the first replica of authsvc that is asked may take, before another one is."""
_AUTHENTICATE_TIMEOUT_SECONDS = 2.0
_AWAY = (Reason.SERVICE_UNAVAILABLE, Reason.DEADLINE_EXCEEDED)
_NOTE_TIMEOUT_SECONDS = 2.0
_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_log = get_logger(__name__)

_Asked = tuple[str, str]
"""A credential, and the workspace to act in."""
Hearer = Callable[[Collection[str] | None], None]
"""Told of the keys and users that are no longer what they were; None: nobody knows which."""


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
        background: Owns the calls about API keys: keys that are asked about at the same time share one.
        stale_max: Seconds for which known principals go on while authsvc is away.

    Keep `watch` and `uses.run` in the background, and `uses.flush` at the end.
    """

    def __init__(self, client: ServiceClient, clock: Clock, background: Background, *, stale_max: float = 60.0) -> None:
        self._client = client
        self._stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
        self._clock = clock
        self._stale_max = stale_max
        self._entries: OrderedDict[_Asked, _Entry] = OrderedDict()
        self._lookups: SharedCalls[_Asked, Principal] = SharedCalls()
        self._keys: Coalescer[auth_service_pb2.AuthenticateRequest, auth_service_pb2.AuthenticateResult] = Coalescer(
            self._ask_together, background, most=_BATCH_MAX
        )
        self._refused = RefusedCredentials(clock)
        self._wrong_keys = WrongKeyLimit(clock)
        self.uses = KeyUses(self._note_uses, clock)
        # By key or by user: their ids are never alike.
        self._invalidated: OrderedDict[str, int] = OrderedDict()
        self._epoch = ""
        self._watched_from = 0
        self._watching = False
        self._hearers: list[Hearer] = []
        self._changes = 0

    def on_change(self, hearer: Hearer) -> None:
        """Sets one more to be told what changed, at once after it was forgotten."""
        self._hearers.append(hearer)

    @property
    def watching(self) -> bool:
        """Whether the stream of invalidations is up, which also tells whether authsvc is."""
        return self._watching

    def known(self, credential: str, client_address: str = "", workspace_id: str = "") -> Principal | None:
        """Who it is, if that is known and still holds; without waiting. Arguments as for `authenticate`."""
        entry = self._entries.get((credential, workspace_id))
        if entry is None or not self._holds(entry):
            return None
        _check_address(entry.principal, client_address)
        self.uses.note(entry.principal.key_id)
        return entry.principal

    async def authenticate(self, credential: str, client_address: str = "", workspace_id: str = "") -> Principal:
        """Who it is. Concurrent lookups of one credential share one call, and what was refused lately is asked about no more.

        Args:
            credential: An API key or a user's token.
            client_address: The caller's address.
            workspace_id: Where a user wants to act. Empty: in their default workspace; a key has its own, so leave it empty.

        Raises NaruError INVALID_API_KEY, PERMISSION_DENIED (wrong address, no workspace), RATE_LIMIT_EXCEEDED (too many wrong
        keys from this address), or SERVICE_UNAVAILABLE.
        """
        principal = self.known(credential, client_address, workspace_id)
        if principal is not None:
            return principal
        access_token.check_credential(credential)
        asked = (credential, workspace_id)
        if credential in self._refused:
            raise invalid_api_key()
        self._wrong_keys.check(client_address)
        try:
            principal = await self._lookups.answer(asked, lambda: self._look_up(asked))
        except NaruError as error:
            if error.reason is Reason.INVALID_API_KEY:
                self._wrong_keys.note(client_address)
            raise
        _check_address(principal, client_address)
        self.uses.note(principal.key_id)
        return principal

    def known_as(self, credential: str, principal: Principal) -> bool:
        """Whether it is known to be that principal's, and to act in the same workspace; without waiting."""
        entries = (self._entries.get((credential, workspace_id)) for workspace_id in ("", principal.workspace_id))
        return any(
            entry is not None and self._holds(entry) and _is_same(entry.principal, principal) for entry in entries
        )

    async def still_works(self, credential: str, principal: Principal) -> bool:
        """Whether it is still that principal's, to act in the same workspace; asks where that is not known.

        Nothing is counted, neither a use nor a wrong key of some address. Raises NaruError SERVICE_UNAVAILABLE.
        """
        if self.known_as(credential, principal):
            return True
        if credential in self._refused:
            return False
        asked = (credential, "" if principal.key_id else principal.workspace_id)
        try:
            found = await self._lookups.answer(asked, lambda: self._look_up(asked))
        except NaruError as error:
            if error.reason in (Reason.INVALID_API_KEY, Reason.PERMISSION_DENIED):
                return False
            raise
        return _is_same(found, principal)

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
                    self._tell(None)
                subjects = (*message.key_ids, *message.user_ids)
                for subject in subjects:
                    self._drop(subject, message.sequence)
                if message.user_ids:
                    # Of what was refused nobody knows whose it is: an unblocked user's keys work again.
                    self._refused.clear()
                if subjects:
                    self._tell(subjects)

    def _tell(self, subjects: Collection[str] | None) -> None:
        self._changes += 1
        for hearer in self._hearers:
            hearer(subjects)

    def _clear(self, message: auth_service_pb2.WatchInvalidationsResponse) -> None:
        self._entries.clear()
        self._invalidated.clear()
        self._refused.clear()
        self._epoch, self._watched_from = message.epoch, message.sequence

    def _drop(self, subject: str, sequence: int) -> None:
        """Forgets what is older than this number of a key, or of a user, whose keys and tokens are all in question."""
        self._invalidated[subject] = sequence
        self._refused.forget_key(subject)
        if len(self._invalidated) > _CAPACITY:
            self._invalidated.popitem(last=False)
        for asked in [a for a, entry in self._entries.items() if subject in _subjects(entry.principal)]:
            if self._entries[asked].as_of < sequence:
                del self._entries[asked]

    def _holds(self, entry: _Entry) -> bool:
        if entry.expire_time and self._clock.time() >= entry.expire_time:
            return False
        return self._watching or self._clock.monotonic() - entry.fetched < _UNWATCHED_SECONDS

    async def _look_up(self, asked: _Asked) -> Principal:
        # Others may wait for it too: it is not bound by the deadline of the caller that happened to be first.
        deadline.enter(None)
        request = auth_service_pb2.AuthenticateRequest(credential=asked[0], workspace_id=asked[1])
        changes = self._changes
        try:
            for _ in range(3):
                # An answer is as old as its question: what is revoked while it is on its way has the same 10 seconds.
                fetched = self._clock.monotonic()
                response = await self._ask(request)
                principal = principal_from_proto(response.principal)
                if self._is_current(principal, response):
                    self._keep(asked, principal, response, fetched)
                    return principal
            raise invalid_api_key()
        except NaruError as error:
            entry = self._entries.get(asked)
            if error.reason in _AWAY and entry is not None:
                expired = entry.expire_time and self._clock.time() >= entry.expire_time
                if not expired and self._clock.monotonic() - entry.fetched < self._stale_max:
                    return entry.principal
            elif error.reason is Reason.INVALID_API_KEY:
                self._entries.pop(asked, None)
                if self._changes == changes:
                    # A refusal does not say how old it is; what was changed meanwhile may be that it holds now.
                    self._refused.add(asked[0])
            if error.reason is Reason.DEADLINE_EXCEEDED:
                raise NaruError(
                    Reason.SERVICE_UNAVAILABLE,
                    "The authsvc service did not answer in time.",
                    metadata={"service": "authsvc"},
                    retry_after=1.0,
                ) from error
            raise

    async def _ask(self, request: auth_service_pb2.AuthenticateRequest) -> auth_service_pb2.AuthenticateResponse:
        if access_token.looks_like(request.credential):
            # Its issuer may have to be asked first, and nobody else is to wait for that.
            return await self._call(self._stub.Authenticate, request)
        result = await self._keys.ask(request)
        if result.HasField("error"):
            raise error_from_proto(result.error)
        return result.response

    async def _ask_together(
        self, requests: Sequence[auth_service_pb2.AuthenticateRequest]
    ) -> Sequence[auth_service_pb2.AuthenticateResult]:
        request = auth_service_pb2.BatchAuthenticateRequest(requests=requests)
        return (await self._call(self._stub.BatchAuthenticate, request)).results

    async def _call(
        self, method: grpc.aio.UnaryUnaryMultiCallable[_Request, _Response], request: _Request
    ) -> _Response:
        """Asks, and once more where no answer comes: calls take turns among replicas, so that is most likely another one."""
        try:
            return await self._client.call(method, request, timeout=_FIRST_TIMEOUT_SECONDS)
        except NaruError as error:
            if error.reason not in _AWAY:
                raise
        return await self._client.call(method, request, timeout=_AUTHENTICATE_TIMEOUT_SECONDS)

    def _is_current(self, principal: Principal, response: auth_service_pb2.AuthenticateResponse) -> bool:
        """False for an answer given before an invalidation that has come in since, or that the stream never told of."""
        if not self._watching:
            return True
        newest = max(self._watched_from, *(self._invalidated.get(subject, 0) for subject in _subjects(principal)))
        return response.epoch == self._epoch and response.as_of >= newest

    def _keep(
        self, asked: _Asked, principal: Principal, response: auth_service_pb2.AuthenticateResponse, fetched: float
    ) -> None:
        if asked[1] not in ("", principal.workspace_id):
            # Not one of theirs: whoever names many must not push others out.
            return
        expires = timestamp_from_proto(response.expire_time) if response.HasField("expire_time") else 0.0
        self._entries[asked] = _Entry(principal, response.as_of, expires, fetched)
        self._entries.move_to_end(asked)
        if len(self._entries) > _CAPACITY:
            self._entries.popitem(last=False)

    async def _note_uses(self, uses: Mapping[str, float]) -> None:
        request = auth_service_pb2.NoteKeyUsesRequest(
            uses=[
                auth_service_pb2.KeyUse(key_id=key_id, time=timestamp_to_proto(time)) for key_id, time in uses.items()
            ]
        )
        await self._client.call(self._stub.NoteKeyUses, request, timeout=_NOTE_TIMEOUT_SECONDS)


def _is_same(found: Principal, principal: Principal) -> bool:
    """Whether both are the same key or user, in the same workspace, whatever else they may do."""
    return (found.key_id or found.user_id, found.workspace_id) == (
        principal.key_id or principal.user_id,
        principal.workspace_id,
    )


def _subjects(principal: Principal) -> tuple[str, str]:
    """Whose invalidation concerns it; an empty id is nobody's."""
    return principal.key_id, principal.user_id


def _check_address(principal: Principal, client_address: str) -> None:
    """Raises NaruError PERMISSION_DENIED when the key is bound to other networks than the caller's."""
    networks = principal.scopes.source_cidrs
    if not networks:
        return
    if not is_within(client_address, networks):
        raise NaruError(Reason.PERMISSION_DENIED, "This API key may not be used from your address.", metadata={})
