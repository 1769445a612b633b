"""The comparison at the end of a chaotic run finds what it is there to find."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.chaos_books import Billed, Kill, Story, Told, Worked, disagreements
from naru.usage import Evidence

COMPLETE = Told(began=100.0, ended=101.0, answer="200", ending="complete", words=9, completion_tokens=9)
HUNG_UP = Told(began=100.0, ended=101.0, answer="200", ending="hung up", words=4)
CUT = Told(began=100.0, ended=101.0, answer="200", ending="error", words=4)
LOST = Told(began=100.0, ended=101.0, answer="200", ending="broken", words=4)
REFUSED = Told(began=100.0, ended=101.0, answer="503")
INFERENCE = Kill("inference", 100.5, (7,))
EDGE = Kill("edge", 101.5, (8,))
LIVED, KILLED = Worked(6, 9, ended=True), Worked(7, 0, ended=False)
FINAL, DELIVERED, ACCEPTED, NONE = (
    Billed("event", evidence, 5, tokens)
    for evidence, tokens in ((Evidence.FINAL, 9), (Evidence.DELIVERED, 4), (Evidence.ACCEPTED, 0), (Evidence.NONE, 0))
)


def found(told: Told, worked: Worked | None, *billed: Billed, kills: tuple[Kill, ...] = (INFERENCE,)) -> list[str]:
    """What is said of one request."""
    story = Story(told={"r": told}, kills=list(kills))
    return disagreements(story, {"r": worked} if worked else {}, {"r": list(billed)} if billed else {})


@pytest.mark.parametrize(
    ("told", "worked", "billed", "kills"),
    [
        (COMPLETE, LIVED, FINAL, ()),
        (HUNG_UP, LIVED, FINAL, ()),
        (CUT, KILLED, DELIVERED, (INFERENCE,)),
        (HUNG_UP, KILLED, replace(DELIVERED, completion_tokens=6), (INFERENCE,)),
        (CUT, KILLED, ACCEPTED, (INFERENCE, EDGE)),
        (REFUSED, KILLED, ACCEPTED, (INFERENCE,)),
        (REFUSED, None, NONE, ()),
    ],
)
def test_what_has_to_be_is_not_objected_to(
    told: Told, worked: Worked | None, billed: Billed, kills: tuple[Kill, ...]
) -> None:
    """Exact while the engine lived, delivered when it was killed, accepted when the edge was as well, nothing before."""
    assert found(told, worked, billed, kills=kills) == []


def test_a_refused_request_needs_no_outcome() -> None:
    """What nobody admitted and no engine worked on may have left nothing."""
    assert found(REFUSED, None) == []


@pytest.mark.parametrize(
    ("told", "worked", "billed"),
    [
        (COMPLETE, LIVED, ()),
        (REFUSED, LIVED, ()),
        (COMPLETE, LIVED, (FINAL, FINAL)),
        (COMPLETE, None, (FINAL,)),
        (REFUSED, None, (DELIVERED,)),
        (HUNG_UP, LIVED, (replace(FINAL, completion_tokens=8),)),
        (HUNG_UP, LIVED, (DELIVERED,)),
        (replace(COMPLETE, completion_tokens=8), LIVED, (FINAL,)),
        (replace(COMPLETE, words=8), LIVED, (FINAL,)),
        (HUNG_UP, replace(KILLED, process_id=6), (DELIVERED,)),
        (CUT, KILLED, (replace(DELIVERED, completion_tokens=5),)),
        (CUT, KILLED, (replace(DELIVERED, completion_tokens=3),)),
        (HUNG_UP, KILLED, (replace(DELIVERED, completion_tokens=3),)),
        (LOST, KILLED, (ACCEPTED,)),
        (LOST, KILLED, (NONE,)),
    ],
)
def test_what_must_not_be_is_found(told: Told, worked: Worked | None, billed: tuple[Billed, ...]) -> None:
    """No outcome, two, too little, too much, worse evidence than there was, or an engine that lived and forgot."""
    assert found(told, worked, *billed)


def test_an_outcome_that_nobody_asked_for_is_found() -> None:
    """Also of what no client knows of."""
    assert disagreements(Story(), {}, {"r": [FINAL]}) == ["r: nobody asked for it"]
