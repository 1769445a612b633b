"""What a key may look like: each check raises NaruError INVALID_ARGUMENT that names the field."""

from __future__ import annotations

import ipaddress

from naru.errors import invalid_argument
from naru.identity import Scopes
from naru.ids import is_uuid

DESCRIPTION_CHARACTERS_MAX = 200
NAME_CHARACTERS_MAX = 64
SCOPE_ENTRIES_MAX = 64
SCOPE_CHARACTERS_MAX = 256

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def check_text(field: str, text: str, characters_max: int) -> None:
    """At most `characters_max` printable characters, no line breaks, no space around them."""
    if len(text) > characters_max:
        raise invalid_argument(field, f"{field} has {len(text)} characters; at most {characters_max} are allowed.")
    if not text.isprintable() or text != text.strip():
        raise invalid_argument(field, f"{field} holds control characters, or begins or ends with a space.")


def check_request_id(request_id: str) -> None:
    """Empty, or a UUID."""
    if request_id and not is_uuid(request_id):
        raise invalid_argument("request_id", "request_id must be a UUID in lower case, or empty.")


def check_expire_time(expire_time: float | None, now: float) -> None:
    """None, or in the future."""
    if expire_time is not None and expire_time <= now:
        raise invalid_argument("expire_time", "expire_time must lie in the future.")


def check_scopes(scopes: Scopes) -> None:
    """At most 64 entries a list and 256 characters an entry; endpoints are paths, networks are CIDRs."""
    for name, entries in (
        ("scopes.models", scopes.models),
        ("scopes.endpoints", scopes.endpoints),
        ("scopes.source_cidrs", scopes.source_cidrs),
    ):
        if len(entries) > SCOPE_ENTRIES_MAX:
            raise invalid_argument(name, f"{name} has {len(entries)} entries; at most {SCOPE_ENTRIES_MAX} are allowed.")
        for entry in entries:
            if not entry:
                raise invalid_argument(name, f"{name} holds an empty entry.")
            check_text(name, entry, SCOPE_CHARACTERS_MAX)
    if not all(endpoint.startswith("/") for endpoint in scopes.endpoints):
        raise invalid_argument("scopes.endpoints", 'Each entry of scopes.endpoints must begin with "/".')
    for cidr in scopes.source_cidrs:
        try:
            ipaddress.ip_network(cidr)
        except ValueError:
            raise invalid_argument(
                "scopes.source_cidrs",
                "Each entry of scopes.source_cidrs must be a network in CIDR notation, such as 10.0.0.0/8, "
                "without bits set after the prefix.",
            ) from None


def within_scopes(inner: Scopes, outer: Scopes) -> bool:
    """Whether `inner` allows nothing that `outer` does not.

    Each list that narrows `outer` must narrow `inner`, to entries of the same text or networks inside its networks.
    """
    return (
        _within(inner.models, outer.models)
        and _within(inner.endpoints, outer.endpoints)
        and (not outer.source_cidrs or (bool(inner.source_cidrs) and _networks_within(inner, outer)))
    )


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    return not outer or (bool(inner) and set(inner) <= set(outer))


def _networks_within(inner: Scopes, outer: Scopes) -> bool:
    allowed = [ipaddress.ip_network(cidr) for cidr in outer.source_cidrs]
    return all(any(_inside(ipaddress.ip_network(cidr), other) for other in allowed) for cidr in inner.source_cidrs)


def _inside(network: _Network, other: _Network) -> bool:
    return (
        network.version == other.version and network.network_address in other and network.prefixlen >= other.prefixlen
    )
