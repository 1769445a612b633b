"""What a log line holds, and what it never does."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from naru import api_key

KEY = api_key.generate(os.urandom)
LEVELS = ["debug", "info", "warning", "error"]
CODE = f"""
import logging
from naru import logs
logs.configure("edge")

def fail(prompt, token):
    raise ValueError("cannot use {KEY}")

for log in (logs.get_logger("ours"), logging.getLogger("theirs")):
    try:
        fail("the-prompt", "the-token")
    except ValueError:
        log.exception("crashed with {KEY}")
logs.get_logger("ours").info("starting", config={{"A": "{KEY}"}}, names=["{KEY}"], attempts=3)
"""


def test_no_line_holds_keys_or_what_local_variables_held() -> None:
    """Tracebacks show where, not with which values; keys are masked however deep they lie, the rest stays."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["service"] for line in lines] == ["edge"] * 3
    assert [line["exception"][0]["frames"][-1]["name"] for line in lines[:2]] == ["fail"] * 2
    assert lines[2]["attempts"] == 3
    for secret in (api_key.parse(KEY).secret, "the-prompt", "the-token"):
        assert secret not in done.stderr
    assert done.stderr.count(f"sk-naru-{api_key.parse(KEY).key_id}-***") == 6


@pytest.mark.parametrize("level", LEVELS)
def test_what_stands_below_the_level_is_not_written(level: str) -> None:
    """By our own loggers and by libraries'."""
    code = f"""
import logging
from naru import logs
logs.configure("edge", "{level}")
for log in (logs.get_logger("ours"), logs.get_logger("bound").bind(), logging.getLogger("theirs")):
    for level in {LEVELS}:
        getattr(log, level)("a line")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    written = [json.loads(line)["level"] for line in done.stderr.splitlines()]
    assert written == LEVELS[LEVELS.index(level) :] * 3


def test_libraries_do_not_log_what_passes_through_them() -> None:
    """At no level: aiosqlite would log each statement with its values, hpack each header with its own."""
    code = """
import asyncio
import aiosqlite, hpack
from naru import logs
logs.configure("authsvc", "debug")
hpack.Encoder().encode([("x-naru-service-token", "the-token")])

async def main():
    async with aiosqlite.connect(":memory:") as database:
        await database.execute("SELECT ?", ("the-digest",))

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loggers = {json.loads(line)["logger"] for line in done.stderr.splitlines()}
    assert not {"aiosqlite", "hpack.hpack", "hpack.table"} & loggers
    assert "the-digest" not in done.stderr
