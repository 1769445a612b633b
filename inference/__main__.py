"""Runs the inference service: `python -m inference [--config FILE]`."""

from __future__ import annotations

import sys

from inference.app import running
from inference.config import InferenceConfig
from naru.lifecycle import main

# Engines begin processes by importing this module anew: only the first one is the service.
if __name__ == "__main__":
    sys.exit(main(InferenceConfig, running))
