"""Runs accounting: `python -m accounting`; `python -m accounting migrate` prepares its database."""

import sys

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from naru.lifecycle import main

if __name__ == "__main__":
    sys.exit(main(AccountingConfig, running, migrate=migrate))
