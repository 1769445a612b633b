"""How a renderer is made where the model is not like others of its name. Imports nothing of vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from inference.parser_families import ParserNames, choose_parsers
from inference.vllm_compat import Vllm
from inference.vllm_render import make_renderer
from naru.logs import get_logger


class OnlineRenderer:
    """vLLM's, of a model whose tokenizer has no marks for tool calls."""

    parser = None

    def __init__(self, *_: Any, tool_parser: str | None, **__: Any) -> None:
        if tool_parser is not None:
            raise TypeError(f"{tool_parser} could not locate the tool call token in the tokenizer!")


MODEL = SimpleNamespace(
    max_model_len=8,
    get_diff_sampling_param=dict,
    generation_config="auto",
    override_generation_config={},
)
ENGINE = SimpleNamespace(model_config=MODEL, renderer=SimpleNamespace(tokenizer=None))
VLLM = cast(Vllm, SimpleNamespace(OnlineRenderer=OnlineRenderer))


def test_a_guess_that_does_not_fit_is_dropped() -> None:
    """An old model of a family that calls tools now is served all the same, without tools, and the log says so."""
    guess = choose_parsers("mistralai/Mistral-7B-Instruct-v0.2", "", "")
    assert guess.tool_calls == "mistral"
    with capture_logs() as logs:
        assert isinstance(make_renderer(VLLM, ENGINE, (), guess, get_logger("test")).online, OnlineRenderer)
    assert [line["event"] for line in logs] == ["vllm_parsers_do_not_fit"]


def test_a_parser_that_the_operator_named_must_fit() -> None:
    """Whoever asks for it is told that it cannot be had, before anything is served."""
    named = choose_parsers("mistralai/Mistral-7B-Instruct-v0.2", "mistral", "")
    assert named == ParserNames("mistral")
    with pytest.raises(ValueError, match="NARU_INFERENCE_TOOL_CALL_PARSER"):
        make_renderer(VLLM, ENGINE, (), named, get_logger("test"))
