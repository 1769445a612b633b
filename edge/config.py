"""What the edge can be told."""

from __future__ import annotations

import dataclasses
import ipaddress
from typing import ClassVar
from urllib.parse import urlsplit

from naru.config import ServiceConfig, setting

_MOST_BODY_BYTES = 7 << 20
"""What fits into a gRPC message of 8 MiB with all that travels beside the body."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EdgeConfig(ServiceConfig):
    """Configuration of the edge. Raises ValueError for values that make no sense."""

    SERVICE: ClassVar[str] = "edge"

    port: int = setting(8000, "Port to listen on; 0 takes a free one.")
    reuse_port: bool = setting(False, "Whether several edge processes listen on one port.")
    model_aliases: tuple[str, ...] = setting(
        (), "Names clients may ask for instead of a served model, as alias=model, separated by commas."
    )
    request_timeout: float = setting(600.0, "Seconds a request may take; at most 3,595.")
    auth_stale_max: float = setting(60.0, "Seconds for which known keys still work while authsvc is away.")
    admit_without_accounting: bool = setting(
        False, "Whether requests go on, unlimited and logged, while accounting is away, instead of 503."
    )
    max_body_bytes: int = setting(4 << 20, "Most bytes of a request's body; at most 7 MiB.")
    max_header_bytes: int = setting(8190, "Most bytes of one header, and of the request line.")
    body_timeout: float = setting(30.0, "Seconds a client may take to send a body.")
    max_concurrent_requests: int = setting(4096, "Requests that may generate at the same time.")
    stream_buffer_bytes: int = setting(1 << 20, "Bytes of an answer that may wait for its client before it is cut off.")
    stream_stall_seconds: float = setting(30.0, "Seconds a client may leave an answer unread before it is cut off.")
    keep_alive_seconds: float = setting(15.0, "Seconds of silence after which a stream gets a comment.")
    trusted_hosts: tuple[str, ...] = setting(
        ("*",), "Host names that are answered, separated by commas; *.example.com for all below, * for all."
    )
    cors_origins: tuple[str, ...] = setting(
        (), "Origins whose pages may call from a browser, such as https://chat.example.com; * for all."
    )
    trusted_proxies: tuple[str, ...] = setting(
        (), "Networks in CIDR notation whose X-Forwarded-For is believed, separated by commas."
    )
    trusted_front_end_keys: tuple[str, ...] = setting(
        (),
        "Public ids of API keys whose requests are made for the user that a signed X-OpenWebUI-User-Jwt header names, separated"
        " by commas.",
    )
    cookie_origins: tuple[str, ...] = setting(
        (),
        "Origins whose pages may send Open WebUI's token cookie as their credential, such as https://chat.example.com; empty: the"
        " cookie is not read.",
    )
    metrics_public: bool = setting(True, "Whether the main port answers /metrics too.")

    def __post_init__(self) -> None:
        self.aliases()
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network, strict=False)
            except ValueError as error:
                raise ValueError(f"NARU_EDGE_TRUSTED_PROXIES: {error}") from error
        for origin in self.cookie_origins:
            parts = urlsplit(origin)
            if parts.scheme not in ("http", "https") or f"{parts.scheme}://{parts.netloc}" != origin or "*" in origin:
                raise ValueError(f"NARU_EDGE_COOKIE_ORIGINS: {origin!r} is no origin such as https://chat.example.com")
        if not 0 < self.max_body_bytes <= _MOST_BODY_BYTES:
            raise ValueError(f"NARU_EDGE_MAX_BODY_BYTES must be from 1 to {_MOST_BODY_BYTES}")
        if not 0 < self.request_timeout <= 3595:
            raise ValueError("NARU_EDGE_REQUEST_TIMEOUT must be more than 0 and at most 3595")
        for name in (
            "max_header_bytes",
            "body_timeout",
            "max_concurrent_requests",
            "stream_buffer_bytes",
            "stream_stall_seconds",
            "keep_alive_seconds",
        ):
            if getattr(self, name) <= 0:
                raise ValueError(f"NARU_EDGE_{name.upper()} must be more than 0")

    def aliases(self) -> dict[str, str]:
        """Served model by alias. Raises ValueError for an entry that is not alias=model."""
        aliases = {}
        for entry in self.model_aliases:
            alias, _, model = (part.strip() for part in entry.partition("="))
            if not alias or not model:
                raise ValueError(f"NARU_EDGE_MODEL_ALIASES: {entry!r} is not of the form alias=model")
            aliases[alias] = model
        return aliases
