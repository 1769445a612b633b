"""Where adapters may be loaded from, what their folders must hold, and how they are remembered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.adapter_folders import AdapterFolder, AdapterFolders
from inference.adapter_settings import adapter_roots, read_adapters
from inference.adapter_state import AdapterState
from naru.errors import NaruError, Reason
from tests.support.adapters import write_adapter


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of adapters, with something beside it."""
    write_adapter(tmp_path / "outside/secret")
    write_adapter(tmp_path / "root/sql")
    return tmp_path / "root"


def problem(root: Path, text: str, most_rank: int = 16) -> str:
    with pytest.raises(NaruError) as raised:
        AdapterFolders([root]).find(text, most_rank)
    assert raised.value.reason is Reason.INVALID_ARGUMENT
    assert raised.value.metadata == {"field": "adapter.path"}
    return raised.value.message


def test_an_adapter_is_found_by_both_kinds_of_path(root: Path) -> None:
    """Below a root by its relative and by its absolute path, also where the first root does not have it."""
    folders = AdapterFolders([root.parent / "not-there", root.parent / "outside", root])
    found = AdapterFolder(root / "sql", 4)
    assert folders.find("sql", 16) == folders.find(str(root / "sql"), 16) == folders.find("./sql/", 4) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "../outside/secret",
        "sql/../../outside/secret",
        "sql/..",
        "nothing",
        "/",
        "/etc",
        "x" * 1025,
        "a\0b",
    ],
)
def test_no_path_leads_out(root: Path, text: str) -> None:
    """Neither steps up, nor absolute paths, nor a root itself; what is not there sounds like what is elsewhere."""
    problem(root, text)
    assert problem(root, str(root.parent / "outside/secret")) == problem(root, "nothing")


def test_no_link_leads_out(root: Path) -> None:
    """A linked folder, and a linked file in a folder; a link to another place below the root is as good as that place."""
    (root / "linked").symlink_to(root.parent / "outside/secret")
    assert problem(root, "linked") == problem(root, "nothing")
    write_adapter(root / "files")
    (root / "files/extra.json").symlink_to(root.parent / "outside/secret/adapter_config.json")
    assert "'extra.json' is a link" in problem(root, "files")
    (root / "inner").symlink_to(root / "sql")
    assert AdapterFolders([root]).find("inner", 16).path == root / "sql"
    blobs = root / "blobs"
    blobs.mkdir()
    write_adapter(root / "cached")
    (root / "cached/adapter_model.safetensors").rename(blobs / "0123")
    (root / "cached/adapter_model.safetensors").symlink_to(blobs / "0123")
    assert AdapterFolders([root]).find("cached", 16).rank == 4
    (root / "circle").symlink_to(root / "circle")
    problem(root, "circle")


def _rewrite(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "adapter_config.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "no adapter_config.json"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (_rewrite("{"), "no adapter_config.json that can be read"),
        (_rewrite("[1]"), "no adapter_config.json that can be read"),
        (_rewrite("[" * 100_000), "no adapter_config.json that can be read"),
        (_rewrite('{"peft_type": "IA3", "r": 4}'), "does not describe a LoRA adapter"),
        (_rewrite('{"peft_type": "LORA"}'), "does not describe a LoRA adapter"),
        (_rewrite('{"peft_type": "LORA", "r": true}'), "does not describe a LoRA adapter"),
        (_rewrite('{"peft_type": "LORA", "r": 17}'), "rank is 17; the engine takes at most 16"),
        (_rewrite(" " * (1 << 21)), "no adapter_config.json that can be read"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(root: Path, damage: Callable[[Path], object], said: str) -> None:
    """The sentence names what is missing, before an engine sees any of it."""
    damage(root / "sql")
    assert said in problem(root, "sql")


def test_without_roots_nothing_is_found(root: Path) -> None:
    """No configured folder: no adapter, however it is named."""
    with pytest.raises(NaruError):
        AdapterFolders([]).find(str(root / "sql"), 16)


def test_what_is_remembered_is_written_whole(tmp_path: Path) -> None:
    """It comes back, an older file is replaced, and one that could not be written leaves the older one as it was."""
    state = AdapterState(tmp_path / "new/adapters.json")
    assert state.read() == {}
    state.write({"sql": "a", "law": "/b"})
    assert AdapterState(tmp_path / "new/adapters.json").read() == {"sql": "a", "law": "/b"}
    # A folder in the way of the new file: nothing may have happened to the old one.
    os.mkdir(tmp_path / "new/adapters.new")
    with pytest.raises(OSError, match=r"adapters\.new"):
        state.write({})
    assert state.read() == {"sql": "a", "law": "/b"}


@pytest.mark.parametrize("content", [b"", b"{", b"{}", b'{"adapters": {"a": 1}}', b'{"adapters": "\xff"}'])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    """Whoever starts the replica reads which file it is, and what to do."""
    (tmp_path / "adapters.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"adapters\.json is damaged.*remove it"):
        AdapterState(tmp_path / "adapters.json").read()


def test_settings() -> None:
    """name=path, each name once; roots are absolute."""
    assert read_adapters((" sql = a/b", "law=/c=d")) == {"sql": "a/b", "law": "/c=d"}
    for wrong in (("sql",), ("=a",), ("sql=",), ("sql=a", "sql=b")):
        with pytest.raises(ValueError, match=r"sql|=a"):
            read_adapters(wrong)
    assert adapter_roots(("/a", "/b")) == (Path("/a"), Path("/b"))
    with pytest.raises(ValueError, match="not absolute"):
        adapter_roots(("a",))
