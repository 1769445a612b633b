"""Where `naru up` has its processes run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from naru.cli.up import SERVICES
from tests.support.platform import Platform, descendants, program

# The first one starts the installation.
pytestmark = pytest.mark.timeout(300)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU has to do for everything")
def test_the_engine_has_a_cpu_for_itself(naru: Platform) -> None:
    """Its first thread runs on the first CPU, and no service's own threads do."""
    first, *others = sorted(os.sched_getaffinity(0))
    for service in SERVICES:
        (process_id,) = naru.service_ids(service)
        threads = [int(path.name) for path in Path(f"/proc/{process_id}/task").iterdir()]
        assert {tuple(sorted(os.sched_getaffinity(thread))) for thread in threads} == {tuple(others)}, service
    (inference,) = naru.service_ids("inference")
    (engine,) = (child for child in descendants(inference) if program(child).startswith("VLLM::"))
    assert os.sched_getaffinity(engine) == {first}
