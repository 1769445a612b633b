"""The answers of /v1/models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edge.generation import ServedModel


def models_answer(models: Iterable[ServedModel]) -> bytes:
    """The list of models."""
    return msgspec.json.encode({"object": "list", "data": [_model_object(model) for model in models]})


def model_answer(model: ServedModel) -> bytes:
    """One model."""
    return msgspec.json.encode(_model_object(model))


def _model_object(model: ServedModel) -> dict[str, Any]:
    """`max_model_len` is vLLM's addition, which clients read to size their prompts."""
    return {
        "id": model.name,
        "object": "model",
        "created": int(model.create_time),
        "owned_by": model.owned_by,
        "max_model_len": model.context_tokens,
    }
