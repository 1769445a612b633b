"""Which of vLLM's parsers read what a model writes when it calls tools or thinks, chosen by the model's name."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

NO_PARSER = "none"


@dataclass(frozen=True, slots=True)
class ParserNames:
    """vLLM's names of the parsers; empty for none. `guessed`: the operator named neither of them."""

    tool_calls: str = ""
    reasoning: str = ""
    guessed: bool = field(default=False, compare=False)


_FAMILIES: tuple[tuple[str, ParserNames], ...] = (
    (r"gpt[-_]oss", ParserNames("openai", "openai_gptoss")),
    (r"deepseek-r1-distill", ParserNames("", "deepseek_r1")),
    (r"deepseek-r1", ParserNames("deepseek_v3", "deepseek_r1")),
    (r"deepseek-v3\.2", ParserNames("deepseek_v32", "deepseek_v3")),
    (r"deepseek-v3\.1", ParserNames("deepseek_v31", "deepseek_v3")),
    (r"deepseek-v3", ParserNames("deepseek_v3")),
    (r"qwen3.*coder", ParserNames("qwen3_coder")),
    # These two never think, whatever else their family does.
    (r"qwen3.*(instruct|embedding|reranker)", ParserNames("hermes")),
    (r"qwen3", ParserNames("hermes", "qwen3")),
    (r"qwq", ParserNames("hermes", "deepseek_r1")),
    (r"qwen|hermes|smollm2", ParserNames("hermes")),
    (r"llama-?4", ParserNames("llama4_pythonic")),
    (r"llama-?3", ParserNames("llama3_json")),
    (r"magistral", ParserNames("mistral", "mistral")),
    (r"mistral|mixtral|ministral|devstral", ParserNames("mistral")),
    (r"glm-4\.7", ParserNames("glm47", "glm47")),
    (r"glm-4\.[56]", ParserNames("glm45", "glm45")),
    (r"kimi-k2", ParserNames("kimi_k2")),
    (r"minimax-m2", ParserNames("minimax_m2", "minimax_m2")),
    (r"granite-4", ParserNames("granite4")),
    (r"granite-3", ParserNames("granite")),
    (r"phi-4-mini", ParserNames("phi4_mini_json")),
    (r"functiongemma", ParserNames("functiongemma")),
    (r"gemma-4", ParserNames("gemma4", "gemma4")),
    (r"internlm", ParserNames("internlm")),
)
"""The first that is found in the model's name decides."""


def choose_parsers(model: str, tool_calls: str, reasoning: str) -> ParserNames:
    """The parsers to use.

    Args:
        model: A model's folder, or its id on the hub.
        tool_calls: What the operator says: a parser, "none", or empty for what fits the model's family.
        reasoning: As `tool_calls`.
    """
    family = _family(_names(model))
    names = _chosen(tool_calls, family.tool_calls), _chosen(reasoning, family.reasoning)
    return ParserNames(*names, guessed=not tool_calls and not reasoning)


def _chosen(said: str, by_family: str) -> str:
    return "" if said == NO_PARSER else said or by_family


def _family(names: str) -> ParserNames:
    return next((parsers for pattern, parsers in _FAMILIES if re.search(pattern, names)), ParserNames())


def _names(model: str) -> str:
    """What a model is called: the last part of its path, and the name in its configuration where it is a folder."""
    folder = Path(model)
    names = folder.name
    try:
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names += f" {configuration.get('_name_or_path', '')} {configuration.get('model_type', '')}"
    except (OSError, ValueError, AttributeError):
        pass
    return names.lower()
