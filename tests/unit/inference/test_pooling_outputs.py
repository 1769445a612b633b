"""Vectors and scores out of what vLLM says of inputs, whichever order they end in, and however."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from inference.engine import ChoiceOutput
from inference.engine_count import EngineCount
from inference.vllm_pooling_outputs import PoolingOutputs
from naru.errors import Reason
from naru.logs import get_logger

numpy: Any = pytest.importorskip("numpy")
PAIRS = ((0, 1), (0, 2))


@dataclass
class Tensor:
    """As much of torch's as is used."""

    values: list[float]

    def float(self) -> Tensor:
        return self

    def numpy(self) -> Any:
        return numpy.array(self.values, dtype="float32")


def output(*values: float, tokens: int = 3, cached: int = 0, error: object = None) -> Any:
    """As vLLM's PoolingRequestOutput; without numbers, of a request that was aborted."""
    return SimpleNamespace(
        error=error,
        num_cached_tokens=cached,
        prompt_token_ids=[1] * tokens,
        outputs=SimpleNamespace(data=Tensor(list(values))),
    )


class Request:
    """One request's outputs, what its sink heard, and what was counted."""

    def __init__(self, inputs: int, pairs: tuple[tuple[int, int], ...] = (), *, scores: bool = False) -> None:
        self.heard: list[ChoiceOutput] = []
        self.count = EngineCount()
        counted = self.count.begin(inputs, 1)
        self.outputs = PoolingOutputs(inputs, pairs, self.heard.append, counted, get_logger("test"), scores=scores)


def test_vectors_are_written_as_floats() -> None:
    """Little-endian, 32 bits each, by the input's number; every prompt token is counted once all have ended."""
    request = Request(2)
    request.outputs.take(1, output(0.5, -2.0, tokens=4, cached=1))
    assert request.count.ended.requests == 0
    request.outputs.take(0, output(1.0, 0.0))
    assert [(one.choice_index, one.finish_reason) for one in request.heard] == [(1, "stop"), (0, "stop")]
    assert request.heard[0].embedding == struct.pack("<2f", 0.5, -2.0)
    assert (request.heard[0].completion_tokens, request.heard[0].cached_prompt_tokens) == (0, 1)
    ended = request.count.ended
    assert (ended.requests, ended.prompt_tokens, ended.cached_prompt_tokens, ended.completion_tokens) == (1, 7, 1, 0)


def test_scores_come_once_all_vectors_are_there() -> None:
    """The cosine of each pair, whatever the vectors' lengths; the cache is told once."""
    request = Request(3, PAIRS)
    request.outputs.take(2, output(-5.0, 0.0, cached=2))
    request.outputs.take(0, output(2.0, 0.0, cached=1))
    assert request.heard == []
    request.outputs.take(1, output(3.0, 3.0))
    assert [one.score for one in request.heard] == [pytest.approx(math.sqrt(0.5)), pytest.approx(-1.0)]
    assert [one.cached_prompt_tokens for one in request.heard] == [3, 0]


def test_a_vector_of_zeros_has_a_score() -> None:
    """It is like nothing; JSON knows no other answer."""
    request = Request(2, ((0, 1),))
    request.outputs.take(0, output(0.0, 0.0))
    request.outputs.take(1, output(1.0, 0.0))
    assert request.heard[0].score == 0.0


def test_what_is_aborted_ends_as_aborted() -> None:
    """Of vectors each input by itself; of scores every pair that lacks one. Its tokens are counted."""
    request = Request(3, PAIRS)
    for index, told in ((0, output(1.0, 0.0)), (1, output()), (2, output(0.0, 1.0))):
        request.outputs.take(index, told)
    assert [(one.finish_reason, one.score) for one in request.heard] == [("abort", None), ("stop", 0.0)]
    assert request.count.ended.prompt_tokens == 9


def test_scores_of_the_model_itself() -> None:
    """Each pair's as it comes, by its number; one that was aborted has none."""
    request = Request(3, scores=True)
    for index, told in ((2, output(0.75, cached=1)), (0, output(-4.0)), (1, output())):
        request.outputs.take(index, told)
    assert [(one.choice_index, one.finish_reason, one.score) for one in request.heard] == [
        (2, "stop", 0.75),
        (0, "stop", -4.0),
        (1, "abort", None),
    ]
    assert (request.heard[0].embedding, request.heard[0].cached_prompt_tokens) == (b"", 1)
    assert request.count.ended.prompt_tokens == 9


@pytest.mark.parametrize(
    "failure", [RuntimeError("secret"), output(error=object()), output(1.0, math.nan), output(-math.inf)]
)
def test_an_engine_that_fails_ends_the_request(failure: object) -> None:
    """With one error that tells nothing of its cause; nothing more is heard, and nothing is counted."""
    request = Request(2)
    request.outputs.take(0, failure)
    request.outputs.take(1, output(1.0))
    (told,) = request.heard
    assert told.error is not None
    assert getattr(told.error, "reason", None) is Reason.SERVICE_UNAVAILABLE
    assert "secret" not in str(told.error)
    assert request.count.ended.requests == 0


def test_nobody_listens_after_mute() -> None:
    """Neither the sink nor the count hears of what comes then."""
    request = Request(1)
    request.outputs.mute()
    request.outputs.take(0, output(1.0))
    assert (request.heard, request.count.ended.requests) == ([], 0)
