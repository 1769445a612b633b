"""Ports for servers of tests."""

from __future__ import annotations

from naru.testing.redis_server import free_ports


def test_no_port_is_given_out_twice() -> None:
    """Though nobody listens on any of them yet."""
    given = [port for _ in range(8) for port in free_ports(200)]
    assert len(set(given)) == len(given)
