"""The search for what somebody holds, and whose a sample of a stack is."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.streaming.capacity import capacity, search
from bench.streaming.layers import layer_of, samples_of, shares

ROOT = Path(__file__).parents[3]
RUN = ("<module> (edge/__main__.py:1)", "Runner.run (/usr/lib/python3.11/asyncio/runners.py:86)")


@pytest.mark.parametrize(
    ("holds", "tried", "most"),
    [
        (300, [64, 128, 256, 320, 384], 256),
        (330, [64, 128, 256, 320, 384], 320),
        (20, [16, 24, 32, 64], 16),
        (0, [1, 2, 4, 8, 16, 32, 64], 0),
        (10_000, [64, 128, 256, 384, 512, 768, 1024, 1536, 2048], 2048),
    ],
)
def test_search_closes_in_on_what_is_held(holds: int, tried: list[int], most: int) -> None:
    """Numbers grow or shrink until one is held and the next is not, and one between them is tried."""
    found = search(lambda streams: 1.0 if streams <= holds else 0.5)
    assert list(found) == tried
    assert capacity(found) == most


@pytest.mark.parametrize(
    ("frames", "layer"),
    [
        (RUN, "event loop"),
        ((*RUN, "Writer.write (edge/writer.py:5)"), "Naru's own code"),
        (
            (*RUN, "Writer.write (edge/writer.py:5)", "gather (/usr/lib/python3.11/asyncio/tasks.py:1)"),
            "Naru's own code",
        ),
        ((*RUN, "call (/x/site-packages/grpc/aio/_call.py:9)", "Stub.__init__ (naru/api/a_pb2_grpc.py:3)"), "protobuf"),
        ((*RUN, "run (/x/site-packages/opentelemetry/instrumentation/grpc/_aio.py:9)"), "OpenTelemetry"),
        ((*RUN, "start (/usr/lib/python3.11/site-packages/aiohttp/web.py:9)"), "aiohttp"),
        ((*RUN, f"start ({ROOT}/.venv/lib/python3.11/site-packages/aiohttp/web.py:9)"), "aiohttp"),
        ((*RUN, f"Writer.write ({ROOT}/edge/writer.py:5)"), "Naru's own code"),
        (("Thread.run (/usr/lib/python3.11/threading.py:971)",), "grpc"),
        (("_worker (/usr/lib/python3.11/concurrent/futures/thread.py:69)",), "other"),
        ((), "other"),
    ],
)
def test_a_sample_is_of_the_innermost_known_package(frames: tuple[str, ...], layer: str) -> None:
    """What runs the loop does not count, and what helps counts for whom it helps."""
    assert layer_of(frames) == layer


def test_shares_are_of_all_samples() -> None:
    """Every layer is told, those without samples too."""
    samples = samples_of(f"{';'.join(RUN)} 3\n{RUN[0]};send (/x/site-packages/redis/asyncio/client.py:1) 1\n")
    told = shares(samples)
    assert (told["event loop"], told["redis"], told["aiohttp"]) == (75.0, 25.0, 0.0)
    assert sum(told.values()) == 100.0
    assert shares(samples_of("")) == {}
