"""A whole Naru for tests: `naru up` in a folder of its own, on free ports, with the default model on vLLM."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import grpc
import openai
import redis

from naru.api.accounting.v1 import usage_service_pb2, usage_service_pb2_grpc
from naru.api.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc
from naru.cli.settings import DEFAULT_PORTS, EMBEDDING_PORTS
from naru.cli.state import StateFolder
from naru.testing.redis_server import free_ports

ROOT = Path(__file__).parents[2]
MODEL_FOLDER = ROOT / ".naru/models/smollm2-135m-instruct"
MODEL = "smollm2-135m-instruct"
START_SECONDS = 180


class Platform:
    """A running installation, and what a test wants to know of it.

    Args:
        folder: Its state.
        environ: Settings.
        two_replicas: Whether the edge looks for a second replica of inference, which `second_replica` starts.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str], *, two_replicas: bool = False) -> None:
        self.state = StateFolder(folder)
        self._clients: list[openai.OpenAI] = []
        self._seen: dict[int, str] = {}
        names = (*DEFAULT_PORTS, *EMBEDDING_PORTS)
        free = free_ports(len(names) + 2)
        self.second_ports, self.ports = free[:2], dict(zip(names, free[2:], strict=True))
        replicas = (self.ports["NARU_INFERENCE_PORT"], self.second_ports[0])
        addresses = {"NARU_INFERENCE_ADDRESSES": ",".join(f"127.0.0.1:{port}" for port in replicas)}
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("NARU_", "OPENAI_", "OTEL_"))},
            **{name: str(port) for name, port in self.ports.items()},
            "NARU_UP_STATE": str(folder),
            "NARU_INFERENCE_MODEL": str(MODEL_FOLDER),
            "NARU_INFERENCE_SERVED_MODEL_NAME": MODEL,
            # In bfloat16, the default of some processors, two greedy answers to one prompt may differ.
            "NARU_INFERENCE_ENGINE_ARGS": '{"dtype": "float32"}',
            **(addresses if two_replicas else {}),
            **environ,
        }

    def start(self) -> None:
        """Returns when it has said that it is up. Raises AssertionError with its output when it gives up."""
        self.output = self.state.root.with_suffix(".out")
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "naru", "up"], cwd=ROOT, env=self.environ, stdout=output, stderr=output
            )
        deadline = time.monotonic() + START_SECONDS
        while "Naru is up" not in self.output.read_text():
            assert self.process.poll() is None, self.diagnosis()
            assert time.monotonic() < deadline, self.diagnosis()
            time.sleep(0.1)
        self.note()
        self.api_key = self.state.read_dev_env()["OPENAI_API_KEY"]

    def stop(self) -> int:
        """Stops it in order and returns the exit code."""
        for client in self._clients:
            client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=120)

    def note(self) -> None:
        """Remembers the processes that it has now, for `left`."""
        self._seen |= {process_id: birth(process_id) for process_id in descendants(self.process.pid)}

    def left(self) -> list[int]:
        """Those of the noted processes that still run."""
        return [each for each, born in self._seen.items() if alive(each) and birth(each) == born]

    def kill(self) -> list[list[str]]:
        """Kills what still runs, the supervisor first, and returns the command lines of the others."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        left = self.left()
        lines = [command_line(process_id) for process_id in left]
        for process_id in left:
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)
        return lines

    def diagnosis(self) -> str:
        """What was printed, and the end of every log."""
        logs = [f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.state.logs.glob("*.log"))]
        return "\n".join([self.output.read_text(), *logs])

    @property
    def url(self) -> str:
        """Of the edge, without a path."""
        return f"http://127.0.0.1:{self.ports['NARU_EDGE_PORT']}"

    def client(self, api_key: str | None = None, **options: object) -> openai.OpenAI:
        """An OpenAI client that does not retry by itself."""
        client = openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key or self.api_key, max_retries=0, **options)  # type: ignore[arg-type] # passed through
        # Closed when the installation stops: a broken stream leaves its socket to whoever holds the client.
        self._clients.append(client)
        return client

    def service_ids(self, service: str) -> list[int]:
        """Process ids of `python -m <service>` below this supervisor."""
        return [
            process_id for process_id in children(self.process.pid) if command_line(process_id)[1:3] == ["-m", service]
        ]

    def redis_ids(self) -> list[int]:
        """Process ids of its Redis."""
        return [process_id for process_id in children(self.process.pid) if "redis-server" in program(process_id)]

    def metric(self, service: str, name: str) -> float:
        """The sum of a metric's samples, over labels."""
        return self.metric_at(self.ports[f"NARU_{service.upper()}_OPS_PORT"], name)

    def metric_at(self, port: int, name: str) -> float:
        """The same, of the process with this ops port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def new_key(self, **fields: object) -> str:
        """Makes an API key as the admin."""
        with self.channel("AUTHSVC") as channel:
            stub = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
            request = api_key_service_pb2.CreateApiKeyRequest(**fields)  # type: ignore[arg-type] # named by the test
            return stub.CreateApiKey(request, metadata=self.bearer(), timeout=10).secret_key

    def new_workspace(self, name: str) -> str:
        """Makes a workspace and returns its id; the services have no call for it, so this writes into their database."""
        with closing(sqlite3.connect(self.state.data / "authsvc.db")) as database, database:
            row = (name, name, "unlimited", int(time.time() * 1_000_000))
            database.execute("INSERT INTO workspaces (workspace_id, name, tier, create_time) VALUES (?, ?, ?, ?)", row)
        return name

    def revoke_key(self, key_id: str) -> None:
        """Revokes an API key as the admin."""
        with self.channel("AUTHSVC") as channel:
            stub = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
            stub.RevokeApiKey(
                api_key_service_pb2.RevokeApiKeyRequest(key_id=key_id), metadata=self.bearer(), timeout=10
            )

    def usage(self, key_id: str) -> tuple[int, int, int]:
        """Requests, prompt tokens and completion tokens of a key, as settled."""
        with self.channel("ACCOUNTING") as channel:
            stub = usage_service_pb2_grpc.UsageServiceStub(channel)
            request = usage_service_pb2.QueryUsageRequest(key_id=key_id)
            rows = stub.QueryUsage(request, metadata=self.bearer(), timeout=10).rows
        return (
            sum(row.requests for row in rows),
            sum(row.usage.prompt_tokens for row in rows),
            sum(row.usage.completion_tokens for row in rows),
        )

    def leases(self) -> int:
        """Open reservations, of all keys."""
        with self.redis() as client:
            return int(client.zcard("{naru-3}:leases"))

    def redis(self) -> redis.Redis:
        """A client of its Redis."""
        port, password = self.ports["NARU_UP_REDIS_PORT"], self.state.secret("redis-password")
        return redis.Redis(port=port, password=password, decode_responses=True)

    @contextmanager
    def second_edge(self) -> Iterator[str]:
        """One more edge in front of the same services; yields its URL."""
        port, ops_port = free_ports(2)
        with self.second("edge", {"NARU_EDGE_PORT": str(port), "NARU_EDGE_OPS_PORT": str(ops_port)}):
            yield f"http://127.0.0.1:{port}"

    @contextmanager
    def second_replica(self, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """One more replica of inference, where the edge expects it; needs `two_replicas`. Keeps its journal between runs."""
        port, ops_port = self.second_ports
        own = {
            "NARU_INFERENCE_PORT": str(port),
            "NARU_INFERENCE_OPS_PORT": str(ops_port),
            "NARU_INFERENCE_JOURNAL_DIR": str(self.state.data / "journal-2"),
            "NARU_INFERENCE_REPLICA_ID": "second",
        }
        with self.second("inference", own | dict(environ)) as process:
            # Ready is not yet connected.
            until(lambda: self.metric_at(ops_port, "naru_inference_sessions") > 0, 30, "the edge to find the replica")
            yield process

    @contextmanager
    def second(self, service: str, environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """One more process of a service, unsupervised, like the first one but for `environ`, which gives it ports."""
        (first,) = self.service_ids(service)
        inherited = dict(
            entry.split("=", 1) for entry in Path(f"/proc/{first}/environ").read_text().split("\0") if "=" in entry
        )
        command, ops_port = [sys.executable, "-m", service], environ[f"NARU_{service.upper()}_OPS_PORT"]
        with (self.state.logs / f"{service}-2.log").open("ab") as output:
            process = subprocess.Popen(command, cwd=ROOT, env=inherited | dict(environ), stdout=output, stderr=output)
        try:
            until(lambda: answers(f"http://127.0.0.1:{ops_port}/readyz"), 30, f"the second {service} to be ready")
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)

    def channel(self, service: str) -> grpc.Channel:
        """A channel to a service, such as "AUTHSVC"."""
        return grpc.insecure_channel(f"127.0.0.1:{self.ports[f'NARU_{service}_PORT']}")

    def bearer(self, api_key: str | None = None) -> tuple[tuple[str, str], ...]:
        """GRPC metadata with a key, the admin's by default."""
        return (("authorization", f"Bearer {api_key or self.api_key}"),)


