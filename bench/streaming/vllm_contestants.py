"""Naru and `vllm serve` before one and the same engine: real and tiny, or played."""

from __future__ import annotations

import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.streaming.contestants import Contestant, everything_on, naru_in
from bench.streaming.played_core import played_core
from bench.streaming.tiny_model import make_tiny_model
from tests.support.platform import MODEL, descendants, program
from tests.support.vllm_serve import VllmServe, vllm_serve

ENGINE: dict[str, object] = {
    "load_format": "dummy",
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 2048,
    "max_num_seqs": 256,
    "kv_cache_memory_bytes": 256 << 20,
    "enable_prefix_caching": True,
}
"""Arguments of both. All else is by default, and both ask for the defaults of an API server."""
_SERVICES = ("edge", "authsvc", "accounting", "inference")
# What Naru sets for itself without a GPU: the worker in the core's process, and threads that do not spin.
_ENVIRON = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_WAIT_POLICY": "PASSIVE"}
_GENERATED = "vllm:generation_tokens_total"
_SETTLE_SECONDS = 0.5


@contextmanager
def naru_and_vllm_serve(pace: float | None) -> Iterator[list[Contestant]]:
    """Both run inside the block; takes a minute to start.

    Args:
        pace: Seconds between the steps of a played engine, of which each has its own; None: the real one.
    """
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        make_tiny_model(folder / "tiny")
        yield [stack.enter_context(_naru(folder, pace)), stack.enter_context(_vllm_serve(folder, pace))]


@contextmanager
def _naru(folder: Path, pace: float | None) -> Iterator[Contestant]:
    with _engine(folder / "naru", pace) as (core, variables):
        environ = {
            "NARU_INFERENCE_ENGINE": "vllm",
            "NARU_INFERENCE_MODEL": str(folder / "tiny"),
            "NARU_INFERENCE_ENGINE_ARGS": json.dumps(ENGINE),
            **variables,
        }
        with everything_on(environ) as installed:
            (service,) = installed.naru.service_ids("inference")
            yield naru_in(installed, _SERVICES, engine=core or _core_of(service))


@contextmanager
def _vllm_serve(folder: Path, pace: float | None) -> Iterator[Contestant]:
    arguments = ["--disable-uvicorn-access-log"]
    for name, value in ENGINE.items():
        arguments += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    with (
        _engine(folder / "vllm", pace) as (core, variables),
        vllm_serve(folder / "vllm.log", arguments, variables, folder / "tiny") as served,
    ):
        yield Contestant(
            name="vllm serve",
            url=served.url,
            key="none",
            model=MODEL,
            pids={"vllm serve": served.pid},
            engine=core or _core_of(served.pid),
            generated=lambda: _generated(served),
        )


@contextmanager
def _engine(folder: Path, pace: float | None) -> Iterator[tuple[int | None, Mapping[str, str]]]:
    """The process of a played one, if there is one, and variables for the front end."""
    if pace is None:
        yield None, _ENVIRON
        return
    folder.mkdir()
    with played_core(folder, pace) as (pid, variables):
        yield pid, _ENVIRON | variables


def _core_of(front_end: int) -> int:
    """The engine's first process: vLLM names its own."""
    return next(pid for pid in descendants(front_end) if program(pid).startswith("VLLM::"))


def _generated(served: VllmServe) -> float:
    """Once it does not grow any more: an idle engine does not say that it is."""
    before, now = -1.0, _metric(served, _GENERATED)
    while now != before:
        time.sleep(_SETTLE_SECONDS)
        before, now = now, _metric(served, _GENERATED)
    return now


def _metric(served: VllmServe, name: str) -> float:
    with urllib.request.urlopen(f"{served.url}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))
