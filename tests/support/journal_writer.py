"""Writes usage events into a journal for ever, for a test to kill: `python -m tests.support.journal_writer DIRECTORY`.

Prints the number of each event once the journal has it.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

from inference.journal import Journal
from inference.metrics import InferenceMetrics
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.usage import Evidence
from tests.support.usage_events import event_of


async def write(directory: Path) -> None:
    """Accepts every event, finishes all but each third."""
    journal = Journal(directory, get_logger("writer"), InferenceMetrics(Metrics()), segment_bytes=20_000)
    syncing = asyncio.create_task(journal.keep_synced())
    for number in itertools.count():
        event = event_of(number)
        journal.accepted(event_of(number, Evidence.ACCEPTED))
        if number % 3:
            journal.finished(event)
        print(number, flush=True)
        if number % 50 == 0:
            await asyncio.sleep(0)
    await syncing


if __name__ == "__main__":
    asyncio.run(write(Path(sys.argv[1])))
