"""Copies with some fields changed."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import msgspec

Made = TypeVar("Made")


def replace(made: Made, **changes: Any) -> Made:
    """What `copy.replace` of Python 3.13 does: a copy of a dataclass or a struct."""
    if isinstance(made, msgspec.Struct):
        return msgspec.structs.replace(made, **changes)
    return dataclasses.replace(made, **changes)  # type: ignore[type-var]
