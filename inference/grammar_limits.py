"""How deep and how long what a grammar is made of may be.

Whoever reads a regular expression goes one call deeper for each parenthesis, and a request that nests them by the ten
thousand would end the process and with it everybody's requests. What is long takes minutes of a processor to compile, and
all requests with a grammar share a few threads for that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from naru.errors import NaruError, invalid_argument

MOST_CHARACTERS = 65_536
"""Of one schema, regular expression or grammar."""
MOST_PATTERN_CHARACTERS = 8_192
"""Of a regular expression within a schema."""
MOST_LEVELS = 100
"""Of parentheses in a regular expression, and of objects and lists in a schema."""


def check_grammars(body: Mapping[str, Any]) -> None:
    """Checks all that a request wants its answer to keep to. Raises NaruError INVALID_ARGUMENT naming the field."""
    for field, wish in _wishes(body):
        # A regular expression or grammar that is not within a schema is read by what counts its levels itself.
        _check_size(field, wish)


def _wishes(body: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Every schema, regular expression and grammar, by the field that it came in."""
    wish = body.get("structured_outputs")
    if isinstance(wish, dict):
        for name in ("json", "structural_tag"):
            yield "structured_outputs", _decoded(wish.get(name))
        for name in ("regex", "grammar", "choice"):
            yield "structured_outputs", wish.get(name)
    yield "response_format", body.get("response_format")
    tools = body.get("tools")
    for number, tool in enumerate(tools if isinstance(tools, list) else ()):
        yield f"tools[{number}]", tool


def _decoded(wish: object) -> object:
    """JSON that came as text, if it is any."""
    if not isinstance(wish, str):
        return wish
    try:
        return json.loads(wish)
    except (ValueError, RecursionError):
        return wish


def _check_size(field: str, schema: object) -> None:
    size, waiting = 0, [(schema, 0)]
    while waiting:
        item, level = waiting.pop()
        size += len(item) if isinstance(item, str) else 2
        if size > MOST_CHARACTERS:
            raise _too_long(field, MOST_CHARACTERS)
        if level > MOST_LEVELS:
            raise _too_deep(field)
        if isinstance(item, list):
            waiting.extend((member, level + 1) for member in item)
        elif isinstance(item, dict):
            size += sum(map(len, item))
            waiting.extend((member, level + 1) for member in item.values())
            for pattern in _patterns(item):
                _check_pattern(field, pattern)


def _patterns(schema: Mapping[str, object]) -> Iterator[str]:
    """The regular expressions that an object of a schema, or of a structural tag, brings itself."""
    for name in ("pattern", "regex"):
        pattern = schema.get(name)
        if isinstance(pattern, str):
            yield pattern
    named = schema.get("patternProperties")
    if isinstance(named, dict):
        yield from named


def _check_pattern(field: str, pattern: str) -> None:
    """Counts parentheses that are escaped or in a class too: nobody needs hundreds of them open at once."""
    if len(pattern) > MOST_PATTERN_CHARACTERS:
        raise _too_long(field, MOST_PATTERN_CHARACTERS)
    if "\0" in pattern:
        raise invalid_argument(field, f"`{field}` holds a regular expression with a NUL character.")
    level = 0
    for character in pattern:
        level = level + 1 if character == "(" else max(0, level - 1) if character == ")" else level
        if level > MOST_LEVELS:
            raise _too_deep(field)


def _too_long(field: str, most: int) -> NaruError:
    return invalid_argument(field, f"`{field}` holds a schema, pattern or grammar of more than {most:,} characters.")


def _too_deep(field: str) -> NaruError:
    return invalid_argument(field, f"`{field}` is nested deeper than {MOST_LEVELS} levels.")
