"""What engines counted is what their events say, or it is found out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import sqlalchemy as sa

from accounting.engines import EngineFigures, EngineReport
from accounting.ledger.verification import Check, Verification
from accounting.quota import EventRef
from accounting.settlement import UsageEvent
from accounting.usage.retention_store import RetentionStore
from accounting.usage.rollup_store import RollupStore
from naru.usage import Accuracy, Evidence, Usage
from tests.integration.accounting.harness import SECOND, START, Books, new_ref, report
from tests.integration.accounting.test_ledger_verification import verifier
from tests.support.copies import replace

DAY = 86_400 * SECOND


def worked(ref: EventRef | None = None, epoch: str = "epoch-1", **changes: object) -> UsageEvent:
    """An exact event of an engine, with 7 tokens of prompt, 2 of them cached, and 3 generated."""
    event = replace(report(ref or new_ref()), usage=Usage(7, 3, 2), replica="replica-1", epoch=epoch)
    return replace(event, **changes)  # type: ignore[arg-type]  # a test names fields of UsageEvent


async def shipped(books: Books, events: Sequence[UsageEvent], told: EngineFigures, *, closed: bool = False) -> None:
    """Records the events of a run, and then what its engine told with them."""
    await books.recorder.record(events)
    await tell(books, told, closed=closed)


async def tell(books: Books, told: EngineFigures, *, closed: bool = False, epoch: str = "epoch-1") -> None:
    """An engine tells what it counted."""
    await books.recorder.record([], EngineReport("replica-1", epoch, told, closed))


def figures(requests: int) -> EngineFigures:
    """What so many of the usual events come to."""
    return EngineFigures(requests, 7 * requests, 2 * requests, 3 * requests)


def runs(found: Verification) -> tuple[int, int, int]:
    """Exact runs, bounded ones, and the requests beyond their bounds."""
    return found.exact_runs, found.bounded_runs, found.uncounted_requests


async def alter(books: Books, statement: str) -> None:
    """Does to the books what nobody may."""
    async with books.database.writing() as connection:
        await connection.execute(sa.text(statement))


async def test_events_that_are_what_the_engine_counted(books: Books) -> None:
    """Retries elsewhere count for the engine that did them; estimates and the edge's reports are no engine's."""
    retried = new_ref(attempt=1)
    events = [worked(), worked(), worked(retried), worked(replace(retried, attempt=0))]
    estimate = worked(accuracy=Accuracy.ESTIMATED)
    delivered = replace(report(new_ref(), Evidence.DELIVERED), replica="", epoch="")
    await shipped(books, [*events, estimate, delivered], figures(4))
    found = await verifier(books).verify()
    assert (found.findings, runs(found)) == ((), (1, 0, 0))
    await shipped(books, [worked()], figures(5), closed=True)
    assert runs(await verifier(books).verify()) == (1, 0, 0)


@pytest.mark.parametrize(
    ("statement", "tokens"),
    [
        ("UPDATE usage_events SET completion_tokens = completion_tokens - 1 WHERE event_id = '{event}'", 1),
        ("UPDATE usage_events SET prompt_tokens = prompt_tokens + 5 WHERE event_id = '{event}'", 5),
        ("UPDATE usage_events SET cached_prompt_tokens = 0 WHERE event_id = '{event}'", 2),
        ("DELETE FROM usage_events WHERE event_id = '{event}'", 12),
        ("UPDATE usage_events SET accuracy = 'estimated' WHERE event_id = '{event}'", 12),
    ],
)
async def test_an_event_that_was_doctored_or_is_gone_is_found(books: Books, statement: str, tokens: int) -> None:
    """By how many tokens, and of which run, while it goes on and after it."""
    ref = new_ref()
    await shipped(books, [worked(), worked(ref)], figures(2))
    await alter(books, statement.format(event=ref.event_id))
    for closed in (False, True):
        await tell(books, figures(2), closed=closed)
        (finding,) = [one for one in (await verifier(books).verify()).findings if one.check is Check.ENGINES]
        assert (finding.count, finding.tokens, finding.example) == (1, tokens, "replica-1 epoch-1")


async def test_an_event_too_many_is_found_once_the_run_is_over(books: Books) -> None:
    """Until then the engine may be about to tell of it."""
    await shipped(books, [worked()], figures(1))
    await books.recorder.record([worked()])
    assert runs(await verifier(books).verify()) == (0, 1, 1)
    await tell(books, figures(1), closed=True)
    (finding,) = (await verifier(books).verify()).findings
    assert (finding.check, finding.tokens) == (Check.ENGINES, 12)


async def test_a_run_that_was_killed_is_a_bound(books: Books) -> None:
    """What the journal still had comes from the next run, and what was in flight is no exact event of any."""
    await shipped(books, [worked()], figures(1))
    lost = replace(worked(), evidence=Evidence.ACCEPTED, accuracy=Accuracy.ESTIMATED)
    await books.recorder.record([worked(), worked(), lost])
    found = await verifier(books).verify()
    assert (found.findings, runs(found)) == ((), (0, 1, 2))


async def test_a_bound_that_does_not_hold_is_found(books: Books) -> None:
    """More requests do not make up for tokens that are missing."""
    await shipped(books, [worked(usage=Usage(7, 3_000, 2))], EngineFigures(1, 7, 2, 3_000))
    await alter(books, "UPDATE usage_events SET completion_tokens = 3")
    await books.recorder.record([worked()])
    (finding,) = (await verifier(books).verify()).findings
    assert finding.check is Check.ENGINES


async def test_a_replica_that_began_again_is_another_run(books: Books) -> None:
    """Its figures begin at nothing, and are compared with its own events."""
    await shipped(books, [worked()], figures(1), closed=True)
    await books.recorder.record([worked(epoch="epoch-2"), worked(epoch="epoch-2")])
    await tell(books, figures(2), epoch="epoch-2")
    assert runs(await verifier(books).verify()) == (2, 0, 0)


async def test_figures_never_go_back(books: Books) -> None:
    """What comes late or twice changes nothing, and what is over stays over."""
    await shipped(books, [worked(), worked()], figures(2), closed=True)
    await tell(books, figures(1))
    await tell(books, figures(2))
    found = await verifier(books).verify()
    assert (found.findings, runs(found)) == ((), (1, 0, 0))
    await alter(books, "DELETE FROM usage_events")
    assert [one.check for one in (await verifier(books).verify()).findings].count(Check.ENGINES) == 1


async def test_events_that_were_pruned_are_not_missing(books: Books) -> None:
    """What they come to is kept, so a run can be compared for as long as it lasts."""
    await shipped(books, [worked(), worked()], figures(2))
    await books.recorder.deliver_outbox()
    while await RollupStore(books.database).roll(1_000):
        pass
    assert await RetentionStore(books.database).prune_usage(START + DAY, 1) == 1
    assert runs(await verifier(books).verify()) == (1, 0, 0)
    assert await RetentionStore(books.database).prune_usage(START + DAY, 10) == 1
    await shipped(books, [worked()], figures(3))
    assert runs(await verifier(books).verify()) == (1, 0, 0)
