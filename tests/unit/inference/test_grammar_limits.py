"""How deep and how long schemas and patterns may be, before anything native reads them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference.grammar_limits import MOST_CHARACTERS, MOST_LEVELS, MOST_PATTERN_CHARACTERS, check_grammars
from naru.errors import NaruError


def parentheses(levels: int) -> str:
    return "(" * levels + "a" + ")" * levels


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


def ways(schema: Any) -> list[tuple[str, dict[str, Any]]]:
    """Every way in which a schema comes, by the field to blame."""
    return [
        ("structured_outputs", {"structured_outputs": {"json": schema}}),
        ("structured_outputs", {"structured_outputs": {"json": json.dumps(schema)}}),
        ("structured_outputs", {"structured_outputs": {"structural_tag": json.dumps({"format": schema})}}),
        (
            "response_format",
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}},
        ),
        ("tools[0]", {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}),
    ]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "pattern": parentheses(MOST_LEVELS + 1)},
        {"properties": {"a": {"anyOf": [{"pattern": parentheses(30_000)}]}}},
        {"patternProperties": {parentheses(MOST_LEVELS + 1): {}}},
        {"propertyNames": {"pattern": parentheses(MOST_LEVELS + 1)}},
        {"type": "regex", "regex": parentheses(MOST_LEVELS + 1)},
        {"pattern": "a" * (MOST_PATTERN_CHARACTERS + 1)},
        {"pattern": "a\0"},
        {"enum": ["a" * MOST_CHARACTERS]},
        nested(MOST_LEVELS + 1),
    ],
    ids=range(9),
)
def test_what_would_end_the_process_is_refused(schema: dict[str, Any]) -> None:
    """By its field, in whichever way it comes."""
    for field, body in ways(schema):
        with pytest.raises(NaruError) as caught:
            check_grammars(body)
        assert caught.value.metadata["field"] == field


@pytest.mark.parametrize("name", ["regex", "grammar", "json", "choice"])
def test_long_texts(name: str) -> None:
    """Patterns, grammars and what stands for a schema have a length, too."""
    text = "a" * (MOST_CHARACTERS + 1)
    with pytest.raises(NaruError):
        check_grammars({"structured_outputs": {name: [text] if name == "choice" else text}})


def test_what_is_usual_is_not_refused() -> None:
    """Deep enough, long enough, and with parentheses in a description."""
    schema = {
        "description": ":( " * 500,
        "properties": {
            "pattern": {"type": "string", "pattern": parentheses(MOST_LEVELS)},
            "regex": {"enum": ["("] * 500},
        },
        "items": nested(60),
    }
    for _, body in ways(schema):
        check_grammars(body)
    check_grammars({"structured_outputs": None, "tools": [None, "x"], "response_format": 7})
