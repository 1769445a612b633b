"""`naru up`: Redis and the four services on this machine, supervised, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from rich.console import Console

from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.cli import processes
from naru.cli.state import StateFolder, write_private
from naru.cli.supervisor import GaveUpError, Program, Supervised, tail
from naru.client import ServiceClient
from naru.embedded import redis_executable
from naru.errors import NaruError

READY_SECONDS = 900.0
"""How long the services get to become ready; a large model takes minutes to load."""

DEFAULT_PORTS = {
    "NARU_EDGE_PORT": 8000,
    "NARU_EDGE_OPS_PORT": 50060,
    "NARU_AUTHSVC_PORT": 50051,
    "NARU_AUTHSVC_OPS_PORT": 50061,
    "NARU_ACCOUNTING_PORT": 50052,
    "NARU_ACCOUNTING_OPS_PORT": 50062,
    "NARU_INFERENCE_PORT": 50053,
    "NARU_INFERENCE_OPS_PORT": 50063,
    "NARU_UP_REDIS_PORT": 50064,
}
SERVICES = ("authsvc", "accounting", "inference", "edge")


class UpError(Exception):
    """`naru up` cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What runs where.

    Attributes:
        ports: By variable name, `NARU_EDGE_PORT` and friends.
        environ: For every service.
    """

    state: StateFolder
    ports: Mapping[str, int]
    environ: Mapping[str, str]


def settings_from(environ: Mapping[str, str], state: StateFolder) -> Settings:
    """Works out the services' environment; what the caller has set wins. Raises UpError for a bad port."""
    ports = {}
    for name, default in DEFAULT_PORTS.items():
        try:
            ports[name] = int(environ.get(name, default))
        except ValueError as error:
            raise UpError(f"{name} must be a port number, not {environ[name]!r}") from error
        if not 0 < ports[name] < 65536:
            raise UpError(f"{name} must be a port number from 1 to 65535, not {ports[name]}")
    data, redis_password = state.data.resolve(), state.secret("redis-password")
    defaults = {
        **{name: str(port) for name, port in ports.items()},
        "NARU_SERVICE_TOKENS_DIR": str(state.secrets.resolve()),
        "NARU_REFLECTION": "true",
        "NARU_AUTHSVC_ADDRESS": f"127.0.0.1:{ports['NARU_AUTHSVC_PORT']}",
        "NARU_ACCOUNTING_ADDRESS": f"127.0.0.1:{ports['NARU_ACCOUNTING_PORT']}",
        "NARU_INFERENCE_ADDRESSES": f"127.0.0.1:{ports['NARU_INFERENCE_PORT']}",
        "NARU_AUTHSVC_DATABASE_URL": f"sqlite+aiosqlite:///{data}/authsvc.db",
        "NARU_AUTHSVC_PEPPER_FILES": f"1:{state.secrets.resolve()}/pepper",
        "NARU_ACCOUNTING_DATABASE_URL": f"sqlite+aiosqlite:///{data}/accounting.db",
        "NARU_ACCOUNTING_REDIS_URL": f"redis://:{redis_password}@127.0.0.1:{ports['NARU_UP_REDIS_PORT']}/0",
        "NARU_INFERENCE_JOURNAL_DIR": f"{data}/journal",
        "NARU_INFERENCE_REPLICA_ID": "local",
    }
    return Settings(state, ports, {"PYTHONUNBUFFERED": "1", **defaults, **environ})


