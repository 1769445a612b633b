"""The record of what was accepted and what came of it, kept on disk until accounting has it.

Records are JSON, framed by `inference.segments`, of three kinds:
- `accepted`: the engine is about to get the request. It holds the usage event to report should nothing better follow;
- `final`: the exact usage event;
- `closed`: keys about which there is nothing more to report: accounting has their event, or the engine never got them.

Each is written at once by write(), so that it survives the death of the process, and forced to disk within 50 ms, so
that little is lost with the machine. A segment is deleted when every key in it, and in all older ones, is closed.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import msgspec

from inference.events import EventKey, UsageEvent
from inference.metrics import InferenceMetrics
from inference.segments import SegmentWriter, list_segments, read_segment
from naru.errors import NaruError, unavailable
from naru.logs import Logger

SYNC_INTERVAL = 0.05
"""Seconds between a write and the moment it is forced to disk."""


class AcceptedRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="accepted"):
    """The engine is about to get a request."""

    event: UsageEvent


class FinalRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="final"):
    """A request is over."""

    event: UsageEvent


class ClosedRecord(msgspec.Struct, frozen=True, tag_field="kind", tag="closed"):
    """There is nothing more to report about these."""

    keys: tuple[EventKey, ...]


Record = AcceptedRecord | FinalRecord | ClosedRecord


class Journal:
    """The journal of one replica.

    Args:
        directory: Where the segments are; made if it is not there. One process at a time may have it.
        logger: Where damage and write failures are told.
        metrics: Where they are counted.
        segment_bytes: Size after which a new segment begins.

    Raises:
        OSError: The directory cannot be made or read.
        ValueError: Another process has it.
    """

    def __init__(
        self,
        directory: Path,
        logger: Logger,
        metrics: InferenceMetrics,
        segment_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._logger = logger
        self._metrics = metrics
        self._lock = _lock(directory)
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Record)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="journal-sync")
        self._open_keys: dict[int, set[EventKey]] = {}
        self._damaged: set[int] = set()
        self._unshipped: dict[EventKey, UsageEvent] = {}
        self._unwritten: deque[tuple[Record, bytes]] = deque()
        self._arrived = asyncio.Event()
        self._dirty = asyncio.Event()
        self._synced = True
        self._told = False
        first_number = self._recover()
        self._writer = SegmentWriter(directory, segment_bytes, first_number)
        self._drop_closed_segments()
        self._show()

    @property
    def backlog(self) -> int:
        """Events that accounting has not taken yet."""
        return len(self._unshipped)

    @property
    def writable(self) -> bool:
        """Whether everything so far is written, and the disk took what was forced to it last."""
        return self._synced and not self._unwritten

    def accepted(self, event: UsageEvent) -> None:
        """Notes that the engine is about to get a request. Raises NaruError SERVICE_UNAVAILABLE when it cannot."""
        if not self._synced or not self._write_unwritten():
            raise self._not_writable()
        record = AcceptedRecord(event)
        try:
            self._write(record, self._encoder.encode(record))
        except OSError as error:
            self._tell_not_writable(error)
            raise self._not_writable() from error

    def withdrawn(self, key: EventKey) -> None:
        """Notes that the engine did not take a request after all, so that nobody pays for it."""
        self._close([key])

    def finished(self, event: UsageEvent) -> None:
        """Notes how a request ended, to be shipped. Never fails: what cannot be written now is kept and written later."""
        self._unshipped[event.key] = event
        self._append(FinalRecord(event))
        self._arrived.set()

    async def wait_unshipped(self) -> None:
        """Waits until there is something to ship."""
        await self._arrived.wait()

    def unshipped(self, limit: int) -> list[UsageEvent]:
        """The oldest events that accounting has not taken yet."""
        return list(islice(self._unshipped.values(), limit))

    def acknowledge(self, keys: Iterable[EventKey]) -> None:
        """Notes that accounting has these events, or will never have them."""
        known = [key for key in keys if self._unshipped.pop(key, None) is not None]
        if not self._unshipped:
            self._arrived.clear()
        if known:
            self._close(known)

    def quarantine(self, event: UsageEvent, error: NaruError) -> None:
        """Puts an event that accounting refused for good into `quarantine.jsonl`, for a person. Raises OSError."""
        line = self._encoder.encode({"reason": error.reason, "message": error.message, "event": event}) + b"\n"
        with (self._directory / "quarantine.jsonl").open("ab") as file:
            file.write(line)
        self._metrics.quarantined.inc()
        self._logger.error("usage event quarantined", event_id=event.event_id, reason=error.reason)

    async def keep_synced(self) -> None:
        """Forces what was written to disk, 50 ms after it was written. Runs for ever."""
        while True:
            await self._dirty.wait()
            await asyncio.sleep(SYNC_INTERVAL)
            self._dirty.clear()
            await self.sync()

    async def sync(self) -> None:
        """Forces what was written to disk now. A failure makes the journal not writable until a later sync works."""
        written = self._write_unwritten()
        dirty = self._writer.take_dirty()
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, dirty.sync)
            self._synced = True
        except OSError:
            if self._synced:
                self._logger.exception("journal not synced")
            self._writer.retire()
            self._synced = False
        if not self._synced or not written:
            self._dirty.set()
        self._show()

    def close(self) -> None:
        """Forces everything to disk, and lets another process have the directory."""
        self._executor.shutdown(wait=True)
        self._write_unwritten()
        self._writer.retire()
        try:
            self._writer.take_dirty().sync()
        except OSError:
            self._logger.exception("journal not synced")
        os.close(self._lock)

    def _append(self, record: Record) -> None:
        self._unwritten.append((record, self._encoder.encode(record)))
        if not self._write_unwritten():
            self._dirty.set()
            self._show()

    def _write_unwritten(self) -> bool:
        while self._unwritten:
            try:
                self._write(*self._unwritten[0])
            except OSError as error:
                self._tell_not_writable(error)
                return False
            self._unwritten.popleft()
        return True

    def _write(self, record: Record, payload: bytes) -> None:
        self._dirty.set()
        self._writer.append(payload)
        self._told = False
        open_keys = self._open_keys.setdefault(self._writer.number, set())
        if isinstance(record, ClosedRecord):
            self._forget(record.keys)
        else:
            open_keys.add(record.event.key)

    def _close(self, keys: list[EventKey]) -> None:
        self._append(ClosedRecord(tuple(keys)))
        self._forget(keys)
        self._drop_closed_segments()
        self._show()

    def _forget(self, keys: Iterable[EventKey]) -> None:
        for open_keys in self._open_keys.values():
            open_keys.difference_update(keys)

    def _drop_closed_segments(self) -> None:
        while self._open_keys:
            number = min(self._open_keys)
            if number == self._writer.number or self._open_keys[number]:
                return
            path = self._writer.path(number)
            try:
                if number in self._damaged:
                    path.rename(path.with_suffix(".damaged"))
                else:
                    path.unlink()
            except OSError:
                self._logger.exception("journal segment not deleted", path=str(path))
                return
            del self._open_keys[number]

    def _recover(self) -> int:
        """Reads what an earlier run left; returns the number for the first new segment."""
        unclosed: dict[EventKey, UsageEvent] = {}
        numbers = [0]
        for number, path in list_segments(self._directory):
            numbers.append(number + 1)
            self._open_keys[number] = set()
            for record in self._read(number, path):
                match record:
                    case AcceptedRecord(event) | FinalRecord(event):
                        unclosed[event.key] = event
                        self._open_keys[number].add(event.key)
                    case ClosedRecord(keys):
                        for key in keys:
                            unclosed.pop(key, None)
                        self._forget(keys)
        self._unshipped = unclosed
        if unclosed:
            self._arrived.set()
            self._logger.info("journal recovered", events=len(unclosed))
        return max(numbers)

    def _read(self, number: int, path: Path) -> list[Record]:
        content = read_segment(path)
        if content.lost_bytes and not content.torn:
            self._damaged.add(number)
            self._metrics.journal_lost_bytes.inc(content.lost_bytes)
            self._logger.error("journal damaged", path=str(path), lost_bytes=content.lost_bytes)
        records: list[Record] = []
        for payload in content.payloads:
            try:
                records.append(self._decoder.decode(payload))
            except msgspec.MsgspecError:
                self._damaged.add(number)
                self._metrics.journal_lost_bytes.inc(len(payload))
                self._logger.exception("journal record unknown", path=str(path))
        return records

    def _show(self) -> None:
        self._metrics.journal_backlog.set(self.backlog)
        self._metrics.journal_writable.set(self.writable)

    def _tell_not_writable(self, error: OSError) -> None:
        if not self._told:
            self._logger.error("journal not writable", error=str(error))
        self._told = True
        self._show()

    def _not_writable(self) -> NaruError:
        return unavailable("inference", "The inference service cannot write its journal right now.", retry_after=5.0)


def _lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise ValueError(f"another process has the journal in {directory}") from None
    return descriptor
