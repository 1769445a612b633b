"""What engines say that they counted, and whether the books agree, pure."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Requests that have ended, and their tokens."""

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: EngineFigures) -> EngineFigures:
        return EngineFigures(*(mine + yours for mine, yours in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What the engine of a replica's run counted until it told; `closed` when the run was over."""

    replica: str
    epoch: str
    counted: EngineFigures
    closed: bool


class Agreement(StrEnum):
    """Whether events are what an engine counted. BOUNDED: they are more than it told so far, and none is missing."""

    EXACT = "exact"
    BOUNDED = "bounded"
    WRONG = "wrong"


def compare(report: EngineReport, booked: EngineFigures) -> Agreement:
    """Compares the exact events of a run with what its engine counted.

    An engine tells its figures with the last of the events that they are about, so no event of theirs can be missing. Others
    may come after: a run that was killed before it could tell again is known by them, and so is one that still runs.
    """
    counted = report.counted
    if booked == counted:
        return Agreement.EXACT
    complete = all(found >= told for found, told in zip(astuple(booked), astuple(counted), strict=True))
    if complete and booked.requests > counted.requests and not report.closed:
        return Agreement.BOUNDED
    return Agreement.WRONG


def tokens_apart(one: EngineFigures, other: EngineFigures) -> int:
    """By how many tokens figures differ, each kind by itself."""
    return sum(abs(mine - yours) for mine, yours in zip(astuple(one)[1:], astuple(other)[1:], strict=True))
