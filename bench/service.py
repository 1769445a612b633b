"""The real service in a process of its own, and what its callers say to it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from naru.api.accounting.v1 import quota_service_pb2
from naru.api.common.v1 import principal_pb2
from naru.client import ServiceClient
from naru.identity import ServiceName
from naru.ids import uuid7
from naru.testing.redis_server import free_port

KEYS, WORKSPACES = 200, 20
MODEL = "m"
TIERS = """
[bench]
limits = [
  { kind = "requests", window = "minute", limit = 1_000_000_000 },
  { kind = "requests", window = "hour", limit = 1_000_000_000 },
  { kind = "total_tokens", window = "minute", limit = 1_000_000_000_000 },
  { kind = "concurrency", limit = 1_000_000_000 },
  { scope = "workspace", kind = "cost", window = "month", limit = 1_000_000_000_000_000 },
]
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where the service is, a token for each of its callers, and its process."""

    target: str
    tokens: dict[ServiceName, str]
    pid: int

    def client(self, name: ServiceName) -> ServiceClient:
        """A client that calls as a service."""
        return ServiceClient(self.target, name="accounting", service_token=self.tokens[name])


@contextmanager
def accounting(database_url: str, redis_url: str) -> Iterator[Address]:
    """The service in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as name:
        folder = Path(name)
        tokens = {service: secrets.token_hex(32) for service in ServiceName}
        for service, token in tokens.items():
            (folder / f"service-token-{service}").write_text(token)
        (folder / "tiers.toml").write_text(TIERS)
        port, ops_port = free_port(), free_port()
        environ = {
            **os.environ,
            "NARU_ACCOUNTING_PORT": str(port),
            "NARU_ACCOUNTING_OPS_PORT": str(ops_port),
            "NARU_ACCOUNTING_DATABASE_URL": database_url,
            "NARU_ACCOUNTING_REDIS_URL": redis_url,
            "NARU_ACCOUNTING_TIERS_FILE": str(folder / "tiers.toml"),
            "NARU_SERVICE_TOKENS_DIR": str(folder),
            "NARU_LOG_LEVEL": "warning",
        }
        command = [sys.executable, "-m", "accounting"]
        subprocess.run([*command, "migrate"], env=environ, check=True)
        with subprocess.Popen(command, env=environ) as process:
            try:
                wait_until_ready(f"http://127.0.0.1:{ops_port}/readyz", "accounting")
                yield Address(f"127.0.0.1:{port}", tokens, process.pid)
            finally:
                process.terminate()


def wait_until_ready(url: str, service: str) -> None:
    """Returns when the service is ready. Raises TimeoutError when it is not within a minute."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"{service} was not ready within 60 s")


def principal(number: int) -> principal_pb2.Principal:
    """One of the keys, each of one of 20 workspaces."""
    return principal_pb2.Principal(
        key_id=f"key{number % KEYS:09d}",
        workspace_id=f"ws-{number % WORKSPACES}",
        role=principal_pb2.ROLE_USER,
        tier="bench",
    )


def reservation(number: int) -> quota_service_pb2.Reservation:
    """A request of an average size."""
    return quota_service_pb2.Reservation(
        event_id=uuid7(),
        principal=principal(number),
        requested_model=MODEL,
        served_model=MODEL,
        endpoint="/v1/chat/completions",
        input_tokens=500,
        output_tokens=200,
        request_id="req_bench",
    )
