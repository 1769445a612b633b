"""The journal's files: append-only segments of framed records.

A record is four bytes of length, four bytes of CRC-32 of the payload (both little-endian), then the payload. A record
that a crash cut short can only be the last one of a segment, because nothing is appended after a failed write and each
process begins segments of its own.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct("<II")
_SUFFIX = ".segment"


@dataclass(frozen=True, slots=True)
class SegmentContent:
    """What a segment holds.

    Attributes:
        payloads: The records that are whole, in the order written.
        lost_bytes: Bytes after the last whole record.
        torn: Whether these are a record that was cut short, as a crash leaves it. False with bytes lost: damage.
    """

    payloads: tuple[bytes, ...]
    lost_bytes: int = 0
    torn: bool = False


def read_segment(path: Path) -> SegmentContent:
    """Reads the whole records of a segment. Raises OSError when the file cannot be read."""
    data = path.read_bytes()
    payloads: list[bytes] = []
    offset = 0
    while offset < len(data):
        start = offset + _HEADER.size
        if start > len(data):
            return SegmentContent(tuple(payloads), len(data) - offset, torn=True)
        length, checksum = _HEADER.unpack_from(data, offset)
        end = start + length
        payload = data[start:end]
        if length == 0 or end > len(data) or zlib.crc32(payload) != checksum:
            # Power loss can leave the length of the file without its content, which then reads as zeros.
            torn = end >= len(data) or not any(data[offset:])
            return SegmentContent(tuple(payloads), len(data) - offset, torn)
        payloads.append(payload)
        offset = end
    return SegmentContent(tuple(payloads))


def list_segments(directory: Path) -> list[tuple[int, Path]]:
    """The segments of a journal with their numbers, oldest first."""
    return sorted((int(path.stem), path) for path in directory.glob(f"*{_SUFFIX}") if path.stem.isdigit())


class Dirty:
    """Files that were written since the last sync; `sync` may run in another thread."""

    def __init__(self, directory: Path, retired: Sequence[int], current: int | None, created: bool) -> None:
        self._directory = directory
        self._retired = retired
        self._current = current
        self._created = created

    def sync(self) -> None:
        """Forces them to the disk and closes those that are no longer written to. Raises OSError."""
        failure: OSError | None = None
        for descriptor in (*self._retired, *([] if self._current is None else [self._current])):
            try:
                os.fsync(descriptor)
            except OSError as error:
                failure = error
        for descriptor in self._retired:
            os.close(descriptor)
        if self._created:
            _sync_directory(self._directory)
        if failure is not None:
            raise failure


class SegmentWriter:
    """Appends records; begins a new segment when the current one is full, or when writing to it failed.

    Args:
        directory: Where the segments are.
        segment_bytes: Size after which a segment is full.
        first_number: Number of the first segment to create; greater than those that are there.
    """

    def __init__(self, directory: Path, segment_bytes: int, first_number: int) -> None:
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._next_number = first_number
        self._descriptor: int | None = None
        self._size = 0
        self._retired: list[int] = []
        self._created = False
        self.number = -1

    def append(self, payload: bytes) -> None:
        """Writes one record, into the segment `number`. Raises OSError; then nothing of the record counts."""
        if self._descriptor is None or self._size >= self._segment_bytes:
            self._begin()
        assert self._descriptor is not None  # noqa: S101 -- for the type checker: _begin has set it
        record = _HEADER.pack(len(payload), zlib.crc32(payload)) + payload
        try:
            written = os.write(self._descriptor, record)
            if written != len(record):
                raise OSError(f"only {written} of {len(record)} bytes could be written")
        except OSError:
            self.retire()
            raise
        self._size += written

    def retire(self) -> None:
        """Ends the current segment; the next record begins a new one."""
        if self._descriptor is not None:
            self._retired.append(self._descriptor)
            self._descriptor = None

    def take_dirty(self) -> Dirty:
        """What has to be synced now. The caller must call its `sync`, one at a time."""
        dirty = Dirty(self._directory, tuple(self._retired), self._descriptor, self._created)
        self._retired.clear()
        self._created = False
        return dirty

    def _begin(self) -> None:
        self.retire()
        path = self._directory / f"{self._next_number:016d}{_SUFFIX}"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0
        self.number = self._next_number
        self._next_number += 1
        self._created = True

    def path(self, number: int) -> Path:
        """Where the segment of that number is."""
        return self._directory / f"{number:016d}{_SUFFIX}"


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
