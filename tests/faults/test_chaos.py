"""The short form of `make chaos`: processes killed at random under load, and books that agree with what clients were told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import chaos

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]


async def test_every_admitted_request_has_one_outcome(tmp_path: Path) -> None:
    """Edge, inference, accounting, Redis and PostgreSQL die; clients hang up; nothing is lost, doubled or left reserved."""
    story, found = await chaos.run(tmp_path / "state", requests=400, kills=10, at_once=20, seed=7)
    assert found == []
    assert set(story.kills) == set(chaos.VICTIMS)
    assert story.endings()["complete"] > 100
    assert story.endings()["hung up"] > 10
