"""Tables of the command line."""

from __future__ import annotations

import io

from rich.table import Table

from naru.cli.tables import show


def test_nothing_is_cut_where_a_terminal_is_narrow() -> None:
    """Every column and every character is there."""
    cells = [f"{name}-" + "x" * 40 for name in "abcdef"]
    table = Table(*cells)
    table.add_row(*cells)
    output = io.StringIO()
    show(table, file=output, width=80)
    assert all(output.getvalue().count(cell) == 2 for cell in cells)


def test_texts_are_shown_as_they_are() -> None:
    """What rich would take for markup, an emoji or a link is text, wherever in a table it stands."""
    texts = ["[/x]", "[red]pro[/red]", "[link=https://example.com]here", "\\[bold]", ":smile:", "[a-z]*"]
    table = Table(*texts, title="Limits of tier [/title]", caption="[/caption]")
    table.add_row(*texts)
    output = io.StringIO()
    show(table, file=output, width=80)
    assert [output.getvalue().count(text) for text in texts] == [2] * len(texts)
    assert all(text in output.getvalue() for text in ("[/title]", "[/caption]"))
