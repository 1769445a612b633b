"""The form of keys."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from naru import api_key
from naru.errors import NaruError

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@given(st.text(BASE62, min_size=12, max_size=12), st.text(BASE62, min_size=43, max_size=43))
def test_a_key_comes_apart_as_it_was_put_together(key_id: str, secret: str) -> None:
    """Format and parse are each other's inverse."""
    parsed = api_key.parse(api_key.format_key(key_id, secret))
    assert (parsed.key_id, parsed.secret) == (key_id, secret)


@given(st.integers(0, 70), st.characters())
def test_changing_any_character_is_noticed(position: int, character: str) -> None:
    """The checksum covers all of it; a single change is always found, by the nature of a CRC."""
    key = api_key.generate(os.urandom)
    position %= len(key)
    if key[position] == character:
        return
    with pytest.raises(NaruError):
        api_key.parse(key[:position] + character + key[position + 1 :])


def test_keys_differ_and_hide_their_secret() -> None:
    """No two are alike, and the secret is not in the representation."""
    keys = {api_key.generate(os.urandom) for _ in range(1000)}
    assert len(keys) == 1000
    parsed = api_key.parse(keys.pop())
    assert parsed.secret not in repr(parsed)
