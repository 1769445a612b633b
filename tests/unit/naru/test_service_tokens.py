"""The tokens by which services know each other."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from naru.identity import ServiceName, ServiceTokens

TOKEN = "t" * 40


def test_a_digest_recognises_and_cannot_call(tmp_path: Path) -> None:
    """Whose token it is can be told by it, and no call be made with it."""
    (tmp_path / "service-token-edge.sha256").write_text(hashlib.sha256(TOKEN.encode()).hexdigest() + "\n")
    tokens = ServiceTokens.read(tmp_path)
    assert (tokens.who(TOKEN), tokens.who("x" * 40)) == (ServiceName.EDGE, None)
    with pytest.raises(ValueError, match="service-token-edge"):
        tokens.of(ServiceName.EDGE)


@pytest.mark.parametrize("text", ["", "ab", "z" * 64, TOKEN])
def test_what_is_no_digest_stops_the_start(tmp_path: Path, text: str) -> None:
    """Nobody is shut out, or let in, by a file that was cut; its text is not repeated."""
    (tmp_path / "service-token-edge.sha256").write_text(text)
    with pytest.raises(ValueError, match=r"service-token-edge\.sha256 does not hold a SHA-256 digest"):
        ServiceTokens.read(tmp_path)


def test_a_short_token_stops_the_start(tmp_path: Path) -> None:
    """It could be guessed."""
    (tmp_path / "service-token-edge").write_text("short")
    with pytest.raises(ValueError, match="at least 32"):
        ServiceTokens.read(tmp_path)
