"""One installation with the real model for all end-to-end tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.otlp import Receiver
from tests.support.platform import Platform, platform


@pytest.fixture(scope="session")
def otlp() -> Iterator[Receiver]:
    """An OTLP receiver in the test's own process."""
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def naru(tmp_path_factory: pytest.TempPathFactory, otlp: Receiver) -> Iterator[Platform]:
    """Everything up, traced to the receiver."""
    folder: Path = tmp_path_factory.mktemp("naru") / "state"
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": otlp.endpoint, "OTEL_EXPORTER_OTLP_INSECURE": "true"}
    with platform(folder, environ) as running:
        yield running
