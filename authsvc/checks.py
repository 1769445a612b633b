"""What a key may look like: each check raises NaruError INVALID_ARGUMENT that names the field."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from naru.errors import invalid_argument
from naru.identity import Scopes
from naru.ids import is_uuid

DESCRIPTION_CHARACTERS_MAX = 200
NAME_CHARACTERS_MAX = 64
USER_ID_CHARACTERS_MAX = 36
METADATA_ENTRIES_MAX = 16
METADATA_CHARACTERS_MAX = 512
SCOPE_ENTRIES_MAX = 64
SCOPE_CHARACTERS_MAX = 256

_METADATA_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def check_text(field: str, text: str, characters_max: int) -> None:
    """At most `characters_max` printable characters, no line breaks, no space around them."""
    if len(text) > characters_max:
        raise invalid_argument(field, f"{field} has {len(text)} characters; at most {characters_max} are allowed.")
    if not text.isprintable() or text != text.strip():
        raise invalid_argument(field, f"{field} holds control characters, or begins or ends with a space.")


def check_id(field: str, value: str) -> None:
    """What names an object: not empty, and what `check_text` allows of 64 characters."""
    if not value:
        raise invalid_argument(field, f"{field} is needed.")
    check_text(field, value, NAME_CHARACTERS_MAX)


def check_request_id(request_id: str) -> None:
    """Empty, or a UUID."""
    if request_id and not is_uuid(request_id):
        raise invalid_argument("request_id", "request_id must be a UUID in lower case, or empty.")


def check_expire_time(expire_time: float | None, now: float) -> None:
    """None, or in the future."""
    if expire_time is not None and expire_time <= now:
        raise invalid_argument("expire_time", "expire_time must lie in the future.")


def check_metadata(metadata: Mapping[str, str]) -> None:
    """At most 16 entries; names of at most 64 plain characters, texts of at most 512 characters."""
    if len(metadata) > METADATA_ENTRIES_MAX:
        raise invalid_argument(
            "metadata", f"metadata has {len(metadata)} entries; at most {METADATA_ENTRIES_MAX} are allowed."
        )
    for name, text in metadata.items():
        if not _METADATA_NAME.fullmatch(name):
            raise invalid_argument(
                "metadata", "Names in metadata are 1 to 64 letters, digits, dots, underscores and hyphens."
            )
        check_text(f"metadata.{name}", text, METADATA_CHARACTERS_MAX)


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

    Each list that narrows `outer` must narrow `inner`, to entries of the same text or that a glob of its covers, or to
    networks inside its networks.
    """
    return (
        _within(inner.models, outer.models)
        and _within(inner.endpoints, outer.endpoints)
        and (not outer.source_cidrs or (bool(inner.source_cidrs) and _networks_within(inner, outer)))
    )


def _within(inner: tuple[str, ...], outer: tuple[str, ...]) -> bool:
    return not outer or (bool(inner) and all(any(_covers(glob, entry) for glob in outer) for entry in inner))


def _covers(outer: str, inner: str) -> bool:
    """Whether `outer` surely matches all that `inner` matches: it may say no where the answer is not plain."""
    if outer == inner:
        return True
    # Only a "*" can take in what stands for several texts. Brackets make a text that is matched by its letters mean another.
    plain = "?" not in outer and "[" not in outer and "[" not in inner
    return plain and fnmatchcase(inner, outer)


def _networks_within(inner: Scopes, outer: Scopes) -> bool:
    allowed = [ipaddress.ip_network(cidr) for cidr in outer.source_cidrs]
    return all(any(_inside(ipaddress.ip_network(cidr), other) for other in allowed) for cidr in inner.source_cidrs)


def _inside(network: _Network, other: _Network) -> bool:
    return (
        network.version == other.version and network.network_address in other and network.prefixlen >= other.prefixlen
    )
