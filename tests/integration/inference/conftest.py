"""The default model, for tests that need a real one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from inference.default_model import make_ready

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the default model, which is made ready when it is not."""
    folder = ROOT / ".naru/models/smollm2-135m-instruct"
    make_ready(folder, lambda line: print(line, file=sys.stderr))
    return folder
