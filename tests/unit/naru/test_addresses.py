"""Whose address a request comes from."""

from __future__ import annotations

import pytest

from naru.addresses import TrustedProxies


@pytest.mark.parametrize(
    ("networks", "peer", "forwarded", "client"),
    [
        ((), "192.0.2.1", "6.6.6.6", "192.0.2.1"),
        (("10.0.0.0/8",), "192.0.2.1", "6.6.6.6", "192.0.2.1"),
        (("10.0.0.0/8",), "10.0.0.1", "", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", "192.0.2.9", "192.0.2.9"),
        (("10.0.0.0/8",), "10.0.0.1", "6.6.6.6, 192.0.2.9, 10.0.0.2", "192.0.2.9"),
        (("10.0.0.0/8",), "10.0.0.1", "10.0.0.3, 10.0.0.2", "10.0.0.3"),
        (("10.0.0.0/8",), "10.0.0.1", "192.0.2.9, nonsense", "10.0.0.1"),
        (("10.0.0.0/8",), "10.0.0.1", "192.0.2.9:4711", "192.0.2.9"),
        (("10.0.0.0/8",), "10.0.0.1", "[2001:db8::7]:4711", "2001:db8::7"),
        (("10.0.0.0/8",), "::ffff:10.0.0.1", "192.0.2.9", "192.0.2.9"),
        (("fd00::/8",), "fd00::1", "2001:db8::7", "2001:db8::7"),
        (("10.0.0.0/8",), "", "192.0.2.9", ""),
    ],
)
def test_client_address(networks: tuple[str, ...], peer: str, forwarded: str, client: str) -> None:
    """The rightmost address that no trusted proxy has; nothing left of it is believed."""
    assert TrustedProxies(networks).client_address(peer, forwarded) == client


def test_malformed_network() -> None:
    """A network that is none is an error at start."""
    with pytest.raises(ValueError, match=r"10\.0\.0"):
        TrustedProxies(["10.0.0/8"])
