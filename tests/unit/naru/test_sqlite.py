"""What tasks that are cancelled in the middle of a statement leave behind, and what one finds who comes at the wrong moment."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from naru.database import Database

# The loop ends, and cancels what is left, while tasks that were cancelled before still close their connections.
ENDING = """
import asyncio, sys
import sqlalchemy as sa
from naru.database import Database

async def ask(database):
    while True:
        async with database.reading() as connection:
            await connection.execute(sa.text("SELECT 1"))

async def ends(turns):
    database = Database(sys.argv[1])
    tasks = [asyncio.create_task(ask(database)) for _ in range(3)]
    await asyncio.sleep(0.02)
    for _ in range(turns):
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()

for number in range(30):
    asyncio.run(ends(number % 7))
print("ended")
"""


@pytest.mark.parametrize("seed", range(4))
async def test_a_cancelled_write_leaves_nothing_locked(tmp_path: Path, seed: int) -> None:
    """Whoever writes next does not wait until the traceback of a cancelled task is garbage, which is kept here."""
    chance = random.Random(seed)
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    async with database.writing() as connection:
        await connection.execute(sa.text("CREATE TABLE numbers (number INTEGER)"))

    async def write() -> None:
        async with database.writing() as connection:
            await connection.execute(sa.text("INSERT INTO numbers VALUES (1)"))
            await connection.execute(sa.text("SELECT count(*) FROM numbers"))

    for _ in range(25):
        tasks = [asyncio.create_task(write()) for _ in range(4)]
        await asyncio.sleep(chance.uniform(0, 0.02))
        for task in tasks:
            _ = task.cancel()
        await write()
        _ = await asyncio.wait(tasks)
    await database.close()


def test_a_loop_that_ends_meanwhile_ends(tmp_path: Path) -> None:
    """A process that stops while connections are closed does not wait for ever."""
    command = [sys.executable, "-W", "ignore", "-c", ENDING, f"sqlite+aiosqlite:///{tmp_path}/test.db"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.stdout == "ended\n", ended.stderr[-2000:]


async def test_a_new_file_that_another_writes_to_is_waited_for(tmp_path: Path) -> None:
    """Of two that begin with the same new file, as two that migrate it, the second waits: SQLite itself would not."""
    other = sqlite3.connect(tmp_path / "test.db", isolation_level=None)
    _ = other.execute("BEGIN IMMEDIATE")
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/test.db")

    async def mode() -> str:
        async with database.writing() as connection:
            return str((await connection.execute(sa.text("PRAGMA journal_mode"))).scalar_one())

    asked = asyncio.create_task(mode())
    await asyncio.sleep(0.2)
    assert not asked.done()
    _ = other.execute("COMMIT")
    assert await asked == "wal"
    other.close()
    await database.close()


async def test_writers_of_a_process_get_their_turn(tmp_path: Path) -> None:
    """Whoever asks first writes first, however many write again and again: nobody is kept out by chance."""
    database = Database(f"sqlite+aiosqlite:///{tmp_path}/test.db")
    order: list[int] = []

    async def write(number: int) -> None:
        for _ in range(10):
            async with database.writing() as connection:
                await connection.execute(sa.text("SELECT 1"))
                order.append(number)

    await asyncio.gather(*(write(number) for number in range(4)))
    await database.close()
    assert order == [0, 1, 2, 3] * 10
