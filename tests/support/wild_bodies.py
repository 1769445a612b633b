"""Bodies of requests for hypothesis: made of known fields, and of any JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

from tests.support.known_fields import Field

_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 2**64, 10**400, 1e308])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=()), max_size=6)
    | st.sampled_from(["", "text", "none", "auto", "required", "\ud800", "\x00", "tool_use", "image", "a" * 3_000])
)
WILD = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
"""Any JSON."""


@st.composite
def bodies(draw: st.DrawFn, fields: Mapping[str, Field], model: str) -> dict[str, Any]:
    """Bodies in which most is right: up to two of the fields are nearly so, wild, or missing."""
    known = {"model": _model(model)} | dict(fields)
    optional = [name for name, field in known.items() if not field.needed and field.right]
    chosen = draw(st.lists(st.sampled_from(optional), max_size=6, unique=True)) if optional else []
    names = [name for name, field in known.items() if field.needed] + chosen
    body = {name: draw(st.sampled_from(known[name].right)) for name in names}
    for name in draw(st.lists(st.sampled_from(list(known)), max_size=draw(st.sampled_from([0, 1, 1, 2])), unique=True)):
        match draw(st.integers(0, 5)):
            case 0:
                body[name] = draw(WILD)
            case 1:
                body.pop(name, None)
            case _ if known[name].near:
                body[name] = draw(st.sampled_from(known[name].near))
    return body


def _model(name: str) -> Field:
    return Field(
        (name,), ("", "nope", f"{name}:adapter", name.upper(), f" {name}", "m" * 513, "\u0000", 1, None), needed=True
    )
