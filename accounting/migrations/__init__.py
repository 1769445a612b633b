"""The history of accounting's schema."""

from __future__ import annotations

from pathlib import Path

from naru.migrations import Migrations

VERSION_TABLE = "accounting_schema_version"
MIGRATIONS = Migrations(Path(__file__).parent, VERSION_TABLE)
