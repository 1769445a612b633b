"""What the inference service takes as configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference.config import InferenceConfig
from naru.config import ConfigError, load


def test_defaults_are_usable() -> None:
    """Nothing has to be set."""
    config = load(InferenceConfig, {})
    assert config.engine == "vllm"
    assert config.engine_arguments() == {}


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("NARU_INFERENCE_ENGINE", "magic"),
        ("NARU_INFERENCE_MODEL", ""),
        ("NARU_INFERENCE_ENGINE_ARGS", "[1]"),
        ("NARU_INFERENCE_ENGINE_ARGS", "{"),
        ("NARU_INFERENCE_SESSION_BUFFER_BYTES", "0"),
        ("NARU_INFERENCE_MAX_RUNNING", "0"),
        ("NARU_INFERENCE_QUEUE_LENGTH", "-1"),
        ("NARU_INFERENCE_SESSION_PORT", "65536"),
        ("NARU_INFERENCE_QUEUE_SECONDS", "0"),
        ("NARU_INFERENCE_TIER_WEIGHTS", "[]"),
        ("NARU_INFERENCE_TIER_WEIGHTS", '{"pro": 0}'),
        ("NARU_INFERENCE_TIER_WEIGHTS", '{"pro": true}'),
        ("NARU_INFERENCE_TIER_WEIGHTS", '{"pro": NaN}'),
    ],
)
def test_values_that_make_no_sense_are_named(variable: str, value: str) -> None:
    """The error names the variable."""
    with pytest.raises(ConfigError, match=variable):
        load(InferenceConfig, {variable: value})


def test_engine_arguments_are_json() -> None:
    """They keep their types."""
    config = load(InferenceConfig, {"NARU_INFERENCE_ENGINE_ARGS": '{"max_model_len": 512, "enforce_eager": true}'})
    assert config.engine_arguments() == {"max_model_len": 512, "enforce_eager": True}


def test_tiers_have_weights() -> None:
    """Those that are named; nothing has to be."""
    assert load(InferenceConfig, {}).weights_by_tier() == {}
    config = load(InferenceConfig, {"NARU_INFERENCE_TIER_WEIGHTS": '{"pro": 4, "free": 0.5}'})
    assert config.weights_by_tier() == {"pro": 4, "free": 0.5}


def test_the_served_name_comes_from_the_model(tmp_path: Path) -> None:
    """A directory serves under its own name, a hub id under its id, unless a name is given."""
    (tmp_path / "tiny").mkdir()
    assert InferenceConfig(model=str(tmp_path / "tiny")).served_name() == "tiny"
    assert InferenceConfig(model="org/tiny").served_name() == "org/tiny"
    assert InferenceConfig(model="org/tiny", served_model_name="mine").served_name() == "mine"
