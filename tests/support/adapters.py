"""Adapters on the disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LORA = {"enable_lora": True, "max_loras": 1, "max_cpu_loras": 2, "max_lora_rank": 8}
"""Engine arguments of a replica that takes two adapters."""


def write_adapter(folder: Path, *, rank: int = 4, weights: bytes = b"weights", **configuration: Any) -> Path:
    """A folder that looks like a LoRA adapter; what its weights are, only a real engine asks."""
    folder.mkdir(parents=True)
    described = {"peft_type": "LORA", "r": rank, "lora_alpha": 4 * rank, "target_modules": ["q_proj"], **configuration}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return folder
