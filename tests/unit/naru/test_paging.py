"""Tokens of pages."""

from __future__ import annotations

import base64
import json

import pytest

from naru.errors import NaruError, Reason
from naru.paging import read_token, write_token


def test_a_token_says_where_the_next_page_begins() -> None:
    """It comes back as it was written; without one, a list begins at its beginning."""
    assert read_token(("a", 1), write_token(("a", 1), (5, "x")), (int, str)) == (5, "x")
    assert read_token((), "", (str,)) is None


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "😀",
        "bnVsbA==",
        base64.urlsafe_b64encode(b"[" * 100_000).decode(),
        write_token(("other",), (5, "x")),
        write_token((), (5,)),
        write_token((), ("x", 5)),
        write_token((), (-1, "x")),
        write_token((), (2**63, "x")),
        write_token((), (True, "x")),
        write_token((), (5, "x\0")),
        write_token((), (5, "\ud800")),
        write_token((), (5, "x" * 513)),
        base64.urlsafe_b64encode(json.dumps({"a": 1}).encode()).decode(),
    ],
)
def test_made_up_tokens_are_refused(token: str) -> None:
    """Whatever is sent: the error names the field."""
    with pytest.raises(NaruError) as failure:
        read_token((), token, (int, str))
    assert (failure.value.reason, failure.value.metadata) == (Reason.INVALID_ARGUMENT, {"field": "page_token"})
