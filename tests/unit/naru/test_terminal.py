"""A terminal that goes away."""

from __future__ import annotations

import os
import pty

from naru.cli.terminal import Terminal


def test_a_closed_terminal_is_written_to_in_vain() -> None:
    """What is shown is shown as long as somebody looks; after that nothing fails, closing the stream included."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stream:
        terminal = Terminal(stream)
        terminal.write("seen\n")
        terminal.flush()
        assert os.read(ours, 100) == b"seen\r\n"
        assert terminal.isatty()
        os.close(ours)
        for _ in range(2):
            assert terminal.write("unseen\n") == 7
            terminal.flush()
