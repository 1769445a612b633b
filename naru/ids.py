"""Identifiers."""

from __future__ import annotations

import os
import re
import time
import uuid

_UUID = re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def uuid7() -> str:
    """A UUID version 7 (RFC 9562, section 5.7): ordered by millisecond, 74 random bits."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def is_uuid(text: str) -> bool:
    """Whether `text` is a UUID in its canonical form."""
    return _UUID.fullmatch(text) is not None


def new_request_id() -> str:
    """A request id: "req_" and 32 hexadecimal digits, 128 random bits."""
    return f"req_{os.urandom(16).hex()}"