@contextmanager
def platform(
    folder: Path, environ: Mapping[str, str] | None = None, *, two_replicas: bool = False
) -> Iterator[Platform]:
    """Runs one; stops it afterwards and asserts that it left no process behind."""
    running = Platform(folder, environ or {}, two_replicas=two_replicas)
    try:
        running.start()
        yield running
    finally:
        # Services that were killed have successors, and what a dead supervisor left was noted at the start.
        running.note()
        try:
            running.stop()
        finally:
            left = running.kill()
        assert not left, f"left behind: {left}"


def until(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Waits for a condition; returns how long it took. Fails the test when it does not come true in time."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def alive(process_id: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def birth(process_id: int) -> str:
    """When a process began, as the kernel counts: its id may be another one's later. Empty when it has ended."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


def children(process_id: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == process_id and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def descendants(process_id: int) -> list[int]:
    """Children, their children, and so on."""
    found = []
    for child in children(process_id):
        found += [child, *descendants(child)]
    return found


def program(process_id: int) -> str:
    """What a process calls itself; empty when it has ended, which it may do between being listed and being asked."""
    return (command_line(process_id) or [""])[0]


def command_line(process_id: int) -> list[str]:
    """The program and arguments of a process; empty when it has ended."""
    try:
        return Path(f"/proc/{process_id}/cmdline").read_text().split("\0")
    except OSError:
        return []
