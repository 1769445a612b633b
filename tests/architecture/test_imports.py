"""What each process loads."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    ["edge.app", "authsvc.app", "accounting.app", "inference.app", "inference.upstream_engine", "naru.cli.main"],
)
def test_nothing_but_the_engine_loads_torch(module: str) -> None:
    """Importing a service, inference's wiring included, loads neither torch nor vllm nor transformers."""
    code = f"import sys, {module}; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
