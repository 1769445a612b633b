"""`python -m bench.streaming`: what streaming costs, part by part, on pages of their own with pictures.

Every part also runs alone and prints its tables only, as `python -m bench.streaming.front_ends`. A part that fails is told at the
end, its page stays as it was, and the others go on.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import traceback
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.streaming import pages
from bench.streaming.front_ends import NAMES
from bench.streaming.report import Effort, markdown

FOLDER = Path(__file__).parents[2] / "docs/reports/speed"
PARTS = {
    "front_ends": "Beside other front ends",
    "beside_vllm": "Beside vllm serve",
    "added_latency": "Latency that is added",
    "growth": "As requests and answers grow",
    "memory": "Memory",
    "flames": "Where the time goes",
}
"""Modules of this package in the order in which they run, and the headlines of their pages."""


def main() -> int:
    """The command; exit code 1 when a part failed, 2 when wrk is not installed."""
    given = _arguments()
    if shutil.which("wrk") is None:
        print("wrk is not installed: it puts the load on. Debian and Ubuntu have it as `wrk`.", file=sys.stderr)
        return 2
    effort = Effort(given.rounds, given.seconds)
    further: dict[str, dict[str, Any]] = {
        "front_ends": {"executables": given.executables, "names": given.contestants},
        "flames": {"folder": given.folder},
    }
    failed = [part for part in given.only if not _measure(part, effort, further.get(part, {}), given.folder)]
    _ = pages.write_list(given.folder)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _measure(part: str, effort: Effort, further: Mapping[str, Any], folder: Path) -> bool:
    """Measures a part and writes its page; whether that went well."""
    print(f"== {part}", flush=True)
    try:
        # Only what is asked for is imported: some parts need an engine, which takes long to load.
        module = import_module(f"bench.streaming.{part}")
        tables = module.measure(effort, **further)
        how = module.__doc__ or ""
        page = pages.write(folder, part, title=PARTS[part], how=how, tables=tables, effort=effort)
    except Exception:  # noqa: BLE001 -- hours of other parts are not to be lost for it
        traceback.print_exc()
        return False
    print(*map(markdown, tables), f"== {page}", sep="\n\n", flush=True)
    return True


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=Effort().rounds)
    parser.add_argument("--seconds", type=int, default=Effort().seconds, help="of each measurement")
    parser.add_argument("--executables", type=Path, help="folder of the others' commands; without it Naru is alone")
    parser.add_argument("--contestants", nargs="*", default=NAMES)
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for pages and pictures")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
