"""One stream, watched event by event by a client that does nothing else."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Watched:
    """What it was like.

    Attributes:
        first_token: Seconds until the first text.
        whole: Seconds until the end; None when it was given up before.
        events: That brought text.
    """

    first_token: float
    whole: float | None
    events: int


class Watcher:
    """Asks again and again on one connection.

    Args:
        url: Whole, with its path.
        key: Of the API.
        body: Of every request; has to ask for a stream.
    """

    def __init__(self, url: str, key: str, body: dict[str, Any]) -> None:
        parts = urlsplit(url)
        self._path = parts.path
        self._connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS)
        self._body = json.dumps(body).encode()
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    def watch(self, given_up: Callable[[], bool] = lambda: False) -> Watched | None:
        """Asks once, and reads to the end or until it is to be given up; None when that was before any text.

        Raises OSError or http.client.HTTPException without an answer, and RuntimeError for one that is not 200.
        """
        started = time.monotonic()
        self._connection.request("POST", self._path, self._body, self._headers)
        answer = self._connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise RuntimeError(f"{answer.status}: {answer.read().decode()}")
        first, events = None, 0
        while line := answer.readline():
            if b'"content":"' in line and b'"content":""' not in line:
                events += 1
                first = first or time.monotonic() - started
            if given_up():
                self.close()
                return None if first is None else Watched(first, None, events)
        return Watched(first or 0.0, time.monotonic() - started, events)

    def close(self) -> None:
        """Hangs up; the next request connects again."""
        self._connection.close()
