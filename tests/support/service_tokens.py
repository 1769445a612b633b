"""Service tokens for tests."""

from __future__ import annotations

from pathlib import Path

from naru.errors import invalid_api_key
from naru.identity import Principal, ServiceName

EDGE_TOKENS = {ServiceName.EDGE: "edge-token-of-at-least-thirty-two-characters"}


def write_tokens(directory: Path) -> Path:
    """Writes the edge's token file; returns the directory."""
    for name, token in EDGE_TOKENS.items():
        (directory / f"service-token-{name}").write_text(token)
    return directory


class NobodyKnown:
    """Knows no credential: only services may call."""

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        """Raises NaruError INVALID_API_KEY."""
        raise invalid_api_key()
