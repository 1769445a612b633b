"""Answers of real vLLM that have to keep to a JSON schema: 50 of them, large numbers, orders of keys, and what is no schema."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import pytest_asyncio

from inference.vllm_engine import VllmEngine
from naru.errors import NaruError, Reason
from tests.support.answering import answer, chunks

pytestmark = [
    pytest.mark.faults,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Describe Paris as JSON."}],
    "temperature": 0,
}
SHORT = {"type": "string", "maxLength": 8}
LARGE = 9_007_199_254_740_993  # one more than a double can tell apart
_LEAF: list[dict[str, Any]] = [
    SHORT,
    {"type": "string", "enum": ["red", "green", "초록"]},
    {"type": "string", "pattern": "^[a-z]{2,4}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "boolean"},
    {"type": "null"},
    {"const": 7},
    {"const": "나루"},
    {"enum": [1, "one", None, True]},
    {"type": "integer", "minimum": 1, "maximum": 9},
    {"type": "integer", "enum": [10, 200, 3000]},
    {"type": "number", "enum": [0.5, 1.25]},
    {"type": "integer", "const": LARGE},
    {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    {"type": ["boolean", "null"]},
]


def _closed(properties: dict[str, Any], required: list[str] | None = None, **more: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False} | more


def _schemas() -> dict[str, dict[str, Any]]:
    """Fifty that end by themselves, since the model would not end them."""
    found: list[tuple[str, dict[str, Any]]] = []
    for index, leaf in enumerate(_LEAF):
        found.append((f"field {index}", _closed({"value": leaf})))
        found.append(
            (f"items {index}", _closed({"values": {"type": "array", "items": leaf, "minItems": 1, "maxItems": 2}}))
        )
    person = _closed({"name": SHORT, "adult": {"type": "boolean"}})
    nested = _closed({"a": _closed({"b": _closed({"c": _closed({"d": {"type": "boolean"}})})})})
    found += [
        ("bare enum", {"enum": ["yes", "no"]}),
        ("bare array", {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}),
        ("bare integer", {"type": "integer", "minimum": 1, "maximum": 5}),
        ("nested", nested),
        ("reference", {"$defs": {"person": person}} | _closed({"who": {"$ref": "#/$defs/person"}})),
        (
            "two of one kind",
            {"$defs": {"person": person}} | _closed({n: {"$ref": "#/$defs/person"} for n in ("z", "a")}),
        ),
        ("either", _closed({"it": {"anyOf": [person, {"type": "boolean"}]}})),
        ("one of", _closed({"it": {"oneOf": [_closed({"x": {"const": 1}}), _closed({"y": {"const": 2}})]}})),
        ("optional", _closed({"must": {"type": "boolean"}, "may": {"type": "boolean"}}, ["must"])),
        ("keys against the alphabet", _closed({name: {"type": "boolean"} for name in ("z", "m", "a", "k")})),
        ("keys that are numbers", _closed({str(number): {"type": "boolean"} for number in (10, 9, 1)})),
        ("keys of other scripts", _closed({"이름": SHORT, "ключ": {"type": "boolean"}, "a b": {"type": "null"}})),
        ("many keys", _closed({f"key_{number}": {"type": "boolean"} for number in range(16)})),
        (
            "a pair",
            {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 1}], "items": False, "minItems": 2},
        ),
        (
            "titles and descriptions",
            _closed({"x": {"type": "boolean", "title": "X", "description": "an x"}}, title="T"),
        ),
        ("a large bound", _closed({"big": {"type": "integer", "minimum": LARGE, "maximum": LARGE + 2}})),
    ]
    return dict(found)


SCHEMAS = _schemas()


def _asking(schema: Any) -> dict[str, Any]:
    described = {"name": "it", "schema": schema, "strict": True}
    return ASK | {"max_tokens": 220, "response_format": {"type": "json_schema", "json_schema": described}}


@pytest.fixture(scope="module")
def no_spaces(default_model: Path) -> dict[str, int]:
    """A bias against tokens of white space: it is always allowed between values, and a small model may go on with it for ever."""
    vocabulary = json.loads((default_model / "tokenizer.json").read_text())["model"]["vocab"]
    # As a byte-level tokenizer writes space, line feed, carriage return and tab.
    return {str(number): -100 for text, number in vocabulary.items() if not text.strip("ĠĊčĉ")}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def answers(engine: VllmEngine, no_spaces: dict[str, int]) -> dict[str, dict[str, Any]]:
    """What is answered for each schema, all asked at once."""
    assert len(SCHEMAS) == 50
    asked = (answer(engine, **_asking(schema), logit_bias=no_spaces) for schema in SCHEMAS.values())
    return dict(zip(SCHEMAS, await asyncio.gather(*asked), strict=True))


@pytest.mark.parametrize("name", SCHEMAS)
async def test_an_answer_keeps_to_its_schema(answers: dict[str, dict[str, Any]], name: str) -> None:
    """It ends by itself, validates, and has its keys in the schema's order."""
    (choice,) = answers[name]["choices"]
    assert choice["finish_reason"] == "stop", choice["message"]
    said, schema = json.loads(choice["message"]["content"]), SCHEMAS[name]
    jsonschema.validate(said, schema)
    if isinstance(said, dict):
        assert list(said) == [key for key in schema["properties"] if key in said]


