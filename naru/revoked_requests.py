"""Ends requests that run when their credential stops working, where an operator wants that.

An invalidation says that a key or a user is no longer what it was, which may be a new description as well: the credential is
resolved again, and its requests end when it is refused. The same is done with all requests when the stream of invalidations
begins anew, and once a second while it is down, when what is known of a credential holds for 10 seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from naru.credentials import CachedAuthenticator
from naru.errors import NaruError, Reason
from naru.identity import Principal
from naru.logs import get_logger

_RETRY_SECONDS = 1.0
_log = get_logger(__name__)

Ending = Callable[[NaruError], None]
"""Ends a request with an error."""


@dataclass(eq=False, slots=True)
class _Running:
    credential: str
    principal: Principal
    end: Ending


class RevokedRequests:
    """Knows the requests that run. Keep `run` in the background.

    Args:
        authenticator: Tells what changed, and whether a credential still works.
    """

    def __init__(self, authenticator: CachedAuthenticator) -> None:
        self._authenticator = authenticator
        self._running: set[_Running] = set()
        self._questioned: set[_Running] = set()
        self._changed = asyncio.Event()
        authenticator.on_change(self._hear)

    @contextmanager
    def watched(self, credential: str, principal: Principal, end: Ending) -> Iterator[None]:
        """While the block runs, `end` is called, at most once, when `credential` is no longer that principal's."""
        running = _Running(credential, principal, end)
        self._running.add(running)
        if not self._authenticator.known_as(credential, principal):
            # What it was resolved to before the block began may have changed before anybody listened.
            self._question([running])
        try:
            yield
        finally:
            self._running.discard(running)
            self._questioned.discard(running)

    async def run(self) -> None:
        """Ends requests for ever."""
        while True:
            try:
                async with asyncio.timeout(_RETRY_SECONDS):
                    await self._changed.wait()
            except TimeoutError:
                if not self._authenticator.watching:
                    self._questioned.update(self._running)
            self._changed.clear()
            questioned, self._questioned = self._questioned, set()
            by_credential: dict[tuple[str, str], list[_Running]] = {}
            for running in questioned:
                by_credential.setdefault((running.credential, running.principal.workspace_id), []).append(running)
            async with asyncio.TaskGroup() as group:
                for (credential, _), together in by_credential.items():
                    _ = group.create_task(self._check(credential, together))

    async def _check(self, credential: str, together: list[_Running]) -> None:
        try:
            works = await self._authenticator.still_works(credential, together[0].principal)
        except NaruError as failure:
            _log.debug("cannot tell whether a credential still works", error=failure.message)
            # Without waking anybody: they are asked about again when the pause is over.
            self._questioned.update(self._running.intersection(together))
            return
        if works:
            return
        error = NaruError(Reason.INVALID_API_KEY, "The API key or token stopped working while the request was running.")
        for running in self._running.intersection(together):
            self._running.discard(running)
            running.end(error)

    def _hear(self, subjects: Collection[str] | None) -> None:
        self._question(
            running
            for running in self._running
            if subjects is None or running.principal.key_id in subjects or running.principal.user_id in subjects
        )

    def _question(self, running: Collection[_Running] | Iterator[_Running]) -> None:
        self._questioned.update(running)
        if self._questioned:
            self._changed.set()
