"""Limits as headers, configuration, the choice of a replica, and what importing the edge loads."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edge.accounts import LimitKind, LimitScope, LimitState, LimitWindow
from edge.config import EdgeConfig
from edge.generation import GenerationRequest, GenerationStream, ServedModel
from edge.limits import format_duration, limit_headers
from edge.openapi import document
from edge.replicas import ReplicaPool
from edge.routes.table import ALIASES, ALL_ROWS
from naru import config
from naru.errors import NaruError, Reason


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.012, "12ms"),
        (0.0121, "13ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (90.951, "1m30.951s"),
        (3630, "1h0m30s"),
        (-1, "0ms"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    """Spans are written as OpenAI writes them."""
    assert format_duration(seconds) == text


def test_tightest_limit_is_shown() -> None:
    """Of several limits of a kind the tightest is shown; those of minute and hour have headers of their own."""

    def state(kind: LimitKind, window: LimitWindow, limit: int, remaining: int) -> LimitState:
        return LimitState(LimitScope.KEY, kind, window, limit, remaining, 1.5)

    headers = limit_headers(
        [
            state(LimitKind.CONCURRENCY, LimitWindow.NONE, 4, 0),
            state(LimitKind.TOTAL_TOKENS, LimitWindow.MINUTE, 1000, 10),
            state(LimitKind.REQUESTS, LimitWindow.HOUR, 100, 5),
            state(LimitKind.REQUESTS, LimitWindow.MINUTE, 10, 9),
            state(LimitKind.OUTPUT_TOKENS, LimitWindow.DAY, 5000, 4000),
        ]
    )
    assert headers == {
        "X-RateLimit-Limit-Requests": "100",
        "X-RateLimit-Remaining-Requests": "5",
        "X-RateLimit-Reset-Requests": "1.5s",
        "X-RateLimit-Limit-Tokens": "1000",
        "X-RateLimit-Remaining-Tokens": "10",
        "X-RateLimit-Reset-Tokens": "1.5s",
        "X-RateLimit-Limit-Minute": "10",
        "X-RateLimit-Remaining-Minute": "9",
        "X-RateLimit-Limit-Hour": "100",
        "X-RateLimit-Remaining-Hour": "5",
    }
    assert limit_headers([]) == {}


def test_only_limits_that_can_refuse_are_shown() -> None:
    """A shadow limit, however tight, has no header, and one of money never; a day's or month's has the general ones."""

    def state(kind: LimitKind, window: LimitWindow, limit: int, *, shadow: bool = False, model: str = "") -> LimitState:
        return LimitState(LimitScope.WORKSPACE, kind, window, limit, limit - 1, 90_000.0, model=model, shadow=shadow)

    headers = limit_headers(
        [
            state(LimitKind.COST, LimitWindow.MONTH, 1),
            state(LimitKind.REQUESTS, LimitWindow.MINUTE, 2, shadow=True),
            state(LimitKind.TOTAL_TOKENS, LimitWindow.DAY, 3, shadow=True),
            state(LimitKind.REQUESTS, LimitWindow.MONTH, 4, model="m"),
            state(LimitKind.REQUESTS, LimitWindow.DAY, 5),
            state(LimitKind.INPUT_TOKENS, LimitWindow.MONTH, 6),
        ]
    )
    assert headers == {
        "X-RateLimit-Limit-Requests": "4",
        "X-RateLimit-Remaining-Requests": "3",
        "X-RateLimit-Reset-Requests": "25h0m0s",
        "X-RateLimit-Limit-Tokens": "6",
        "X-RateLimit-Remaining-Tokens": "5",
        "X-RateLimit-Reset-Tokens": "25h0m0s",
    }


def test_a_limit_for_all_time_has_no_reset() -> None:
    """What is left of it is shown; when it is free again is never."""
    state = LimitState(LimitScope.KEY, LimitKind.TOTAL_TOKENS, LimitWindow.TOTAL, 100, 7, None)
    assert limit_headers([state]) == {"X-RateLimit-Limit-Tokens": "100", "X-RateLimit-Remaining-Tokens": "7"}


def test_configuration_from_variables() -> None:
    """Aliases and lists come from variables."""
    loaded = config.load(
        EdgeConfig, {"NARU_EDGE_MODEL_ALIASES": "gpt-4o-mini=small, gpt-4o = big", "NARU_EDGE_PORT": "81"}
    )
    assert loaded.aliases() == {"gpt-4o-mini": "small", "gpt-4o": "big"}
    assert loaded.port == 81


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MODEL_ALIASES", "gpt-4o"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("MAX_BODY_BYTES", "99999999"),
        ("REQUEST_TIMEOUT", "0"),
        ("BODY_TIMEOUT", "-1"),
    ],
)
def test_wrong_configuration_is_named(name: str, value: str) -> None:
    """A value that makes no sense is an error that names its variable."""
    with pytest.raises(config.ConfigError, match=f"NARU_EDGE_{name}"):
        config.load(EdgeConfig, {f"NARU_EDGE_{name}": value})


@dataclass
class FakeReplica:
    """A replica in a given state, which records what is submitted."""

    address: str
    names: tuple[str, ...] = ("m",)
    connected: bool = True
    draining: bool = False
    away: bool = False
    outstanding: int = 0
    load: int = 0
    submitted: list[GenerationRequest] = field(default_factory=list)

    @property
    def models(self) -> dict[str, ServedModel]:
        return {name: ServedModel(name, "naru", 0.0, 100) for name in self.names}

    def submit(self, request: GenerationRequest) -> GenerationStream:
        self.submitted.append(request)
        return None  # type: ignore[return-value] # nobody looks at it


def chosen(*replicas: FakeReplica, without: tuple[str, ...] = ()) -> str:
    request: Any = type("Request", (), {"model": "m"})()
    ReplicaPool(replicas).submit(request, without)
    return next(replica.address for replica in replicas if replica.submitted)


def test_least_busy_replica() -> None:
    """The replica with the fewest requests of ours is taken, then the one with the fewest of all."""
    assert chosen(FakeReplica("a", outstanding=2), FakeReplica("b", outstanding=1, load=9)) == "b"
    assert chosen(FakeReplica("a", load=2), FakeReplica("b", load=1)) == "b"
    assert chosen(FakeReplica("a"), FakeReplica("b", outstanding=5), without=("a",)) == "b"
    assert chosen(FakeReplica("a", draining=True), FakeReplica("b", outstanding=5)) == "b"
    assert chosen(FakeReplica("a", away=True), FakeReplica("b", outstanding=5)) == "b"
    assert chosen(FakeReplica("a", connected=False), FakeReplica("b", outstanding=5)) == "b"
    assert chosen(FakeReplica("a", names=("other",)), FakeReplica("b", outstanding=5)) == "b"


@pytest.mark.parametrize(
    ("replicas", "model", "reason"),
    [
        ((FakeReplica("a"),), "x", Reason.MODEL_NOT_FOUND),
        ((FakeReplica("a", connected=False),), "m", Reason.SERVICE_UNAVAILABLE),
        ((FakeReplica("a", connected=False, names=()),), "m", Reason.SERVICE_UNAVAILABLE),
        ((FakeReplica("a", connected=False), FakeReplica("b", names=("o",))), "m", Reason.SERVICE_UNAVAILABLE),
        ((FakeReplica("a", draining=True),), "m", Reason.SERVICE_UNAVAILABLE),
        ((FakeReplica("a", away=True),), "m", Reason.SERVICE_UNAVAILABLE),
        ((), "m", Reason.SERVICE_UNAVAILABLE),
    ],
)
def test_why_a_model_cannot_be_served(replicas: tuple[FakeReplica, ...], model: str, reason: Reason) -> None:
    """Unknown is 404 only when somebody is there to know; what may come back is 503."""
    with pytest.raises(NaruError) as failure:
        ReplicaPool(replicas).check(model)
    assert failure.value.reason is reason


def test_openapi_names_each_operation_once() -> None:
    """Every alias is in the document, and operation ids are unique."""
    paths = document(ALIASES, ALL_ROWS)["paths"]
    assert set(ALIASES) <= set(paths)
    ids = [operation["operationId"] for methods in paths.values() for operation in methods.values()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "module",
    ["gateway", "attempts", "leases", "ports", "replicas", "streams", "generation", "accounts", "limits", "openai/*"],
)
def test_the_story_knows_no_transport(module: str) -> None:
    """What decides knows neither HTTP nor gRPC."""
    files = list((Path(__file__).parents[3] / "edge").glob(f"{module}.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if re.match(r"aiohttp|grpc|naru\.(api\b|client|server|convert)", name)]


def test_no_engine_is_imported() -> None:
    """Importing the edge loads neither torch nor an engine."""
    code = "import edge.app, sys; print([m for m in ('torch', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    root = Path(__file__).parents[3]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
