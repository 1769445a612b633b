"""Reservations for requests that nobody has made yet, on a real Redis and by a service that is up."""

from __future__ import annotations

import pytest

from accounting.limiter.limiter import Limiter
from accounting.quota import EventRef, Grant, Limit, Reservation
from accounting.settlement import Exact
from naru.api.accounting.v1 import quota_service_pb2
from naru.identity import Principal, ServiceName
from naru.ids import uuid7
from naru.usage import Evidence, Usage
from tests.integration.accounting.harness import SECOND, START, WORK, Books, in_flight, new_ref, per_minute, reservation
from tests.integration.accounting.service import Service, wanted

LIMITS = per_minute(640), in_flight(640)
KEY = Principal("ws-1", tier="free", key_id="key-1")


async def take(limiter: Limiter, number: int, *limits: Limit) -> list[EventRef]:
    """Spares, as many of that number as there were."""
    refs = [new_ref() for _ in range(number)]
    asked = reservation(refs[0], spares=tuple(ref.event_id for ref in refs))
    (taken,) = (await limiter.reserve([(asked, limits)])).taken
    assert isinstance(taken.outcome, Grant)
    return refs[: taken.outcome.spares]


async def left(limiter: Limiter, *limits: Limit) -> set[int]:
    """What is left of the limits."""
    return {state.remaining for state in await limiter.inspect(limits)}


async def test_there_are_spares_while_plenty_is_left(limiter: Limiter) -> None:
    """A 64th of what is left of the tightest limit, each time; where that is less than one, none, which is no refusal."""
    assert len(await take(limiter, 20, *LIMITS)) == 10
    assert await left(limiter, *LIMITS) == {630}
    assert len(await take(limiter, 20, *LIMITS)) == 9
    assert len(await take(limiter, 20, per_minute(63))) == 0
    assert await take(limiter, 20, in_flight(2)) == []
    assert len(await take(limiter, 20)) == 20


async def test_what_a_request_uses_is_settled(limiter: Limiter) -> None:
    """As of any reservation; what nobody used leaves nothing."""
    used, unused = (await take(limiter, 2, *LIMITS))[:2]
    await limiter.settle([Exact(used, Evidence.FINAL, Usage(7, 3), 0)])
    assert await limiter.release([used], unused_spares=True) == [False]
    assert await limiter.release([unused], unused_spares=True) == [True]
    assert {state.limit.kind: state.remaining for state in await limiter.inspect(LIMITS)} == {
        LIMITS[0].kind: 639,
        LIMITS[1].kind: 640,
    }
    assert [one.at_all for one in await limiter.look_up([used, unused])] == [True, False]
    assert await limiter.redis.zcard("{naru-3}:leases") == 0


async def test_a_request_that_is_refused_later_stays_counted(limiter: Limiter) -> None:
    """Released in the usual way, a spare keeps its request count, as it was used."""
    (spare,) = await take(limiter, 1, *LIMITS)
    assert await limiter.release([spare]) == [True]
    assert await left(limiter, LIMITS[0]) == {639}
    assert await limiter.release([spare], unused_spares=True) == [False]
    assert await left(limiter, LIMITS[0]) == {639}


@pytest.mark.parametrize("how", ["renewed", "replaced", "tried again"])
async def test_one_that_was_used_cannot_be_dropped(limiter: Limiter, how: str) -> None:
    """Once it was renewed, given a better figure, or taken over by another attempt."""
    (spare,) = await take(limiter, 1, *LIMITS)
    match how:
        case "renewed":
            await limiter.renew([spare])
        case "replaced":
            await limiter.reserve([(Reservation(spare, 1, WORK, 30, 20), LIMITS)])
        case _:
            await limiter.reserve([(Reservation(EventRef(spare.event_id, 1), 0, WORK, 10, 20), LIMITS)])
    assert await limiter.release([spare], unused_spares=True) == [False]
    assert await left(limiter, *LIMITS) == {639}


async def test_what_is_left_behind_is_forgotten(books: Books, limiter: Limiter) -> None:
    """An edge that was lost had spares: their leases end, all is given back, and nobody hears of requests never made.

    One that runs is another matter: it is closed as any request of which nothing more is heard.
    """
    running, *_ = await take(limiter, 3, *LIMITS)
    books.advance(59)
    await limiter.renew([running])
    books.advance(2)
    assert await limiter.claim_expired(100, 30) == []
    assert [one.at_all for one in await limiter.look_up([running])] == [True]
    assert await left(limiter, in_flight(640)) == {639}
    books.advance(60)
    assert [(one.ref, one.work) for one in await limiter.claim_expired(100, 30)] == [(running, WORK)]


async def test_a_whole_reservation_may_be_asked_for_beside(limiter: Limiter) -> None:
    """Items of one call are decided in order, of whichever kind."""
    ids = tuple(uuid7() for _ in range(2))
    spares = reservation(EventRef(ids[0], 0), spares=ids)
    verdict = await limiter.reserve([(reservation(), LIMITS), (spares, LIMITS), (reservation(), LIMITS)])
    assert [taken.outcome for taken in verdict.taken] == [
        Grant(START, START + 60 * SECOND),
        Grant(START, START + 60 * SECOND, spares=2),
        Grant(START, START + 60 * SECOND),
    ]
    assert await left(limiter, *LIMITS) == {636}


def spares_of(*ids: str, **fields: object) -> quota_service_pb2.Reservation:
    """A reservation of spares, as the edge asks for it."""
    item = wanted(KEY, **({"event_id": ids[0]} | fields))
    item.spare_event_ids.extend(ids)
    return item


async def test_the_service_says_how_many_there_are(service: Service) -> None:
    """None is a grant of none, and there is nothing to give back then."""
    edge = service.as_service(ServiceName.EDGE)
    ids = [uuid7() for _ in range(3)]
    (result,) = await edge.reserve(spares_of(*ids))
    # The tier of this key allows so few requests that there is none.
    assert result.HasField("grant")
    assert result.grant.spares == 0
    assert (
        await edge.release(*[quota_service_pb2.EventRef(event_id=one) for one in ids], unused_spares=True)
        == [False] * 3
    )


async def test_malformed_ones_are_refused(service: Service) -> None:
    """Each by the field that is wrong."""
    edge = service.as_service(ServiceName.EDGE)
    ids = [uuid7() for _ in range(257)]
    results = await edge.reserve(
        spares_of(*ids), spares_of(ids[0], "nonsense"), spares_of(ids[0], ids[1], event_id=ids[1]), spares_of(ids[0])
    )
    assert [dict(result.refusal.metadata).get("field") for result in results] == [
        "spare_event_ids",
        "event_id",
        "spare_event_ids",
        None,
    ]