async def test_large_integers_stay_as_they_are(engine: VllmEngine) -> None:
    """A number that a double cannot hold comes out digit by digit, whole and streamed."""
    body = _asking(_closed({"big": {"const": LARGE}}))
    whole = (await answer(engine, **body))["choices"][0]["message"]["content"]
    streamed = "".join(
        choice["delta"].get("content") or "" for chunk in await chunks(engine, **body) for choice in chunk["choices"]
    )
    assert json.loads(whole) == json.loads(streamed) == {"big": LARGE}


@pytest.mark.parametrize(
    "wrong",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/nowhere"}}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": 7}}},
        {"structured_outputs": {"regex": "[a-"}},
        {"structured_outputs": {"regex": "(" * 200}},
        {"structured_outputs": {"grammar": "root ::= nothing"}},
        {"structured_outputs": {"json": "{"}},
        {"structured_outputs": {"choice": []}},
    ],
)
async def test_what_is_no_schema_is_refused_before_any_token(engine: VllmEngine, wrong: dict[str, Any]) -> None:
    """It is an INVALID_ARGUMENT that names the field, and the engine generated nothing."""
    before = engine.counters()
    with pytest.raises(NaruError) as caught:
        await answer(engine, **(ASK | {"max_tokens": 5} | wrong))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.metadata["field"].startswith(next(iter(wrong)))
    assert engine.counters().completion_tokens == before.completion_tokens


async def test_compiling_a_schema_holds_nobody_up(
    engine: VllmEngine, record_property: Callable[[str, object], None]
) -> None:
    """Somebody else's tokens go on coming while a large schema is compiled; how long they let wait is in the report."""
    large = _closed({f"field_{number}": {"enum": [f"{number}-{one}" for one in range(20)]} for number in range(30)})
    came: list[float] = []
    other = asyncio.create_task(
        chunks(engine, lambda: came.append(time.monotonic()), **ASK, max_tokens=400, ignore_eos=True)
    )
    while len(came) < 50:
        await asyncio.sleep(0.01)
    before = len(came)
    await answer(engine, **(_asking(large) | {"max_tokens": 1}))
    meanwhile = came[before - 1 :]
    await other
    gaps = [after - before for before, after in itertools.pairwise(meanwhile)]
    undisturbed = max(after - before for before, after in itertools.pairwise(came[5:before]))
    # A token that comes later than others do is no failure on a machine with other work.
    longest, usual = round(max(gaps) * 1_000), round(undisturbed * 1_000)
    record_property("longest_gap_ms", longest)
    record_property("longest_gap_before_ms", usual)
    print(
        f"compiled in {sum(gaps) * 1_000:.0f} ms, the longest gap between two tokens {longest} ms, {usual} ms before it"
    )
    assert len(gaps) > 1