class Up:
    """Brings everything up, keeps it up, and takes it down."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._supervised: list[Supervised] = []
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Returns after an orderly stop. Raises UpError."""
        self._check_that_it_is_not_running()
        self._check_ports()
        processes.become_subreaper()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._stopping.set)
        write_private(self._settings.state.pid_file, f"{os.getpid()}\n")
        try:
            await self._until_stopped(self._bring_up())
            if not self._stopping.is_set():
                await self._until_stopped(self._stopped())
        finally:
            await self._take_down()
            self._settings.state.pid_file.unlink(missing_ok=True)

    async def _until_stopped(self, work: Coroutine[None, None, None]) -> None:
        """Awaits `work`, unless a process turns out hopeless or a stop is asked for first."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            while not task.done() and not stop.done():
                keepers = [s.task for s in self._supervised if s.task is not None]
                await asyncio.wait([task, stop, *keepers], return_when=asyncio.FIRST_COMPLETED, timeout=1)
                for keeper in keepers:
                    if keeper.done() and (error := keeper.exception()) is not None:
                        raise UpError(str(error)) if isinstance(error, GaveUpError) else error
            if task.done():
                task.result()
        finally:
            for pending in (task, stop):
                pending.cancel()
            await asyncio.gather(task, stop, return_exceptions=True)

    async def _stopped(self) -> None:
        await self._stopping.wait()

    async def _bring_up(self) -> None:
        self._start(self._redis())
        await self._wait_for_port("NARU_UP_REDIS_PORT", "Redis")
        for service in ("authsvc", "accounting"):
            await self._migrate(service)
        for service in SERVICES:
            stop_seconds = 45.0 if service in ("inference", "edge") else 15.0
            self._start(self._program(service, [sys.executable, "-m", service], stop_seconds))
        for supervised in self._supervised[1:]:
            await self._wait_until_ready(supervised)
        await self._wait_until_it_answers()
        api_key = await self._api_key()
        self._write_dev_env(api_key)
        self._greet(api_key)

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False)

    def _check_that_it_is_not_running(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            process_id = int(self._settings.state.pid_file.read_text())
            os.kill(process_id, 0)
            raise UpError(f"Naru is running already, as process {process_id}. `make down` stops it.")

    def _check_ports(self) -> None:
        taken = []
        for name, port in self._settings.ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError:
                    taken.append(f"  port {port} is taken; choose another with {name}=<port>")
        if taken:
            raise UpError("\n".join(["Naru cannot start:", *taken]))

    def _start(self, program: Program) -> None:
        supervised = Supervised(program, self._say)
        self._supervised.append(supervised)
        supervised.task = asyncio.create_task(supervised.keep_running(), name=program.name)

    def _program(self, name: str, command: list[str], stop_seconds: float = 10.0) -> Program:
        return Program(name, command, self._settings.environ, self._settings.state.logs / f"{name}.log", stop_seconds)

    def _redis(self) -> Program:
        state = self._settings.state
        folder = state.data / "redis"
        folder.mkdir(exist_ok=True)
        # In a file, not on the command line: everybody can read other processes' arguments.
        lines = [
            "bind 127.0.0.1",
            f"port {self._settings.ports['NARU_UP_REDIS_PORT']}",
            f"requirepass {state.secret('redis-password')}",
            f'dir "{folder.resolve()}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # Limits must not be forgotten under memory pressure.
            "maxmemory-policy noeviction",
        ]
        write_private(state.secrets / "redis.conf", "\n".join(lines) + "\n")
        return self._program("redis", [redis_executable(), str((state.secrets / "redis.conf").resolve())])

    async def _migrate(self, service: str) -> None:
        log = self._settings.state.logs / f"{service}.log"
        with log.open("ab") as output:
            process = processes.start([sys.executable, "-m", service, "migrate"], self._settings.environ, output)
        if await asyncio.to_thread(process.wait) != 0:
            raise UpError(f"The migration of {service} failed. The end of {log}:\n{tail(log)}")

    async def _wait_for_port(self, name: str, what: str) -> None:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._settings.ports[name])
                writer.close()
                return
            await asyncio.sleep(0.05)
        raise UpError(f"{what} did not start within 15 seconds; see {self._settings.state.logs}")

    async def _wait_until_ready(self, supervised: Supervised) -> None:
        name = supervised.program.name
        port = self._settings.ports[f"NARU_{name.upper()}_OPS_PORT"]
        started = time.monotonic()
        with self._console.status(f"{name}: starting") as status:
            while not await _answers(f"http://127.0.0.1:{port}/readyz"):
                waited = time.monotonic() - started
                if waited > READY_SECONDS:
                    raise UpError(f"{name} was not ready after {READY_SECONDS:.0f} s; see {supervised.program.log}")
                note = " (loading the model)" if name == "inference" else ""
                status.update(f"{name}: starting{note} {waited:.0f} s")
                await asyncio.sleep(0.2)
        supervised.ready = True
        self._say(f"{name} is ready ({time.monotonic() - started:.1f} s)")

    async def _wait_until_it_answers(self) -> None:
        """Ready one by one is not yet connected to each other."""
        deadline = time.monotonic() + 30
        while not await _answers(f"http://127.0.0.1:{self._settings.ports['NARU_EDGE_PORT']}/health"):
            if time.monotonic() > deadline:
                raise UpError("The edge cannot reach the other services; /health says which.")
            await asyncio.sleep(0.1)

    async def _api_key(self) -> str:
        """The key in `dev.env` while it works, else a new admin key."""
        state, address = self._settings.state, self._settings.environ["NARU_AUTHSVC_ADDRESS"]
        known = state.read_dev_env().get("OPENAI_API_KEY", "")
        if known and await _answers(f"{self._base_url()}/models", known):
            return known
        client = ServiceClient(address, name="authsvc", service_token=state.secret("service-token-operator"))
        try:
            stub = auth_service_pb2_grpc.AuthServiceStub(client.channel)
            request = auth_service_pb2.BootstrapRequest(additional=True)
            return (await client.call(stub.Bootstrap, request, timeout=10)).api_key
        except NaruError as error:
            raise UpError(f"Cannot make the first key: {error.message}") from error
        finally:
            await client.close()

    def _base_url(self) -> str:
        return f"http://127.0.0.1:{self._settings.ports['NARU_EDGE_PORT']}/v1"

    def _write_dev_env(self, api_key: str) -> None:
        environ = self._settings.environ
        lines = {
            "OPENAI_BASE_URL": self._base_url(),
            "OPENAI_API_KEY": api_key,
            "NARU_AUTHSVC_ADDRESS": environ["NARU_AUTHSVC_ADDRESS"],
            "NARU_ACCOUNTING_ADDRESS": environ["NARU_ACCOUNTING_ADDRESS"],
        }
        write_private(self._settings.state.dev_env, "".join(f"export {k}={v}\n" for k, v in lines.items()))

    def _greet(self, api_key: str) -> None:
        model = self._settings.environ.get("NARU_INFERENCE_SERVED_MODEL_NAME", "")
        self._console.print(
            f"\nNaru is up.\n\n  URL  {self._base_url()}\n  key  {api_key}   (admin; also in {self._settings.state.dev_env})\n\n"
            f"  curl {self._base_url()}/chat/completions \\\n"
            f'    -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\\n'
            f'    -d \'{{"model": "{model}", "temperature": 0, "messages": '
            '[{"role": "user", "content": "What is the capital of France?"}]}\'\n\n'
            f"Docs at http://127.0.0.1:{self._settings.ports['NARU_EDGE_PORT']}/docs. Ctrl-C or `make down` stops it.\n",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    async def _take_down(self) -> None:
        """In the order of the request's path, so that what runs can end and be metered; Redis last."""
        order = {"edge": 0, "inference": 1, "accounting": 2, "authsvc": 3, "redis": 4}
        for supervised in sorted(self._supervised, key=lambda s: order[s.program.name]):
            await supervised.stop()
        if self._supervised:
            self._say("stopped")


async def _answers(url: str, credential: str = "") -> bool:
    headers = {"Authorization": f"Bearer {credential}"} if credential else {}
    try:
        timeout = aiohttp.ClientTimeout(total=3)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def up(folder: Path) -> int:
    """Runs until stopped; returns the exit code."""
    console, state = Console(), StateFolder(folder)
    try:
        state.prepare()
        asyncio.run(Up(settings_from(os.environ, state), console).run())
    except UpError as error:
        console.print(f"\n{error}", style="red", markup=False, highlight=False)
        return 1
    return 0


def down(folder: Path) -> int:
    """Stops a running `naru up` and waits for it; returns the exit code."""
    console, state = Console(), StateFolder(folder)
    try:
        process_id = int(state.pid_file.read_text())
        os.kill(process_id, signal.SIGTERM)
    except (OSError, ValueError):
        console.print("Naru is not running.")
        return 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if not state.pid_file.exists():
            console.print("Naru has stopped.")
            return 0
        time.sleep(0.1)
    console.print(f"Process {process_id} has not stopped within 120 seconds.", style="red")
    return 1
