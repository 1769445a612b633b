"""vLLM's EngineCore, played: what vLLM's front end talks to, without a model, so that the front end alone can be measured.

It gives every request one token per step, as an engine on a fast GPU would, whether the front end keeps up or not. vLLM finds
it by its own way to be extended: `connecting` makes a folder with a plugin's entry point, and the variables that name it;
both `vllm serve` and whatever else makes an AsyncLLM then connect to it in place of starting a core.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq

from bench.streaming.tiny_model import CONTROL, TOKENS
from tests.support.platform import ROOT

_VARIABLE = "PLAYED_CORE"
_IDENTITY = (0).to_bytes(2, "little")
_ADD, _ABORT, _UTILITY = b"\x00", b"\x01", b"\x03"
_LENGTH = 1
_DEFAULT_TOKENS = 16
_SAMPLING_PARAMS = 3
_RESULTS: dict[str, Any] = {"get_supported_tasks": ["generate"], "is_scheduler_paused": False, "is_sleeping": False}
"""Of the calls that are answered with more than None."""


class PlayedCore:
    """Speaks the core's side of vLLM's protocol: msgpack over two sockets.

    Args:
        folder: Where the front end's sockets lie, or will.
        pace: Seconds from one step to the next.
    """

    def __init__(self, folder: Path, pace: float) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._asked = context.socket(zmq.DEALER)
        self._asked.setsockopt(zmq.IDENTITY, _IDENTITY)
        self._told = context.socket(zmq.PUSH)
        for socket, address in zip((self._asked, self._told), _addresses(folder).values(), strict=True):
            socket.set_hwm(0)
            socket.connect(address)
        self._pace = pace
        self._left: dict[str, int] = {}
        texts = list(range(len(CONTROL), TOKENS))
        random.Random(1).shuffle(texts)
        self._tokens = itertools.cycle(texts)

    def run(self) -> None:
        """Says that it is ready, and steps for ever."""
        self._asked.send(b"")
        due = time.monotonic()
        while True:
            # With nothing to generate there are no steps.
            while self._asked.poll(math.ceil(max(due - time.monotonic(), 0) * 1000) if self._left else None):
                self._hear(self._asked.recv_multipart())
            self._step()
            due, now = due + self._pace, time.monotonic()
            # What is late after a pause is not made up for.
            due = due if due > now else now + self._pace

    def _hear(self, frames: list[bytes]) -> None:
        kind, body = frames[0], msgspec.msgpack.decode(frames[1])
        if kind == _ADD:
            self._left[body[0]] = body[_SAMPLING_PARAMS].get("max_tokens", _DEFAULT_TOKENS)
        elif kind == _ABORT:
            for request in body:
                _ = self._left.pop(request, None)
        elif kind == _UTILITY:
            _, call, method, _ = body
            self._tell([], [call, None, [None, _RESULTS.get(method)]])

    def _step(self) -> None:
        outputs: list[list[Any]] = []
        for request, left in self._left.items():
            ended = [None, None, None, _LENGTH] if left == 1 else []
            outputs.append([request, [next(self._tokens)], *ended])
        self._left = {request: left - 1 for request, left in self._left.items() if left > 1}
        self._tell(outputs)

    def _tell(self, outputs: list[list[Any]], answer: list[Any] | None = None) -> None:
        message = [0, outputs, None, time.monotonic(), *([] if answer is None else [answer])]
        self._told.send(msgspec.msgpack.encode(message))


def attach() -> None:
    """The plugin: makes every AsyncLLM of this process connect to the core that the environment names."""
    from vllm.v1.engine.async_llm import AsyncLLM

    make = AsyncLLM.__init__

    @functools.wraps(make)
    def connected(self: Any, *args: Any, **options: Any) -> None:
        make(self, *args, **options | {"client_addresses": _addresses(Path(os.environ[_VARIABLE]))})

    AsyncLLM.__init__ = connected  # type: ignore[method-assign] # a plugin has no other way to say where the core is


@contextmanager
def played_core(folder: Path, pace: float) -> Iterator[tuple[int, dict[str, str]]]:
    """Runs one in a process of its own.

    Args:
        folder: Empty; with a short path, as it holds Unix sockets.
        pace: Seconds from one step to the next.

    Yields:
        Its process id, and the variables with which a front end finds it.
    """
    description = folder / "played_core-1.dist-info"
    description.mkdir()
    (description / "METADATA").write_text("Metadata-Version: 2.1\nName: played_core\nVersion: 1\n")
    (description / "entry_points.txt").write_text(f"[vllm.general_plugins]\nplayed_core = {__name__}:attach\n")
    paths = [str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, "-m", "bench.streaming.played_core", "--folder", str(folder), "--pace", str(pace)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            yield process.pid, {_VARIABLE: str(folder), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        finally:
            process.send_signal(signal.SIGKILL)


def _addresses(folder: Path) -> dict[str, str]:
    return {"input_address": f"ipc://{folder}/in", "output_address": f"ipc://{folder}/out"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--pace", type=float, required=True, help="seconds from one step to the next")
    arguments = parser.parse_args()
    PlayedCore(arguments.folder, arguments.pace).run()
