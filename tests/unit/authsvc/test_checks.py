"""What a key may look like."""

from __future__ import annotations

import pytest

from authsvc.checks import check_expire_time, check_request_id, check_scopes, check_text, within_scopes
from naru.errors import NaruError, Reason
from naru.identity import Scopes


@pytest.mark.parametrize(
    ("scopes", "field"),
    [
        (Scopes(models=("x",) * 65), "scopes.models"),
        (Scopes(models=("x" * 257,)), "scopes.models"),
        (Scopes(models=("",)), "scopes.models"),
        (Scopes(models=("a\x00b",)), "scopes.models"),
        (Scopes(endpoints=("v1/models",)), "scopes.endpoints"),
        (Scopes(source_cidrs=("10.0.0.1/8",)), "scopes.source_cidrs"),
        (Scopes(source_cidrs=("10.0.0.0/33",)), "scopes.source_cidrs"),
        (Scopes(source_cidrs=("office",)), "scopes.source_cidrs"),
    ],
)
def test_bad_scopes_name_their_field(scopes: Scopes, field: str) -> None:
    """Too many, too long, empty or malformed scopes are refused with the name of the field."""
    with pytest.raises(NaruError) as failure:
        check_scopes(scopes)
    assert failure.value.reason is Reason.INVALID_ARGUMENT
    assert failure.value.metadata == {"field": field}


def test_good_scopes_pass() -> None:
    """Globs, paths, networks of both families and single addresses are taken, up to the limits."""
    check_scopes(Scopes(("*",) * 64, ("/v1/" + "x" * 252,), ("10.0.0.0/8", "2001:db8::/32", "192.0.2.7")))


@pytest.mark.parametrize("text", ["x" * 11, "line\nbreak", " led", "trailed ", "nul\x00"])
def test_bad_texts_are_refused(text: str) -> None:
    """Texts that are too long, hold control characters or have spaces around them name their field."""
    with pytest.raises(NaruError) as failure:
        check_text("description", text, 10)
    assert failure.value.metadata == {"field": "description"}


@pytest.mark.parametrize("text", ["", "개발팀", "x" * 10, "two words"])
def test_good_texts_pass(text: str) -> None:
    """Empty texts, texts in any script and texts of just the allowed length pass."""
    check_text("description", text, 10)


def test_request_ids_are_uuids() -> None:
    """A request id is empty or a UUID."""
    check_request_id("")
    check_request_id("0198c7c2-8d6f-7c39-a1f5-6f1f60a7a4b1")
    with pytest.raises(NaruError) as failure:
        check_request_id("again")
    assert failure.value.metadata == {"field": "request_id"}


def test_expiry_lies_in_the_future() -> None:
    """A key may end later or never, not now."""
    check_expire_time(None, 100.0)
    check_expire_time(100.1, 100.0)
    with pytest.raises(NaruError) as failure:
        check_expire_time(100.0, 100.0)
    assert failure.value.metadata == {"field": "expire_time"}


@pytest.mark.parametrize(
    ("inner", "outer", "allowed"),
    [
        (Scopes(), Scopes(), True),
        (Scopes(models=("a",)), Scopes(), True),
        (Scopes(), Scopes(models=("a",)), False),
        (Scopes(models=("a",)), Scopes(models=("a", "b")), True),
        (Scopes(models=("a", "c")), Scopes(models=("a", "b")), False),
        (Scopes(), Scopes(endpoints=("/v1/models",)), False),
        (Scopes(), Scopes(source_cidrs=("10.0.0.0/8",)), False),
        (Scopes(source_cidrs=("10.1.0.0/16",)), Scopes(source_cidrs=("192.0.2.0/24", "10.0.0.0/8")), True),
        (Scopes(source_cidrs=("10.0.0.0/7",)), Scopes(source_cidrs=("10.0.0.0/8",)), False),
        (Scopes(source_cidrs=("::/0",)), Scopes(source_cidrs=("0.0.0.0/0",)), False),
        (Scopes(models=("small-1", "small-x*")), Scopes(models=("small-*",)), True),
        (Scopes(models=("*",)), Scopes(models=("small-*",)), False),
        (Scopes(models=("a*",)), Scopes(models=("a?",)), False),
        (Scopes(models=("[ab]c",)), Scopes(models=("*]c",)), False),
        (Scopes(models=("b",)), Scopes(models=("[ab]",)), False),
        (Scopes(endpoints=("/v1/chat/completions",)), Scopes(endpoints=("/v1/*",)), True),
        (Scopes(endpoints=("/api/keys",)), Scopes(endpoints=("/v1/*",)), False),
    ],
)
def test_scopes_never_widen(inner: Scopes, outer: Scopes, allowed: bool) -> None:
    """A key's scopes must lie within its maker's: what narrows the maker must narrow the key at least as much."""
    assert within_scopes(inner, outer) is allowed
