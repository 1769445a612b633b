"""The answers of /v1/models to clients of Anthropic's API."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from edge.generation import ServedModel


def models_answer(models: Sequence[ServedModel]) -> bytes:
    """The list of models, which is one page."""
    return msgspec.json.encode(
        {
            "data": [_model_object(model) for model in models],
            "has_more": False,
            "first_id": models[0].name if models else None,
            "last_id": models[-1].name if models else None,
        }
    )


def model_answer(model: ServedModel) -> bytes:
    """One model."""
    return msgspec.json.encode(_model_object(model))


def _model_object(model: ServedModel) -> dict[str, Any]:
    created = datetime.fromtimestamp(int(model.create_time), UTC)
    return {
        "type": "model",
        "id": model.name,
        "display_name": model.name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.context_tokens,
        "max_tokens": model.context_tokens,
    }
