"""What is read as a JSON body at all."""

from __future__ import annotations

import sys
from contextlib import suppress

from inference.openai_body import decode_object
from naru.errors import NaruError


def test_a_body_of_any_depth_is_read_or_refused() -> None:
    """Also one that is just shallow enough to be read, and too deep to be looked through for broken text."""
    read = 0
    for depth in range(sys.getrecursionlimit()):
        with suppress(NaruError):
            decode_object(rb'{"t":"\\ud","x":' + b"[" * depth + b"]" * depth + b"}")
            read += 1
    assert 0 < read < sys.getrecursionlimit()
