"""`python -m edge`."""

from __future__ import annotations

import sys

from edge.app import running
from edge.config import EdgeConfig
from naru.lifecycle import main

if __name__ == "__main__":
    sys.exit(main(EdgeConfig, running))
