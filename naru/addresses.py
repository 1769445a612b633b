"""Addresses of callers: whose a request comes from when proxies stand in between, and what they belong to. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The networks whose `X-Forwarded-For` is believed.

    Args:
        networks: In CIDR notation; none trusts nobody. Raises ValueError for one that is malformed.
    """

    def __init__(self, networks: Iterable[str] = ()) -> None:
        self._networks = tuple(ipaddress.ip_network(network, strict=False) for network in networks)

    def client_address(self, peer: str, forwarded_for: str) -> str:
        """The address of the client: the rightmost one that no trusted proxy has.

        Args:
            peer: The address of the socket.
            forwarded_for: The values of all `X-Forwarded-For` headers, joined by commas. Each proxy appends whom it heard
                from, so what stands left of an address nobody trusts may be made up and is not looked at.

        Returns the last address that is known when something malformed stands in the way; empty when `peer` is none.
        """
        current = _parse(peer)
        if current is None:
            return ""
        for entry in reversed(forwarded_for.split(",")):
            if not self._trusts(current):
                break
            forwarded = _parse(entry)
            if forwarded is None:
                break
            current = forwarded
        return str(current)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def is_within(address: str, networks: Iterable[str]) -> bool:
    """Whether an address lies in one of the networks, in CIDR notation; what is malformed allows nothing."""
    try:
        parsed = _unmapped(ipaddress.ip_address(address))
        return any(parsed in ipaddress.ip_network(network, strict=False) for network in networks)
    except ValueError:
        return False


def network_of(address: str) -> str:
    """What one caller may choose addresses from: an IPv6 /64, an IPv4 address; what is no address, as it is."""
    try:
        parsed = _unmapped(ipaddress.ip_address(address))
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed.packed[:8] + bytes(8), 64)))
    return str(parsed)


def _unmapped(address: Address) -> Address:
    """A dual-stack socket shows an IPv4 caller as ::ffff:a.b.c.d."""
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(maxsize=4_096)
def _parse(text: str) -> Address | None:
    """The address in "192.0.2.1", "192.0.2.1:4711", "2001:db8::1" or "[2001:db8::1]:4711"."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        return _unmapped(ipaddress.ip_address(text.partition("%")[0]))
    except ValueError:
        return None
