"""Runs authsvc: `python -m authsvc`; `python -m authsvc migrate` prepares its database."""

import sys

from authsvc.app import migrate, running
from authsvc.config import AuthsvcConfig
from naru.lifecycle import main

if __name__ == "__main__":
    sys.exit(main(AuthsvcConfig, running, migrate=migrate))
