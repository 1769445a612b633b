"""Whether an upstream is there: away only after several misses in a row, back with the first answer."""

from __future__ import annotations

from naru.logs import Logger

_MISSES = 3


class UpstreamHealth:
    """Hears of every contact with the upstream, by requests and by probes.

    Args:
        logger: Where it is told that the upstream went away or came back.
    """

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._misses = 0

    @property
    def away(self) -> bool:
        """Whether requests need not even be tried."""
        return self._misses >= _MISSES

    @property
    def uncertain(self) -> bool:
        """Whether it did not answer when it was last tried."""
        return self._misses > 0

    def answered(self) -> None:
        """It answered something."""
        if self.away:
            self._logger.info("upstream is back")
        self._misses = 0

    def missed(self) -> None:
        """It did not answer, or could not be reached."""
        self._misses += 1
        if self._misses == _MISSES:
            self._logger.error("upstream is away", misses=self._misses)
