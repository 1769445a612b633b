"""Which layer a sample of a stack belongs to, in what `py-spy record -f raw --full-filenames` writes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_PACKAGES = {
    "Naru's own code": ("edge", "authsvc", "accounting", "inference", "naru"),
    "grpc": ("grpc", "grpc_health", "grpc_reflection", "grpc_status"),
    "aiohttp": ("aiohttp", "multidict", "yarl", "aiosignal", "frozenlist"),
    "protobuf": ("google",),
    "OpenTelemetry": ("opentelemetry",),
    "redis": ("redis",),
    "SQLAlchemy, asyncpg": ("sqlalchemy", "asyncpg", "aiosqlite"),
}
_LAYER = {package: layer for layer, packages in _PACKAGES.items() for package in packages}
_LOOP, _OTHER = "event loop", "other"
LAYERS = (*_PACKAGES, _LOOP, _OTHER)
_STUBS = "naru/api/"
"""What protobuf's compiler wrote: messages, and the calls of clients and servers."""
_LOOP_PACKAGES = ("asyncio/runners.py", "asyncio/base_events.py", "asyncio/events.py", "uvloop/__init__.py")
_LOOP_FUNCTIONS = {"run", "run_forever", "run_until_complete", "_run_once", "_run"}
_FRAME = re.compile(r"^(.*) \((.*?)(?::\d+)?\)$")
_THREAD = "threading.py"
# What a path begins with before the package: of an environment, of Python itself, of this tree, in which an environment may lie.
_PREFIX = re.compile(rf"^(?:.*/site-packages/|.*/lib/python3\.\d+/|{re.escape(str(Path(__file__).parents[2]))}/)")


def shares(samples: Counter[str]) -> dict[str, float]:
    """Per cent of the samples by layer, all of `LAYERS` named; empty where there are none."""
    total = samples.total()
    return {layer: 100 * samples[layer] / total for layer in LAYERS} if total else {}


def samples_of(raw: str) -> Counter[str]:
    """How many samples each layer has."""
    samples: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        samples[layer_of(stack.split(";"))] += int(count)
    return samples


def layer_of(frames: Sequence[str]) -> str:
    """The layer of the innermost frame that belongs to a known package.

    Frames are outermost first. What runs an event loop is left out: the process's `main` is on every stack, and does nothing.
    A loop that calls nobody works by itself, which in uvloop is C that no frame tells apart. A thread that is C altogether is
    gRPC's, which waits for its sockets there.
    """
    layer = _OTHER
    for frame in frames:
        function, path = _function_and_path(frame)
        package = path.partition("/")[0]
        if _runs_a_loop(function, path):
            layer = _LOOP
        elif path.startswith(_STUBS):
            layer = "protobuf"
        elif package in _LAYER:
            layer = _LAYER[package]
    return "grpc" if frames and _function_and_path(frames[-1]) == ("Thread.run", _THREAD) else layer


def _function_and_path(frame: str) -> tuple[str, str]:
    match = _FRAME.match(frame)
    return (match[1], _PREFIX.sub("", match[2])) if match else ("", "")


def _runs_a_loop(function: str, path: str) -> bool:
    """Other functions of it, such as `gather`, work for whoever calls them."""
    return path.startswith(_LOOP_PACKAGES) and function.rpartition(".")[2] in _LOOP_FUNCTIONS
