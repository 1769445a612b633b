"""What can be checked of the documents: that links lead somewhere, and that the translation has all of the original."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a file of the repository names one that is there."""
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_korean_readme_has_all_of_the_english_one() -> None:
    """The same sections, links, names and commands; comments and prose are translated."""
    english, korean = ((ROOT / name).read_text() for name in ("README.md", "README.ko.md"))
    for what in (
        r"^#+ ",
        r"^```\w+",
        r"\]\((?!README)[^)]+\)",
        r"NARU_\w+",
        r"`make \w+",
        r"--[a-z-]+",
        r"^client|^for chunk",
    ):
        assert sorted(re.findall(what, english, re.MULTILINE)) == sorted(re.findall(what, korean, re.MULTILINE)), what
