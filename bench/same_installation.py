"""Runs the installation of whatever tree Python is pointed to, for `bench.same_outputs`, which starts this file by its path.

Writes the edge's port and a key as a line of JSON once it is up, and stops it when standard input ends.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Of the other tree, where it is asked for: this file alone is of this one.
from bench.installation import installation


def main(folder: Path, environ: dict[str, str]) -> None:
    """Runs it in a folder, with settings."""
    with installation(folder, environ) as installed:
        naru = installed.naru
        key = naru.new_key(description="compared", tier="busy")
        print(json.dumps({"port": naru.ports["NARU_EDGE_PORT"], "key": key}), flush=True)
        _ = sys.stdin.read()


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
