"""A ring of signing keys, as an authsvc has it."""

from __future__ import annotations

import os

from authsvc.keys import Peppers
from authsvc.sessions_store import SessionStore
from authsvc.signing import KeyRing
from naru.ids import uuid7
from naru.testing.clock import FakeClock

ROTATION_SECONDS = 30 * 86_400.0
LIFETIME_SECONDS = 900.0


def key_ring(store: SessionStore, peppers: Peppers, clock: FakeClock) -> KeyRing:
    """One with the default times, which has not read anything yet."""
    return KeyRing(
        store=store,
        peppers=peppers,
        clock=clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        rotation=ROTATION_SECONDS,
        lifetime=LIFETIME_SECONDS,
    )
