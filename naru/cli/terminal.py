"""Standard output that may go away while a program goes on."""

from __future__ import annotations

import os
from typing import Any, TextIO


class Terminal:
    """A stream whose writes never fail: once its terminal is closed, what is written to it goes nowhere.

    Everything but writing is the stream's own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, if anybody can see it still."""
        try:
            return self._stream.write(text)
        except OSError:
            self._let_go()
            return len(text)

    def flush(self) -> None:
        """Flushes, if anybody can see it still."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        # The descriptor itself, so that what is left in buffers does not fail at exit either.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
