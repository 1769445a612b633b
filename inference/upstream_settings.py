"""What an upstream engine needs to know: where it asks, with which key, for which models, and how patiently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class UpstreamEngineConfig:
    """How to reach an OpenAI-compatible endpoint. Times are in seconds.

    Attributes:
        base_url: Its URL, up to and with the version, such as "https://openrouter.ai/api/v1".
        api_key: Its key; empty for an endpoint without keys.
        models: The upstream's name of each model, by ours; not empty.
        connect_timeout: For a connection to be made.
        first_token_timeout: Until the first piece of a stream, and between two pieces.
        total_timeout: For a whole answer.
        connect_retries: Further tries to make a connection; nothing else is ever tried again.
        probe_seconds: Between two looks at whether it answers.
        context_tokens: Most tokens of prompt and output together, of models of which the upstream does not say it.
        answer_bytes: Most bytes of an answer that is not streamed; a stream as a whole may bring 32 times as many.
        usage_patience: For the usage and the end of a stream, once every choice has ended.
    """

    base_url: str
    models: Mapping[str, str]
    api_key: str = field(default="", repr=False)
    connect_timeout: float = 5.0
    first_token_timeout: float = 60.0
    total_timeout: float = 600.0
    connect_retries: int = 2
    probe_seconds: float = 30.0
    context_tokens: int = 8192
    answer_bytes: int = 16 << 20
    usage_patience: float = 5.0


def read_models(entries: Sequence[str]) -> dict[str, str]:
    """The upstream's names by ours, of entries such as "gpt=openai/gpt-5", or one name for both.

    Raises ValueError for a name that is empty or given twice, and for no model at all.
    """
    models: dict[str, str] = {}
    for entry in entries:
        ours, equals, theirs = (part.strip() for part in entry.partition("="))
        theirs = theirs if equals else ours
        if not ours or not theirs:
            raise ValueError(f"must be <our name>=<the upstream's name>, or one name for both, not {entry!r}")
        if ours in models:
            raise ValueError(f"names {ours!r} twice")
        models[ours] = theirs
    if not models:
        raise ValueError("must name at least one model")
    return models


def check_base_url(url: str) -> None:
    """Raises ValueError, which does not show the URL, unless it is one of HTTP that holds no secret."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must be a URL such as https://openrouter.ai/api/v1")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("must be a URL without user, password, query and fragment; the key has a setting of its own")


def check_api_key(key: str) -> None:
    """Raises ValueError, which does not show the key, for a key that cannot be sent in a header."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("must be printable ASCII without spaces")
