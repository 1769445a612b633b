"""One gRPC channel to several equal replicas of a service: gRPC's own resolver and round robin, nothing of ours."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_ROUND_ROBIN = '{"loadBalancingConfig": [{"round_robin": {}}]}'
# gRPC asks DNS again when a connection is lost, by itself at most every 30 seconds.
_DNS_PAUSE_MS = 1_000


@dataclass(frozen=True, slots=True)
class Target:
    """What a channel is opened with."""

    uri: str
    options: tuple[tuple[str, str | int], ...] = ()


def target_of(address: str) -> Target:
    """The channel to all replicas that `address` names; calls take turns among those that are connected.

    Args:
        address: host:port, where a name may have several addresses, or the IP addresses of several, separated by commas.

    Raises:
        ValueError: One of several is no ip:port, or IPv4 and IPv6 are mixed; gRPC resolves no list of names.
    """
    options = (
        ("grpc.service_config", _ROUND_ROBIN),
        ("grpc.dns_min_time_between_resolutions_ms", _DNS_PAUSE_MS),
    )
    parts = [part.strip() for part in address.split(",") if part.strip()]
    if len(parts) < 2:
        return Target("".join(parts), options)
    families = {_family(part) for part in parts}
    if len(families) > 1:
        raise ValueError("several addresses must all be IPv4 or all be IPv6")
    return Target(f"{families.pop()}:{','.join(parts)}", options)


def _family(address: str) -> str:
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        version: int = ipaddress.ip_address(host[1:-1] if bracketed else host).version
    except ValueError:
        version = 0
    if not version or bracketed is not (version == 6) or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} must be ip:port, as there are several; a name that has all addresses goes alone")
    return f"ipv{version}"
