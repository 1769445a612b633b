"""What clients, the engine and the books say of each request of a chaotic run, and where they disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from accounting.tables import usage_events
from inference.simulated_account import read_account
from naru.usage import Evidence

# Longer than a report of the edge waits for an accounting that is being started again.
_REPORT_SECONDS = 45.0


@dataclass(slots=True)
class Told:
    """What a client was told of its request. Times are monotonic seconds.

    Attributes:
        answer: The HTTP status, or what kept it from coming.
        ending: How the stream ended: complete, error, hung up or broken; empty when none began.
        words: Tokens of text that came.
        completion_tokens: Of the usage at the end of a complete stream.
    """

    began: float
    ended: float = 0.0
    answer: str = ""
    ending: str = ""
    words: int = 0
    completion_tokens: int = 0

    @property
    def admitted(self) -> bool:
        """Whether it was told that the engine has its request."""
        return self.answer == "200"


@dataclass(frozen=True, slots=True)
class Kill:
    """One process that was killed, and its children with it."""

    victim: str
    time: float
    process_ids: tuple[int, ...]


@dataclass(slots=True)
class Story:
    """All that happened; `told` is by request id, `admitted` is how many of these were."""

    told: dict[str, Told] = field(default_factory=dict)
    admitted: int = 0
    kills: list[Kill] = field(default_factory=list)
    load_seconds: float = 0.0
    drain_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Worked:
    """What the engine says of a request: `generated` is of those of its choices that ended."""

    process_id: int
    generated: int
    ended: bool


@dataclass(frozen=True, slots=True)
class Billed:
    """What the books say of one attempt of a request."""

    event_id: str
    evidence: Evidence
    prompt_tokens: int
    completion_tokens: int


Books = Mapping[str, Sequence[Billed]]


def read_worked(path: Path) -> dict[str, Worked]:
    """The engine's account, by request id."""
    begun: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    generated: Counter[str] = Counter()
    process_ids: dict[str, int] = {}
    for line in read_account(path):
        process_ids[line.user] = line.process
        if line.ended:
            ended[line.user] += 1
            generated[line.user] += line.generated
        else:
            begun[line.user] += 1
    return {user: Worked(process_ids[user], generated[user], ended[user] == begun[user]) for user in begun}


async def read_books(database_url: str) -> dict[str, list[Billed]]:
    """All attempts that have an outcome, by request id."""
    engine = create_async_engine(database_url)
    found: dict[str, list[Billed]] = {}
    try:
        async with engine.connect() as connection:
            for row in await connection.execute(sa.select(usage_events)):
                billed = Billed(row.event_id, Evidence(row.evidence), row.prompt_tokens, row.completion_tokens)
                found.setdefault(row.request_id, []).append(billed)
    finally:
        await engine.dispose()
    return found


def disagreements(story: Story, worked: Mapping[str, Worked], books: Books) -> list[str]:
    """What does not agree. Empty: every request has one outcome, billed as it has to be."""
    found = []
    for request_id in sorted({*story.told, *worked, *books}):
        told, work, rows = story.told.get(request_id), worked.get(request_id), books.get(request_id, ())
        if told is None:
            objections = ["nobody asked for it"]
        elif len(rows) > 1:
            objections = [f"{len(rows)} outcomes"]
        elif not rows:
            objections = ["admitted, and no outcome"] if told.admitted or work else []
        elif work is None:
            objections = _never_worked_on(told, rows[0])
        elif work.ended:
            objections = [*_exact(work, rows[0]), *_as_told(told, rows[0])]
        else:
            objections = [*_killed(story, told, work, rows[0]), *_as_told(told, rows[0])]
        found += [f"{request_id}: {objection}" for objection in objections]
    return found


def _never_worked_on(told: Told, billed: Billed) -> list[str]:
    """Reserved, and killed before the engine had it."""
    if told.admitted:
        return ["admitted, and the engine never had it"]
    if billed.evidence > Evidence.ACCEPTED or billed.completion_tokens:
        return [f"billed {billed.completion_tokens}, and the engine never had it"]
    return []


def _exact(work: Worked, billed: Billed) -> list[str]:
    if (billed.evidence, billed.completion_tokens) == (Evidence.FINAL, work.generated):
        return []
    return [f"the engine generated {work.generated}, billed {billed.completion_tokens} by {billed.evidence.name}"]


def _killed(story: Story, told: Told, work: Worked, billed: Billed) -> list[str]:
    """The engine was killed with it: billed is what the edge delivered, unless that was killed as well."""
    if not any(work.process_id in kill.process_ids for kill in story.kills if kill.victim == "inference"):
        return ["the engine lived, and never ended it"]
    if billed.evidence is Evidence.DELIVERED and told.ending == "error" and billed.completion_tokens != told.words:
        return [f"{told.words} were delivered, billed {billed.completion_tokens}"]
    edge_lived = not any(
        kill.victim == "edge" and told.began <= kill.time <= told.ended + _REPORT_SECONDS for kill in story.kills
    )
    if billed.evidence < Evidence.DELIVERED and edge_lived and told.admitted:
        return [f"{told.words} were delivered, and nobody reported it"]
    return []


def _as_told(told: Told, billed: Billed) -> list[str]:
    if told.ending == "complete" and not told.completion_tokens == told.words == billed.completion_tokens:
        return [f"{told.words} came, {told.completion_tokens} told, billed {billed.completion_tokens}"]
    if billed.evidence >= Evidence.DELIVERED and billed.completion_tokens < told.words:
        return [f"{told.words} came, billed {billed.completion_tokens}"]
    return []
