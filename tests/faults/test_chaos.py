"""The short form of `make chaos`: processes killed at random under load, and books that agree with clients and engine."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bench.chaos import VICTIMS, Plan, run

pytestmark = pytest.mark.faults


@pytest.mark.timeout(180)
async def test_every_request_has_one_outcome(tmp_path: Path) -> None:
    """Edge, inference, accounting, Redis and PostgreSQL die; clients hang up; nothing is lost, doubled or left reserved."""
    result = await run(tmp_path, Plan(requests=200, kills=6, at_once=10, seed=7, calm=1.5, lease_seconds=5.0))
    assert result.wrong == ()
    assert {kill.victim for kill in result.story.kills} == set(VICTIMS)
    endings = Counter(told.ending for told in result.story.told.values())
    assert endings["complete"] > 50
    assert endings["hung up"] > 5
