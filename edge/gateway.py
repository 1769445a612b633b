"""The story of a request: authenticate, reserve, generate. No HTTP and no gRPC in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatchcase

from edge.attempts import Generation
from edge.generation import ServedModel
from edge.leases import Leases
from edge.ports import Authenticator, Call, GatewayPolicy, Progress, Quota, Replicas, Revocations
from edge.replicas import model_not_found
from naru import access_token, api_key
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.ids import is_uuid


class Gateway:
    """What the routes ask.

    Args:
        new_event_id: Makes the UUIDv7 of a request.
        revocations: Ends requests whose credential stops working; None: they go on.
    """

    def __init__(
        self,
        *,
        authenticator: Authenticator,
        quota: Quota,
        leases: Leases,
        replicas: Replicas,
        policy: GatewayPolicy,
        clock: Clock,
        new_event_id: Callable[[], str],
        revocations: Revocations | None = None,
    ) -> None:
        self._authenticator = authenticator
        self._quota = quota
        self._leases = leases
        self._replicas = replicas
        self._policy = policy
        self._clock = clock
        self._new_event_id = new_event_id
        self._revocations = revocations
        self._running: set[Generation] = set()

    async def authenticate(self, credential: str, client_address: str, project: str = "") -> Principal:
        """Whose credential it is; a user's token acts in the workspace `project` where the user belongs to it.

        Raises NaruError CREDENTIALS_MISSING, INVALID_API_KEY (malformed ones without asking anybody), PERMISSION_DENIED
        or SERVICE_UNAVAILABLE.
        """
        if not credential:
            raise NaruError(
                Reason.CREDENTIALS_MISSING,
                "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer"
                " auth (i.e. Authorization: Bearer YOUR_KEY).",
            )
        # OpenAI's client sends the header with whatever key; an API key's workspace is its own.
        workspace_id = project if is_uuid(project) and not credential.startswith(api_key.PREFIX) else ""
        principal = self._authenticator.known(credential, client_address, workspace_id)
        if principal is not None:
            return principal
        access_token.check_credential(credential)
        return await self._authenticator.authenticate(credential, client_address, workspace_id)

    def models(self, principal: Principal) -> tuple[ServedModel, ...]:
        """The models `principal` may use, aliases included. Raises NaruError SERVICE_UNAVAILABLE."""
        served = {model.name: model for model in self._replicas.models()}
        for alias, name in self._policy.model_aliases.items():
            if name in served and alias not in served:
                served[alias] = replace(served[name], name=alias, root=name)
        return tuple(model for name, model in served.items() if self._may_use(principal, name))

    def model(self, principal: Principal, name: str) -> ServedModel:
        """One model. Raises NaruError MODEL_NOT_FOUND, also when `principal` may not use it."""
        for model in self.models(principal):
            if model.name == name:
                return model
        raise model_not_found(name)

    def resolve(self, principal: Principal, name: str) -> str:
        """The served model behind a name. Raises NaruError MODEL_NOT_FOUND or SERVICE_UNAVAILABLE."""
        served = self._policy.model_aliases.get(name, name)
        if not self._may_use(principal, name):
            raise model_not_found(name)
        self._replicas.check(served)
        return served

    @asynccontextmanager
    async def generate(self, call: Call, progress: Progress) -> AsyncIterator[Generation]:
        """Runs a request; inside the block an engine has accepted it. Leaving the block ends it.

        Raises NaruError for whatever stops it, also out of the block's own body when time runs out or the stream is cut, and
        Replayed when its idempotency key says that it was made before.
        """
        served = progress.served_model = self.resolve(call.principal, call.requested_model)
        progress.event_id = self._new_event_id()
        generation = Generation(
            call=call,
            served=served,
            progress=progress,
            quota=self._quota,
            leases=self._leases,
            replicas=self._replicas,
            policy=self._policy,
            clock=self._clock,
        )
        scope = asyncio.timeout(self._policy.request_timeout + self._policy.timeout_margin)

        def interrupt() -> None:
            # One whose time is up is being stopped already, and refuses to be told so again.
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

        self._running.add(generation)
        try:
            async with scope:
                generation.interrupt_with(interrupt)
                try:
                    with self._watched(call, generation):
                        await generation.open()
                        yield generation
                finally:
                    generation.close()
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise generation.interruption or NaruError(
                Reason.DEADLINE_EXCEEDED, "The time allowed for the request ran out."
            ) from error
        finally:
            self._running.discard(generation)

    def interrupt_all(self, error: NaruError) -> None:
        """Ends all running requests with `error`."""
        for generation in tuple(self._running):
            generation.interrupt(error)

    def _watched(self, call: Call, generation: Generation) -> AbstractContextManager[None]:
        if self._revocations is None:
            return nullcontext()
        return self._revocations.watched(call.credential, call.principal, generation.interrupt)

    def _may_use(self, principal: Principal, name: str) -> bool:
        globs = principal.scopes.models
        names = (name, self._policy.model_aliases.get(name, name))
        return not globs or any(fnmatchcase(one, glob) for glob in globs for one in names)


def check_endpoint(principal: Principal, endpoint: str) -> None:
    """Raises NaruError PERMISSION_DENIED unless the credential may be used for `endpoint`."""
    if not principal.scopes.allows_endpoint(endpoint):
        raise NaruError(
            Reason.PERMISSION_DENIED,
            f"This API key may not be used for {endpoint}.",
            metadata={"method": endpoint},
        )
