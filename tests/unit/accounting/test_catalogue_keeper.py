"""When the catalogue of a process follows the database's, and what happens while that is away."""

from __future__ import annotations

import asyncio

import pytest

from accounting.catalogue.catalogue import Price
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.store import Snapshot
from accounting.catalogue.tier_file import BUILT_IN
from accounting.limits import Budget, LimitRule, Tier, TierLimit
from accounting.quota import LimitKind, LimitScope, LimitWindow
from naru.errors import NaruError, Reason, unavailable
from naru.identity import Principal
from naru.logs import get_logger
from naru.pricing import UnitPrices
from naru.testing.clock import FakeClock

LOG = get_logger("test")
STRICT = (TierLimit(LimitRule(LimitKind.REQUESTS, LimitWindow.MINUTE, 1)),)


class Source:
    """A database that a test changes, blocks and takes away. It counts how often it is asked."""

    def __init__(self) -> None:
        self.snapshot = Snapshot(0, (), (), ())
        self.looks = self.loads = 0
        self.failure: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def revision(self) -> int:
        self.looks += 1
        found, failure = self.snapshot.revision, self.failure
        await self.open.wait()
        if failure is not None:
            raise failure
        return found

    async def load(self) -> Snapshot:
        self.loads += 1
        return self.snapshot

    def change(self, *tiers: Tier) -> None:
        self.snapshot = Snapshot(self.snapshot.revision + 1, tiers, (), ())


class Logs:
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def warning(self, event: str, **_: object) -> None:
        self.lines.append(("warning", event))

    def info(self, event: str, **_: object) -> None:
        self.lines.append(("info", event))


@pytest.fixture
def source() -> Source:
    """An empty database."""
    return Source()


@pytest.fixture
def keeper(source: Source) -> CatalogueKeeper:
    """A keeper of it, with the tier "fixed" in the configuration's file."""
    return CatalogueKeeper(source, {"fixed": Tier("fixed", STRICT)}, FakeClock(), LOG)


async def until(condition: object) -> None:
    """Lets others run until `condition()` holds."""
    async with asyncio.timeout(20):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0)


async def test_the_configurations_tiers_are_there_from_the_first(keeper: CatalogueKeeper) -> None:
    """Before anything was read, the built-in tiers and the file's are in force."""
    assert keeper.current.tier("free") == BUILT_IN["free"]
    assert keeper.current.tier("fixed").limits == STRICT


async def test_three_layers_of_tiers(source: Source, keeper: CatalogueKeeper) -> None:
    """A stored tier replaces a built-in one, the file's replaces a stored one, and what is deleted comes back."""
    source.change(Tier("free", STRICT), Tier("fixed"), Tier("pro", STRICT))
    await keeper.refresh()
    assert keeper.current.tier("free").limits == keeper.current.tier("fixed").limits == STRICT
    assert keeper.current.knows_tier("pro")
    source.change()
    await keeper.refresh()
    assert keeper.current.tier("free") == BUILT_IN["free"]
    assert not keeper.current.knows_tier("pro")


async def test_budgets_and_prices_are_taken_over(source: Source, keeper: CatalogueKeeper) -> None:
    """What applies to a principal, and what a model costs, are those of the database."""
    rule = LimitRule(LimitKind.COST, LimitWindow.DAY, 5)
    price = Price("p", "m", "", UnitPrices(1), 10)
    source.snapshot = Snapshot(1, (), (Budget("b", LimitScope.WORKSPACE, "w", rule),), (price,))
    await keeper.refresh()
    assert rule.limit_of(LimitScope.WORKSPACE, "w") in keeper.current.limits(Principal("w", key_id="k"))
    assert (keeper.current.price("m", "w", 10), keeper.current.price("m", "w", 9)) == (price, None)


async def test_nothing_is_loaded_without_a_change(source: Source, keeper: CatalogueKeeper) -> None:
    """A look at the revision is all it takes while nothing changes."""
    for _ in range(3):
        await keeper.refresh()
    assert (source.looks, source.loads) == (3, 1)


async def test_callers_at_once_share_a_look(source: Source, keeper: CatalogueKeeper) -> None:
    """However many wait: one look that was under way, and one for all who came meanwhile."""
    source.open.clear()
    waiting = [asyncio.create_task(keeper.refresh()) for _ in range(20)]
    await until(lambda: source.looks)
    source.open.set()
    await asyncio.gather(*waiting)
    assert source.looks == 2


async def test_a_change_is_in_force_for_who_asks_after_it(source: Source, keeper: CatalogueKeeper) -> None:
    """A look that began before the change is not taken for one that saw it."""
    source.open.clear()
    early = asyncio.create_task(keeper.refresh())
    await until(lambda: source.looks)
    source.change(Tier("pro"))
    late = asyncio.create_task(keeper.refresh())
    source.open.set()
    await late
    assert keeper.current.knows_tier("pro")
    await early


async def test_a_caller_who_leaves_takes_nobody_along(source: Source, keeper: CatalogueKeeper) -> None:
    """When the one that looks is cancelled, the next one looks."""
    source.change(Tier("pro"))
    source.open.clear()
    first, second = asyncio.create_task(keeper.refresh()), asyncio.create_task(keeper.refresh())
    await until(lambda: source.looks)
    first.cancel()
    source.open.set()
    await second
    assert keeper.current.knows_tier("pro")


async def test_an_outage_is_told_to_everybody_and_changes_nothing(source: Source, keeper: CatalogueKeeper) -> None:
    """All who asked hear SERVICE_UNAVAILABLE, after two looks in all; the catalogue stays, and recovers."""
    source.change(Tier("pro"))
    await keeper.refresh()
    source.change()
    source.failure = unavailable("database")
    source.looks = 0
    source.open.clear()
    waiting = [asyncio.create_task(keeper.refresh()) for _ in range(20)]
    await until(lambda: source.looks)
    source.open.set()
    errors = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(error, NaruError) and error.reason for error in errors] == [Reason.SERVICE_UNAVAILABLE] * 20
    assert source.looks == 2
    assert keeper.current.knows_tier("pro")
    source.failure = None
    await keeper.refresh()
    assert not keeper.current.knows_tier("pro")


async def test_running_follows_and_logs_an_outage_once(source: Source) -> None:
    """A change is in force within a second; an outage is one line, its end another, and the catalogue goes on."""
    logs = Logs()
    keeper = CatalogueKeeper(source, {}, FakeClock(), logs)  # type: ignore[arg-type]
    running = asyncio.create_task(keeper.run())
    try:
        source.change(Tier("pro"))
        async with asyncio.timeout(20):
            while not keeper.current.knows_tier("pro"):
                await asyncio.sleep(0.01)
        source.failure = unavailable("database")
        seen = source.looks
        async with asyncio.timeout(20):
            while source.looks < seen + 3:
                await asyncio.sleep(0.01)
        assert [level for level, _ in logs.lines] == ["warning"]
        assert keeper.current.knows_tier("pro")
        source.failure = None
        async with asyncio.timeout(20):
            while len(logs.lines) < 2:
                await asyncio.sleep(0.01)
        assert [level for level, _ in logs.lines] == ["warning", "info"]
    finally:
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_fault_ends_the_task(source: Source, keeper: CatalogueKeeper) -> None:
    """What is no outage is not gone over: the process has to hear of it."""
    source.failure = LookupError("a column is missing")
    with pytest.raises(LookupError):
        await asyncio.wait_for(keeper.run(), 5)
