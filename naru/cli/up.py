"""`naru up`: Redis and the four services on this machine, supervised, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console

from naru.cli import bootstrapping, log_files, probes, processes
from naru.cli.bootstrapping import FirstAdmin
from naru.cli.probes import Edge
from naru.cli.settings import Settings, UpError, settings_from
from naru.cli.state import RunningAlreadyError, StateFolder, write_private
from naru.cli.supervisor import GaveUpError, Program, Supervised, tail
from naru.cli.terminal import Terminal
from naru.client import ServiceClient
from naru.config import ADMIN_EMAIL, ADMIN_PASSWORD
from naru.embedded import redis_executable
from naru.errors import NaruError
from naru.identity import ServiceName, ServiceTokens

READY_SECONDS = 900.0
"""How long the services get to become ready; a large model takes minutes to load."""

STOP_SECONDS = 15.0
"""How long a service gets to stop, on top of what running requests get."""

REST_SECONDS = 45.0
"""What Redis takes to stop, and what the services leave behind takes to end."""

LEFTOVER_SECONDS = 60.0
"""How long the processes of a supervisor that was killed get to end; they were told to when it died."""

SERVICES = ("authsvc", "accounting", "inference", "edge")

EMBEDDINGS = "embeddings"
"""The second inference process, where there is one."""


class Up:
    """Brings everything up, keeps it up, and takes it down."""

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._supervised: list[Supervised] = []
        self._stopping = asyncio.Event()
        self._edge = Edge(settings.environ, settings.ports["NARU_EDGE_PORT"])

    async def run(self) -> None:
        """Returns after an orderly stop. Raises UpError."""
        try:
            with self._settings.state.claimed(self._all_stop_seconds()) as last_was_killed:
                await self._run(LEFTOVER_SECONDS if last_was_killed else 0.0)
        except RunningAlreadyError as error:
            raise UpError(f"Naru is running already, as process {error}. `make down` stops it.") from None

    async def _run(self, patience: float) -> None:
        processes.become_subreaper()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Ignored from the start means nohup: it is to outlive its terminal.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                loop.add_signal_handler(number, self._asked_to_stop)
        try:
            await self._until_stopped(self._bring_up(patience))
            if not self._stopping.is_set():
                await self._until_stopped(self._stopped())
        finally:
            await self._take_down()

    def _asked_to_stop(self) -> None:
        """The first signal stops in order, the second one at once."""
        if self._stopping.is_set():
            for supervised in self._supervised:
                supervised.kill()
        self._stopping.set()

    async def _until_stopped(self, work: Coroutine[None, None, None]) -> None:
        """Awaits `work`, unless a process turns out hopeless or a stop is asked for first."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        try:
            while not task.done() and not stop.done():
                keepers = [s.task for s in self._supervised if s.task is not None]
                await asyncio.wait([task, stop, *keepers], return_when=asyncio.FIRST_COMPLETED, timeout=1)
                for supervised in self._supervised:
                    log_files.keep_small(supervised.program.log)
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

    async def _bring_up(self, patience: float) -> None:
        await self._wait_for_free_ports(patience)
        redis = self._start(self._redis())
        await self._wait_for_port("NARU_UP_REDIS_PORT", "Redis")
        redis.ready = True
        for service in ("authsvc", "accounting"):
            await self._migrate(service)
        for service in SERVICES:
            _ = self._start(self._service(service, service, self._settings.environ))
        if self._settings.embeddings is not None:
            _ = self._start(self._service(EMBEDDINGS, "inference", self._settings.embeddings))
        for supervised in self._supervised[1:]:
            await self._wait_until_ready(supervised)
        await self._wait_until_it_answers()
        api_key, admin = await self._credentials()
        self._write_dev_env(api_key, admin)
        self._greet(api_key, admin, await self._served_model(api_key))

    def _say(self, text: str) -> None:
        self._console.print(f"  {text}", highlight=False)

    async def _wait_for_free_ports(self, patience: float) -> None:
        """Raises UpError when one is still taken after `patience` seconds."""
        deadline = time.monotonic() + patience
        if patience and self._taken_ports():
            self._say("the last run was killed; waiting for what it left behind to end")
        while taken := self._taken_ports():
            if time.monotonic() >= deadline:
                raise UpError("\n".join(["Naru cannot start:", *taken]))
            await asyncio.sleep(0.2)

    def _taken_ports(self) -> list[str]:
        taken = []
        for name, port in self._settings.ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind(("127.0.0.1", port))
                except OSError as error:
                    why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be used ({error.strerror})"
                    taken.append(f"  port {port} {why}; choose another with {name}=<port>")
        return taken

    def _start(self, program: Program) -> Supervised:
        supervised = Supervised(program, self._say)
        self._supervised.append(supervised)
        supervised.task = asyncio.create_task(supervised.keep_running(), name=program.name)
        return supervised

    def _service(self, name: str, service: str, environ: Mapping[str, str]) -> Program:
        log = self._settings.state.logs / f"{name}.log"
        return Program(name, [sys.executable, "-m", service], environ, log, self._stop_seconds(service))

    def _stop_seconds(self, service: str) -> float:
        """Its own grace for running requests, and what it needs for the rest; a wrong value it refuses itself."""
        grace = 30.0
        with contextlib.suppress(ValueError):
            grace = float(self._settings.environ.get(f"NARU_{service.upper()}_SHUTDOWN_GRACE", grace))
        return grace + STOP_SECONDS

    def _all_stop_seconds(self) -> float:
        """How long all of it takes to stop at most, one process after the other."""
        services = (*SERVICES, "inference") if self._settings.embeddings is not None else SERVICES
        return sum(map(self._stop_seconds, services)) + REST_SECONDS

    def _redis(self) -> Program:
        state = self._settings.state
        folder = state.data / "redis"
        folder.mkdir(exist_ok=True)
        port, password = self._settings.ports["NARU_UP_REDIS_PORT"], state.secret("redis-password")
        # In files, for those that need them: everybody can read other processes' arguments, and this user their environment.
        write_private(state.secrets / "redis-url", f"redis://:{password}@127.0.0.1:{port}/0\n")
        lines = [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {password}",
            f'dir "{folder.resolve()}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            # Limits must not be forgotten under memory pressure.
            "maxmemory-policy noeviction",
        ]
        write_private(state.secrets / "redis.conf", "\n".join(lines) + "\n")
        try:
            executable = redis_executable()
        except FileNotFoundError as error:
            raise UpError(f"Naru cannot start: {error}.") from error
        command = [executable, str((state.secrets / "redis.conf").resolve())]
        return Program("redis", command, self._settings.environ, state.logs / "redis.log")

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
        variable = "NARU_UP_EMBEDDINGS_OPS_PORT" if name == EMBEDDINGS else f"NARU_{name.upper()}_OPS_PORT"
        port = self._settings.ports[variable]
        started = time.monotonic()
        with self._console.status(f"{name}: starting") as status:
            while await probes.status(f"http://127.0.0.1:{port}/readyz") != 200:
                waited = time.monotonic() - started
                if waited > READY_SECONDS:
                    raise UpError(f"{name} was not ready after {READY_SECONDS:.0f} s; see {supervised.program.log}")
                note = " (loading the model)" if name in ("inference", EMBEDDINGS) else ""
                status.update(f"{name}: starting{note} {waited:.0f} s")
                await asyncio.sleep(0.2)
        supervised.ready = True
        self._say(f"{name} is ready ({time.monotonic() - started:.1f} s)")

    async def _wait_until_it_answers(self) -> None:
        """Ready one by one is not yet connected to each other."""
        deadline = time.monotonic() + 30
        while await self._edge.status("/health") != 200:
            if time.monotonic() > deadline:
                raise UpError("The edge cannot reach the other services; /health says which.")
            await asyncio.sleep(0.1)

    async def _credentials(self) -> tuple[str, FirstAdmin | None]:
        """The key in `dev.env` while it works, else a new admin key; and the administrator, where there was none."""
        environ = self._settings.environ
        known = self._settings.state.read_dev_env().get("OPENAI_API_KEY", "")
        works = bool(known) and await self._works(known)
        try:
            token = ServiceTokens.read(Path(environ["NARU_SERVICE_TOKENS_DIR"])).of(ServiceName.OPERATOR)
        except (OSError, ValueError) as error:
            raise UpError(f"Cannot make the first key: {error}") from error
        client = ServiceClient(environ["NARU_AUTHSVC_ADDRESS"], name="authsvc", service_token=token)
        try:
            key = known if works else (await bootstrapping.first_key(client, additional=True)).api_key
            return key, await bootstrapping.first_admin(client)
        except NaruError as error:
            raise UpError(f"Cannot make the first key: {error.message}") from error
        finally:
            await client.close()

    async def _works(self, api_key: str) -> bool:
        """Whether the edge takes a key; asks again while it cannot tell. Raises UpError when it never could."""
        deadline = time.monotonic() + 30
        while not 0 < (status := await self._edge.status("/v1/models", api_key)) < 500:
            if time.monotonic() > deadline:
                raise UpError("The edge cannot tell whether the key in dev.env works; `make logs` may say why.")
            await asyncio.sleep(0.1)
        return status not in (401, 403)

    def _base_url(self) -> str:
        return f"{self._edge.url}/v1"

    def _write_dev_env(self, api_key: str, admin: FirstAdmin | None) -> None:
        """What stands there of the administrator stays, unless there is a new one."""
        environ, known = self._settings.environ, self._settings.state.read_dev_env()
        kept = {name: known[name] for name in (ADMIN_EMAIL, ADMIN_PASSWORD) if name in known}
        made = kept if admin is None else {ADMIN_EMAIL: admin.email, ADMIN_PASSWORD: admin.password}
        lines = {
            "OPENAI_BASE_URL": self._base_url(),
            "OPENAI_API_KEY": api_key,
            "NARU_AUTHSVC_ADDRESS": environ["NARU_AUTHSVC_ADDRESS"],
            "NARU_ACCOUNTING_ADDRESS": environ["NARU_ACCOUNTING_ADDRESS"],
            **made,
            "NARU_INFERENCE_ADDRESSES": environ["NARU_INFERENCE_ADDRESSES"],
        }
        self._settings.state.write_dev_env(lines)

    async def _served_model(self, api_key: str) -> str:
        """The name requests call the model that generates by, once the edge lists all that shall be served."""
        deadline = time.monotonic() + 30
        while True:
            # The edge may have reached one process and not yet the other.
            names = await self._edge.models(api_key)
            generating = [name for name in names if name != self._settings.embedding_model]
            if generating and self._settings.embedding_model in ("", *names):
                return generating[0]
            if time.monotonic() > deadline:
                raise UpError(f"The edge lists {', '.join(names) or 'no model'}; `make logs` may say why.")
            await asyncio.sleep(0.1)

    def _greet(self, api_key: str, admin: FirstAdmin | None, model: str) -> None:
        self._console.print(
            f"\nNaru is up.\n\n  URL  {self._base_url()}\n  key  {api_key}   (admin; also in {self._settings.state.dev_env})\n"
            f"{_admin_line(admin)}\n"
            f"  curl {self._base_url()}/chat/completions \\\n"
            f'    -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\\n'
            f'    -d \'{{"model": "{model}", "temperature": 0, "messages": '
            '[{"role": "user", "content": "What is the capital of Japan?"}]}\'\n\n'
            f"{self._embeddings_line()}"
            f"Docs at {self._edge.url}/docs. Ctrl-C or `make down` stops it.\n",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )

    def _embeddings_line(self) -> str:
        model = self._settings.embedding_model
        return f"Embeddings, rerank and score: {model} at {self._base_url()}/embeddings.\n" if model else ""

    async def _take_down(self) -> None:
        """In the order of the request's path, so that what runs can end and be metered; Redis last."""
        order = {"edge": 0, "inference": 1, EMBEDDINGS: 1, "accounting": 2, "authsvc": 3, "redis": 4}
        for supervised in sorted(self._supervised, key=lambda s: order[s.program.name]):
            await supervised.stop()
        if self._supervised:
            self._say("stopped")


