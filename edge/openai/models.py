"""The answers of /v1/models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from edge.generation import ServedModel

_PERMISSION = {
    "object": "model_permission",
    "allow_create_engine": False,
    "allow_sampling": True,
    "allow_logprobs": True,
    "allow_search_indices": False,
    "allow_view": True,
    "allow_fine_tuning": False,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}


def models_answer(models: Iterable[ServedModel]) -> bytes:
    """The list of models."""
    return msgspec.json.encode({"object": "list", "data": [_model_object(model) for model in models]})


def model_answer(model: ServedModel) -> bytes:
    """One model."""
    return msgspec.json.encode(_model_object(model))


def _model_object(model: ServedModel) -> dict[str, Any]:
    """OpenAI's object with what vLLM adds, such as `max_model_len`, which clients read to size their prompts."""
    created = int(model.create_time)
    return {
        "id": model.name,
        "object": "model",
        "created": created,
        "owned_by": model.owned_by,
        "root": model.root or model.name,
        "parent": model.parent or None,
        "max_model_len": model.context_tokens,
        "permission": [{"id": f"modelperm-{model.name}", "created": created, **_PERMISSION}],
    }
