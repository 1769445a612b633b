"""Whether the service is fit to serve."""

from __future__ import annotations

from accounting.readiness import Readiness
from naru.errors import unavailable
from naru.logs import get_logger


class Need:
    """Something that is there or not."""

    def __init__(self) -> None:
        self.there = True

    async def ask(self) -> None:
        if not self.there:
            raise unavailable("accounting")


async def test_changes_are_told_once() -> None:
    """Ready while all needs answer."""
    needs, told = [Need(), Need()], list[bool]()

    async def tell(ready: bool) -> None:
        told.append(ready)

    readiness = Readiness([need.ask for need in needs], tell, get_logger("test"))
    for first, second in ((True, True), (True, True), (False, True), (False, False), (True, False), (True, True)):
        needs[0].there, needs[1].there = first, second
        await readiness.check()
    assert told == [True, False, True]
