"""Keys: made, checked, and refused."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authsvc.keys import Pepper, Peppers, SecretDigest, new_key
from naru import api_key
from naru.errors import NaruError, Reason

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
OLD, NEW = Pepper(1, b"o" * 32), Pepper(2, b"n" * 32)


def random_bytes(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


@given(st.integers(0, 2**64))
def test_a_new_key_matches_its_digest(seed: int) -> None:
    """What is stored of a new key recognises the secret in its text, and the id is the text's."""
    peppers = Peppers([NEW, OLD])
    made = new_key(peppers, random_bytes(seed))
    parsed = api_key.parse(made.text)
    assert parsed.key_id == made.key_id
    assert made.digest.pepper_version == 2
    assert peppers.matches(parsed.secret, made.digest)


@given(st.integers(0, 2**64), st.integers(0, 72), st.sampled_from(ALPHABET + "-_ "))
def test_one_changed_character_is_refused(seed: int, position: int, character: str) -> None:
    """Changing any one character of a key makes it malformed: no database is asked."""
    text = new_key(Peppers([NEW]), random_bytes(seed)).text
    changed = text[: position % len(text)] + character + text[position % len(text) + 1 :]
    if changed == text:
        return
    with pytest.raises(NaruError) as failure:
        api_key.parse(changed)
    assert failure.value.reason is Reason.INVALID_API_KEY


@given(st.integers(0, 2**64), st.integers(0, 42), st.sampled_from(ALPHABET))
def test_one_changed_character_of_the_secret_does_not_match(seed: int, position: int, character: str) -> None:
    """A secret that differs in one character does not match, also when its checksum was made right again."""
    peppers = Peppers([NEW])
    made = new_key(peppers, random_bytes(seed))
    secret = api_key.parse(made.text).secret
    changed = secret[:position] + character + secret[position + 1 :]
    assert peppers.matches(changed, made.digest) is (changed == secret)


def test_keys_outlive_a_new_pepper() -> None:
    """A digest under an earlier pepper still matches after a new pepper became the first."""
    made = new_key(Peppers([OLD]), random_bytes(1))
    secret = api_key.parse(made.text).secret
    both = Peppers([NEW, OLD])
    assert both.matches(secret, made.digest)
    assert both.digest(secret) == SecretDigest(2, both.digest(secret).digest) != made.digest


def test_no_digest_and_a_lost_pepper_match_nothing() -> None:
    """An unknown key matches nothing, nor does a digest whose pepper is gone, nor the stand-in's own digest."""
    made = new_key(Peppers([OLD]), random_bytes(1))
    secret = api_key.parse(made.text).secret
    assert not Peppers([NEW]).matches(secret, None)
    assert not Peppers([NEW]).matches(secret, made.digest)
    assert not Peppers([NEW]).matches(secret, SecretDigest(2, bytes(32)))


@pytest.mark.parametrize(
    ("peppers", "said"),
    [
        ([], "at least one pepper"),
        ([NEW, Pepper(2, b"x" * 32)], "a version of its own"),
        ([NEW, Pepper(1, b"x" * 31)], "pepper 1 has 31 bytes"),
    ],
)
def test_bad_peppers_are_refused(peppers: list[Pepper], said: str) -> None:
    """No pepper, one version twice, and a short pepper are configuration errors that say what is wrong."""
    with pytest.raises(ValueError, match=said):
        Peppers(peppers)


def test_secrets_are_not_in_representations() -> None:
    """Printing a pepper or a new key shows no secret."""
    made = new_key(Peppers([NEW]), random_bytes(1))
    assert api_key.parse(made.text).secret not in repr(made)
    assert "nnn" not in repr(NEW)
