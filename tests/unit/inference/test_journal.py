"""What the journal keeps through crashes, damage and full disks."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from inference.journal import Journal
from inference.metrics import InferenceMetrics
from inference.segments import SegmentWriter, list_segments, read_segment
from naru.errors import NaruError, Reason, invalid_argument
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.usage import Evidence
from tests.support.generation_bench import eventually
from tests.support.usage_events import event_of

ROOT = Path(__file__).parents[3]


def open_journal(directory: Path, segment_bytes: int = 1 << 20) -> Journal:
    return Journal(directory, get_logger("test"), InferenceMetrics(Metrics()), segment_bytes)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.name != "lock")


def write_and_kill(directory: Path) -> int:
    """Has another process write into a journal and kills it; returns the last number that it told to have written."""
    command = [sys.executable, "-m", "tests.support.journal_writer", str(directory)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines: list[bytes] = []
        while len(lines) < 500:
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.read().splitlines(keepends=True)
    # A line that the kill cut short was not told.
    return max(int(line) for line in lines if line.endswith(b"\n"))


async def test_a_restart_finds_exactly_what_was_not_acknowledged(tmp_path: Path) -> None:
    """Acknowledged and withdrawn ones are gone, finals stay final, accepted ones become rank 1; all fields survive."""
    journal = open_journal(tmp_path)
    for number in range(4):
        journal.accepted(event_of(number, Evidence.ACCEPTED))
    journal.finished(event_of(0))
    journal.finished(event_of(1))
    journal.acknowledge([event_of(0).key])
    journal.withdrawn(event_of(3).key)
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.unshipped(10) == [event_of(1), event_of(2, Evidence.ACCEPTED)]
    await asyncio.wait_for(journal.wait_unshipped(), 20)
    journal.acknowledge([event_of(1).key, event_of(2).key])
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.backlog == 0
    journal.close()


async def test_only_one_process_has_a_directory(tmp_path: Path) -> None:
    """A second journal in the same directory is an error, until the first one is closed."""
    first = open_journal(tmp_path)
    with pytest.raises(ValueError, match="another process"):
        open_journal(tmp_path)
    first.close()
    open_journal(tmp_path).close()


async def test_segments_are_deleted_when_all_in_them_is_acknowledged(tmp_path: Path) -> None:
    """Files go oldest first, and an open request keeps its file and the later ones."""
    journal = open_journal(tmp_path, segment_bytes=1)
    journal.accepted(event_of(1, Evidence.ACCEPTED))
    journal.accepted(event_of(2, Evidence.ACCEPTED))
    journal.finished(event_of(2))
    journal.acknowledge([event_of(2).key])
    assert len(list_segments(tmp_path)) == 4
    journal.finished(event_of(1))
    journal.acknowledge([event_of(1).key])
    assert [number for number, _ in list_segments(tmp_path)] == [5]
    journal.close()


@pytest.mark.parametrize("cut", [1, 5, 8, 40])
async def test_a_torn_tail_is_tolerated(tmp_path: Path, cut: int) -> None:
    """Whatever part of the last record a crash left, the records before it are read, and later ones are not lost."""
    journal = open_journal(tmp_path)
    journal.finished(event_of(1))
    whole = list_segments(tmp_path)[0][1].stat().st_size
    journal.finished(event_of(2))
    journal.close()
    path = list_segments(tmp_path)[0][1]
    with path.open("r+b") as file:
        file.truncate(whole + cut)
    assert read_segment(path).torn
    journal = open_journal(tmp_path)
    assert journal.unshipped(10) == [event_of(1)]
    journal.finished(event_of(3))
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.unshipped(10) == [event_of(1), event_of(3)]
    journal.acknowledge([event_of(1).key, event_of(3).key])
    journal.close()


async def test_damage_is_told_and_the_file_kept(tmp_path: Path) -> None:
    """A record that rotted in the middle of a file: what is before it is read, and the file stays for a person."""
    journal = open_journal(tmp_path)
    for number in (1, 2, 3):
        journal.finished(event_of(number))
    journal.close()
    path = list_segments(tmp_path)[0][1]
    data = bytearray(path.read_bytes())
    data[len(data) // 3 + 50] ^= 0xFF
    path.write_bytes(data)
    content = read_segment(path)
    assert not content.torn
    assert content.lost_bytes > len(data) // 2
    journal = open_journal(tmp_path)
    assert journal.unshipped(10) == [event_of(1)]
    journal.acknowledge([event_of(1).key])
    journal.close()
    assert files(tmp_path)[0].endswith(".damaged")


def test_zeros_after_a_power_loss_are_a_torn_tail(tmp_path: Path) -> None:
    """A file that has its length but not its content reads as if the content had never been written."""
    writer = SegmentWriter(tmp_path, 1 << 20, 0)
    writer.append(b"one")
    with writer.path(0).open("ab") as file:
        file.write(bytes(100))
    content = read_segment(writer.path(0))
    assert (content.payloads, content.torn, content.lost_bytes) == ((b"one",), True, 100)
    writer.retire()
    writer.take_dirty().sync()


async def test_an_acknowledged_event_is_not_shipped_twice_in_one_run(tmp_path: Path) -> None:
    """Acknowledging what is not waiting changes nothing."""
    journal = open_journal(tmp_path)
    journal.finished(event_of(1))
    journal.acknowledge([event_of(1).key])
    journal.acknowledge([event_of(1).key, event_of(2).key])
    assert journal.backlog == 0
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(journal.wait_unshipped(), 0.01)
    journal.close()


async def test_writes_reach_the_disk_soon(tmp_path: Path) -> None:
    """The endless task forces writes to disk by itself and keeps no retired file open."""
    journal = open_journal(tmp_path, segment_bytes=1)
    open_files = len(os.listdir("/proc/self/fd"))
    syncing = asyncio.create_task(journal.keep_synced())
    for number in range(20):
        journal.finished(event_of(number))
    assert len(os.listdir("/proc/self/fd")) > open_files + 10
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= open_files + 2)
    syncing.cancel()
    journal.close()


async def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    """Finals and acknowledgements made while the disk refuses are in the journal once it takes them again."""
    directory = tmp_path / "journal"
    journal = open_journal(directory, segment_bytes=1)
    journal.finished(event_of(1))
    directory.rename(tmp_path / "away")
    with pytest.raises(NaruError) as refusal:
        journal.accepted(event_of(2, Evidence.ACCEPTED))
    assert refusal.value.reason is Reason.SERVICE_UNAVAILABLE
    journal.finished(event_of(3))
    journal.acknowledge([event_of(1).key])
    assert [event.key for event in journal.unshipped(10)] == [event_of(3).key]
    (tmp_path / "away").rename(directory)
    await journal.sync()
    assert journal.writable
    journal.close()
    journal = open_journal(directory)
    assert journal.unshipped(10) == [event_of(3)]
    journal.close()


async def test_quarantine_keeps_the_event_and_why(tmp_path: Path) -> None:
    """A refused event is in a file that a person can read."""
    journal = open_journal(tmp_path)
    journal.quarantine(event_of(1), invalid_argument("usage", "No."))
    journal.close()
    text = (tmp_path / "quarantine.jsonl").read_text()
    assert event_of(1).event_id in text
    assert "INVALID_ARGUMENT" in text


async def test_kill_minus_nine_loses_nothing_that_was_told(tmp_path: Path) -> None:
    """Each event that the killed process said it had journalled is found, as final or as rank 1, and no other."""
    told = await asyncio.to_thread(write_and_kill, tmp_path)
    journal = open_journal(tmp_path)
    found = {int(event.event_id[-12:]): event for event in journal.unshipped(1_000_000)}
    assert set(range(told + 1)) <= set(found)
    assert len(found) <= told + 2
    for number in range(told + 1):
        assert found[number] == event_of(number, Evidence.FINAL if number % 3 else Evidence.ACCEPTED)
    journal.close()