def _admin_line(admin: FirstAdmin | None) -> str:
    """Shown once: the password is not stored."""
    return "" if admin is None else f"  you  {admin.email}, password {admin.password}   (`naru login {admin.email}`)\n"


def up(folder: Path) -> int:
    """Runs until stopped; returns the exit code."""
    # The terminal may be closed; everything is to be taken down all the same.
    console, state = Console(file=cast("TextIO", Terminal(sys.stdout))), StateFolder(folder)
    try:
        state.prepare()
    except OSError as error:
        console.print(f"Cannot write to {folder}: {error.strerror}", style="red", markup=False, highlight=False)
        return 1
    try:
        asyncio.run(Up(settings_from(os.environ, state), console).run())
    except UpError as error:
        # Not wrapped: it may hold lines of a log.
        console.print(f"\n{error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def down(folder: Path) -> int:
    """Stops a running `naru up` and waits for it; returns the exit code."""
    console, state = Console(), StateFolder(folder)
    process_id = state.supervisor()
    if process_id is None:
        console.print("Naru is not running.")
        return 0
    seconds = state.stop_seconds()
    try:
        os.kill(process_id, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it has ended meanwhile
    except PermissionError:
        console.print(f"Process {process_id} belongs to somebody else; only they can stop it.", style="red")
        return 1
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if state.supervisor() is None:
            console.print("Naru has stopped.")
            return 0
        time.sleep(0.1)
    console.print(f"Process {process_id} has not stopped within {seconds:.0f} seconds.", style="red")
    return 1
