"""Runs accounting: `python -m accounting`; `python -m accounting migrate` prepares its database. Both take `--config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from naru import config as configuration
from naru import lifecycle, logs


def main(argv: list[str]) -> int:
    """Serves or migrates. Returns the exit code: 0 done, 1 failed, 2 wrong configuration."""
    if argv[:1] != ["migrate"]:
        return lifecycle.main(AccountingConfig, running, argv)
    parser = argparse.ArgumentParser(prog="python -m accounting migrate", description="Brings the database up to date.")
    parser.add_argument("--config", type=Path, help="TOML file; NARU_* variables win over it")
    arguments = parser.parse_args(argv[1:])
    try:
        config = configuration.load(AccountingConfig, os.environ, arguments.config)
        logs.configure(config.SERVICE, config.log_level)
        asyncio.run(migrate(config))
    except configuration.ConfigError as error:
        print(f"accounting: {error}", file=sys.stderr)  # noqa: T201 -- logs need the configuration
        return lifecycle.EXIT_CONFIG
    except OSError as error:
        print(f"accounting: {error}", file=sys.stderr)  # noqa: T201 -- the last words of a command
        return lifecycle.EXIT_CRASH
    return lifecycle.EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
