"""Front ends, each with an engine that is played behind it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.installation import Installation, installation
from naru.testing.redis_server import free_port
from tests.support.otlp import Receiver
from tests.support.platform import MODEL, Platform, until

_START_SECONDS = 120
_STOP_SECONDS = 10
_LAG_SECONDS = 0.5  # until a router has hung up too
_BESIDE_INFERENCE = ("edge", "authsvc", "accounting")
_MOCK_MODEL = "mock"
_KEY = "sk-bench"
"""LiteLLM does not start without one; it is compared with this setting alone. The others check none."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One that runs.

    Attributes:
        url: Without a path.
        pids: Its own processes, by name; the first is the one that clients talk to.
        engine: Process of the engine behind it.
        generated: How many tokens that engine has generated so far, once it has nothing to do.
        databases: Processes of what it keeps its books in, by name.
    """

    name: str
    url: str
    key: str
    model: str
    pids: Mapping[str, int]
    engine: int
    generated: Callable[[], float]
    databases: Mapping[str, int] = field(default_factory=dict)

    def body(self, tokens: int, *, stream: bool) -> dict[str, Any]:
        """A request for an answer of so many tokens."""
        messages = [{"role": "user", "content": "Tell me about ferries."}]
        asked = {"model": self.model, "messages": messages, "max_tokens": tokens, "stream": stream}
        # The simulated engine ends an answer by itself; the one that is played never does.
        return asked | ({"ignore_eos": True} if self.model == MODEL else {})

    def ask(self) -> None:
        """Asks for one token. Raises OSError when there is no answer, or urllib.error.HTTPError."""
        headers = {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"}
        data = json.dumps(self.body(1, stream=False)).encode()
        request = urllib.request.Request(f"{self.url}/v1/chat/completions", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()


@contextmanager
def naru(pace: float, environ: Mapping[str, str] | None = None) -> Iterator[Contestant]:
    """Naru, installed as `simulated` says."""
    with simulated(pace, environ or {}) as installed:
        yield contestant_of(installed)


@contextmanager
def simulated(pace: float, environ: Mapping[str, str]) -> Iterator[Installation]:
    """Naru with everything on, on its simulated engine.

    Args:
        pace: Seconds between the tokens of a stream; 0 for as fast as it goes.
        environ: Further settings, which win.
    """
    own = {
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": str(1 / pace if pace else "inf"),
        "NARU_INFERENCE_SIMULATED_PREFILL_SECONDS": "0",
    }
    with everything_on(own | dict(environ)) as installed:
        yield installed


def contestant_of(installed: Installation) -> Contestant:
    """An installation on the simulated engine as one of those that are compared."""
    return naru_in(installed, _BESIDE_INFERENCE, engine=installed.naru.service_ids("inference")[0])


@contextmanager
def everything_on(environ: Mapping[str, str]) -> Iterator[Installation]:
    """Naru: keys, five kinds of limits, ledger with prices and credit, metrics, and one trace of a hundred."""
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as folder, Receiver() as receiver:
        tracing = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": "0.01",
        }
        with installation(Path(folder), tracing | dict(environ)) as installed:
            yield installed


def naru_in(installed: Installation, services: Sequence[str], *, engine: int) -> Contestant:
    """The contestant, with those of its services that are not its engine."""
    running = installed.naru
    return Contestant(
        name="Naru",
        url=running.url,
        key=running.new_key(description="bench", tier="busy"),
        model=MODEL,
        pids={service: running.service_ids(service)[0] for service in services},
        engine=engine,
        generated=lambda: _metered(running),
        databases={"Redis": running.redis_ids()[0], "PostgreSQL": installed.postgres.pid},
    )


def _metered(running: Platform) -> float:
    until(lambda: not running.metric("inference", "naru_inference_generations"), _STOP_SECONDS, "an idle engine")
    return running.metric("inference", "naru_inference_completion_tokens_total")


@contextmanager
def others(names: Sequence[str], executables: Path, pace: float) -> Iterator[list[Contestant]]:
    """Of `smg`, `vllm-router` and `litellm` those that are named, all before one engine that is played.

    Args:
        names: In this order.
        executables: Folder with their commands.
        pace: Seconds between the tokens of a stream.
    """
    port = free_port()
    played = [sys.executable, "-m", "bench.streaming.mock", "--port", str(port), "--pace", str(pace)]
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as folder, _process(played, Path(folder)) as engine:
        _wait(f"http://127.0.0.1:{port}/v1/models")
        with _each(names, executables, Path(folder), port, engine.pid) as contestants:
            yield contestants


@contextmanager
def _each(
    names: Sequence[str], executables: Path, folder: Path, engine_port: int, engine: int
) -> Iterator[list[Contestant]]:
    if not names:
        yield []
        return
    name, port = names[0], free_port()
    command = [str(executables / name), *_options(name, folder, port, f"http://127.0.0.1:{engine_port}")]
    with _process(command, folder) as process, _each(names[1:], executables, folder, engine_port, engine) as more:
        contestant = Contestant(
            name=name,
            url=f"http://127.0.0.1:{port}",
            key=_KEY,
            model=_MOCK_MODEL,
            pids={name: process.pid},
            engine=engine,
            generated=lambda: _written(engine_port),
        )
        _wait_until_it_answers(contestant)
        yield [contestant, *more]


def _written(engine_port: int) -> float:
    time.sleep(_LAG_SECONDS)
    with urllib.request.urlopen(f"http://127.0.0.1:{engine_port}/written", timeout=10) as answer:
        return float(answer.read())


def _options(name: str, folder: Path, port: int, engine: str) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    match name:
        case "smg":
            return ["launch", *where, "--worker-urls", engine, "--prometheus-port", str(free_port())]
        case "vllm-router":
            return [*where, "--worker-urls", engine, "--prometheus-port", str(free_port())]
        case "litellm":
            entry = {"model": f"openai/{_MOCK_MODEL}", "api_base": f"{engine}/v1", "api_key": "none"}
            config = folder / "litellm.yaml"
            # JSON is YAML too.
            models = [{"model_name": _MOCK_MODEL, "litellm_params": entry}]
            config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": _KEY}}))
            return [*where, "--config", str(config), "--num_workers", "1"]
    raise ValueError(f"{name} is not known: there are smg, vllm-router and litellm")


@contextmanager
def _process(command: Sequence[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Runs in a session of its own, which ends as a whole: some have workers."""
    with (folder / f"{Path(command[0]).name}.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                _ = process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                _ = process.wait()


def _wait(url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _wait_until_it_answers(contestant: Contestant) -> None:
    """A router is up before it has found its engine healthy."""
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            contestant.ask()
        except OSError:  # an HTTPError is one
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return
