"""The keys of an OpenID provider, kept, and fetched anew when a token names one that is not known."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection

from jwt.algorithms import AllowedPublicKeys

from authsvc.jwks import KeySet, ProviderError, discovery_url, read_discovery, read_keys
from naru.clock import Clock
from naru.errors import unavailable
from naru.logs import get_logger

PERIOD_SECONDS = 900.0
"""How long after a fetch the next one begins: how long a key that the provider withdrew is good here, and then as long again
for a token that an edge knows."""
RETRY_SECONDS = 10.0
"""The least time between two fetches, whatever tokens come."""
WAIT_SECONDS = 1.5
"""How long whoever asks for an unknown key waits: less than an edge waits for authsvc."""
_log = get_logger(__name__)

Fetch = Callable[[str], Awaitable[bytes]]
"""The body at a URL. Raises ProviderError."""


class ProviderKeys:
    """Knows the keys.

    Whoever asks for a known key never waits. All who ask for an unknown one wait for one fetch, and not for long; while the
    provider is away, known keys go on. Keep `run` in the background, and `close` at the end.

    Args:
        algorithms: Those that are taken.
        fetch: Asks the provider.
        wait_seconds: How long whoever asks for an unknown key waits at most.
    """

    def __init__(
        self,
        issuer: str,
        algorithms: Collection[str],
        fetch: Fetch,
        clock: Clock,
        *,
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        self._issuer = issuer
        self._algorithms = frozenset(algorithms)
        self._fetch = fetch
        self._clock = clock
        self._wait_seconds = wait_seconds
        self._keys: KeySet = {}
        self._keys_url = ""
        self._began = float("-inf")
        self._answered = False
        self._fetching: asyncio.Task[None] | None = None

    async def find(self, kid: str, algorithm: str) -> AllowedPublicKeys | None:
        """The key of that id for that algorithm, or None when the provider has none.

        Raises NaruError SERVICE_UNAVAILABLE when it is unknown and the provider cannot be asked.
        """
        if algorithm not in self._algorithms:
            return None
        if (kid, algorithm) not in self._keys:
            await self._ask()
        return self._keys.get((kid, algorithm))

    async def run(self) -> None:
        """Fetches the keys every so often, for ever."""
        while True:
            _ = await asyncio.wait([self._begin()])
            await asyncio.sleep(PERIOD_SECONDS if self._answered else RETRY_SECONDS)

    async def close(self) -> None:
        """Ends a fetch that is under way."""
        if self._fetching is not None:
            self._fetching.cancel()
            _ = await asyncio.wait([self._fetching])

    async def _ask(self) -> None:
        """Has the keys fetched, unless that was done just now."""
        under_way = self._fetching is not None
        if under_way or self._clock.monotonic() - self._began >= RETRY_SECONDS:
            done, _ = await asyncio.wait([self._begin()], timeout=self._wait_seconds)
            if not done:
                raise self._unavailable()
        if not self._answered:
            raise self._unavailable()

    def _begin(self) -> asyncio.Task[None]:
        """The fetch under way, or a new one."""
        if self._fetching is None:
            self._began = self._clock.monotonic()
            self._fetching = asyncio.create_task(self._renew())
            self._fetching.add_done_callback(self._ended)
        return self._fetching

    def _ended(self, _task: asyncio.Task[None]) -> None:
        self._fetching = None

    async def _renew(self) -> None:
        try:
            if not self._keys_url:
                self._keys_url = read_discovery(await self._fetch(discovery_url(self._issuer)), self._issuer)
            keys = read_keys(await self._fetch(self._keys_url), self._algorithms)
        except ProviderError as error:
            # Its keys may have moved.
            self._keys_url, self._answered = "", False
            _log.warning("the OpenID provider's keys could not be read", issuer=self._issuer, error=str(error))
            return
        if not keys:
            _log.warning("the OpenID provider has no key that can be used", issuer=self._issuer)
        self._keys, self._answered = keys, True

    def _unavailable(self) -> Exception:
        return unavailable(
            "oidc", "The OpenID provider cannot be asked for its keys right now.", retry_after=RETRY_SECONDS
        )
