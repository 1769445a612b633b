"""How a process starts, stays up and stops; the same for every service."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvloop

from naru import config as configuration
from naru import logs
from naru.placement import cpus_from, run_on

EXIT_OK, EXIT_CRASH, EXIT_CONFIG = 0, 1, 2
# How long a cancelled task may go on before it is told again.
_DEAF_SECONDS = 5.0
# Objects that are made before Python looks for those that hold only each other.
_GARBAGE_OBJECTS = 50_000
# More than all connections that the settings allow; some programs look at every file that they may open, a billion of them.
_MOST_OPEN_FILES = 65_536
_log = logs.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Running:
    """A service that is up.

    Attributes:
        port: Of its main listener.
        ops_port: Of its ops listener; 0 when it has none.
    """

    port: int
    ops_port: int = 0


class Background:
    """Tasks that outlive the request that began them. The process owns them and awaits them when it stops."""

    def __init__(self, on_death: Callable[[str, BaseException | None], None]) -> None:
        self._on_death = on_death
        self._endless: set[asyncio.Task[None]] = set()
        self._finite: set[asyncio.Task[None]] = set()

    def start(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a task that must not end; if it does, the process stops with exit code 1."""
        task = asyncio.create_task(coroutine, name=name)
        self._endless.add(task)
        task.add_done_callback(self._ended)
        return task

    def spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs a task that ends by itself; `close` waits for it. A failure is logged."""
        task = asyncio.create_task(coroutine, name=name)
        self._finite.add(task)
        task.add_done_callback(self._finished)
        return task

    async def close(self, grace: float = 5.0) -> None:
        """Gives finite tasks `grace` seconds to end, then cancels all. Push it on the exit stack after what tasks use."""
        if self._finite:
            await asyncio.wait(list(self._finite), timeout=grace)
        tasks = [*self._endless, *self._finite]
        self._endless.clear()
        pending = set(tasks)
        while pending:
            for task in pending:
                task.cancel()
            # Told again when it did not hear: a library may take a cancellation for its own, as `asyncio.wait_for` of 3.11 does.
            _, pending = await asyncio.wait(pending, timeout=_DEAF_SECONDS)
            for task in pending:
                _log.warning("a task does not end although it was cancelled", task=task.get_name())
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task not in self._endless:
            return
        self._endless.discard(task)
        if not task.cancelled():
            self._on_death(task.get_name(), task.exception())

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._finite.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("background task failed", task=task.get_name(), exc_info=task.exception())


class Lifecycle:
    """One process's life: `stopping` is set by a signal, by a dead background task, or by `stop`."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()
        self.background = Background(self._died)
        self.failed = False

    def stop(self) -> None:
        """Begins an orderly stop."""
        self.stopping.set()

    def fail(self, why: str) -> None:
        """Begins a stop that ends with exit code 1."""
        _log.error("stopping because of a failure", why=why)
        self.failed = True
        self.stopping.set()

    async def wait(self) -> None:
        """Returns when the process is to stop."""
        await self.stopping.wait()

    def _died(self, name: str, cause: BaseException | None) -> None:
        _log.error("background task died", task=name, exc_info=cause)
        self.fail(f"{name} ended")


Migrate = Callable[[Any], Awaitable[None]]
Opener = Callable[[Any, Lifecycle], AbstractAsyncContextManager[Running]]


def main(
    config_class: type[configuration.ServiceConfig],
    running: Opener,
    argv: list[str] | None = None,
    *,
    migrate: Migrate | None = None,
) -> int:
    """Runs a service until it is told to stop, or with the word `migrate` prepares its database.

    Returns the exit code: 0 stopped or done, 1 crashed, 2 wrong configuration.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {config_class.SERVICE}")
    parser.add_argument("--config", type=Path, help="TOML file; NARU_* variables win over it")
    if migrate is not None:
        parser.add_argument("command", nargs="?", choices=["migrate"], help="brings the database up to date and ends")
    arguments = parser.parse_args(argv)
    try:
        config = configuration.load(config_class, os.environ, arguments.config)
    except configuration.ConfigError as error:
        print(f"{config_class.SERVICE}: {error}", file=sys.stderr)  # noqa: T201 -- logs need the configuration
        return EXIT_CONFIG
    logs.configure(config_class.SERVICE, config.log_level)
    if migrate is not None and arguments.command == "migrate":
        return asyncio.run(_migrate(config, migrate))
    return uvloop.run(_run(config, running))


async def _migrate(config: configuration.ServiceConfig, migrate: Migrate) -> int:
    try:
        await migrate(config)
    except (configuration.ConfigError, OSError) as error:
        _log.error("cannot migrate", error=str(error))
        return EXIT_CONFIG if isinstance(error, configuration.ConfigError) else EXIT_CRASH
    return EXIT_OK


async def _run(config: configuration.ServiceConfig, running: Opener) -> int:
    lifecycle = Lifecycle()
    open_many_files()
    with _signals(lifecycle):
        _log.info("starting", config=configuration.describe(config))
        try:
            async with _closing(lifecycle), running(config, lifecycle) as service:
                rarely_look_for_garbage()
                if config.cpus:
                    # By now an engine has its processes, and they may run anywhere.
                    run_on(cpus_from(config.cpus))
                _log.info("serving", port=service.port, ops_port=service.ops_port)
                await lifecycle.wait()
                _log.info("stopping")
        except configuration.ConfigError as error:
            _log.error("wrong configuration", error=str(error))
            return EXIT_CONFIG
        except OSError as error:
            _log.error("cannot start", error=str(error))
            return EXIT_CRASH
        except Exception:  # noqa: BLE001 -- the last frame of the process: log it and exit
            _log.exception("crashed")
            return EXIT_CRASH
    _log.info("stopped")
    return EXIT_CRASH if lifecycle.failed else EXIT_OK


def open_many_files() -> None:
    """Lets this process, and those that it will start, open as many files as it may: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def rarely_look_for_garbage() -> None:
    """What a service is made of stays, and a batch of requests makes more objects than Python waits for by default."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GARBAGE_OBJECTS, 10, 10)


@asynccontextmanager
async def _closing(lifecycle: Lifecycle) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await lifecycle.background.close()


class _signals:  # noqa: N801 -- reads as a function where it is used
    """SIGTERM and SIGINT stop in order; the second one exits at once."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle
        self._signalled = False

    def __enter__(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._received, number)

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)

    def _received(self, number: signal.Signals) -> None:
        # Not whether it is stopping: one that stops because something failed gets to finish at the first signal too.
        if self._signalled:
            os._exit(128 + number)
        self._signalled = True
        self._lifecycle.stop()
