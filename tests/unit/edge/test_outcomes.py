"""What is kept of answers."""

from __future__ import annotations

import pytest

from edge.outcomes import MAX_OUTCOME_BYTES, Answer, Recording, decode, identify, read_key
from naru.errors import NaruError

HEADERS = {"Content-Type": "text/event-stream"}


def test_an_answer_is_kept_whole() -> None:
    """All that was added comes back in order, with whose it was."""
    recording = Recording(wanted=True)
    for chunk in (b"data: \xff\n", b"", b"\n"):
        recording.add(chunk)
    kept = recording.encode("req", HEADERS)
    assert kept is not None
    assert decode(kept) == Answer("req", HEADERS, b"data: \xff\n\n")


def test_nothing_is_kept_of_what_nobody_wants() -> None:
    """A request without a key costs no memory."""
    recording = Recording(wanted=False)
    recording.add(b"x")
    assert recording.encode("req", HEADERS) is None


@pytest.mark.parametrize(("size", "kept"), [(MAX_OUTCOME_BYTES - 500, True), (MAX_OUTCOME_BYTES - 10, False)])
def test_the_envelope_counts(size: int, kept: bool) -> None:
    """What is kept is never larger than the limit, envelope included."""
    recording = Recording(wanted=True)
    recording.add(b"x" * size)
    encoded = recording.encode("req", HEADERS)
    assert (encoded is not None) is kept
    assert len(encoded or b"") <= MAX_OUTCOME_BYTES


def test_one_byte_too_many() -> None:
    """Past the limit nothing is kept, whatever comes after."""
    recording = Recording(wanted=True)
    recording.add(b"x" * MAX_OUTCOME_BYTES)
    recording.add(b"y")
    recording.add(b"z")
    assert recording.encode("req", {}) is None


@pytest.mark.parametrize("key", ["k", "a b", "~" * 255])
def test_keys(key: str) -> None:
    """One to 255 printable characters."""
    assert read_key([key]) == key
    assert read_key([]) is None


@pytest.mark.parametrize("values", [[""], ["k" * 256], ["\t"], ["키"], ["\x7f"], ["a", "a"]])
def test_wrong_keys(values: list[str]) -> None:
    """Everything else is refused by the header's name."""
    with pytest.raises(NaruError) as error:
        read_key(values)
    assert error.value.metadata == {"field": "Idempotency-Key"}


def test_a_digest_tells_requests_apart() -> None:
    """Endpoint, body and whether it streams each change it; the key does not."""
    asked = [("/a", b"{}", False), ("/a", b"{}", True), ("/a", b"{} ", False), ("/b", b"{}", False)]
    digests = [identify("k", endpoint, body, stream=stream).body_digest for endpoint, body, stream in asked]
    assert len(set(digests)) == 4
    assert identify("other", "/a", b"{}", stream=False).body_digest == digests[0]
