"""Asking accounting for capacity, as every kind of request does."""

from __future__ import annotations

import asyncio

from edge.accounts import Reservation, ReserveResult
from edge.ports import Quota
from naru.errors import NaruError, Reason
from naru.logs import get_logger

_ENDING_SECONDS = 0.06
_log = get_logger(__name__)


async def ask_quota(quota: Quota, reservation: Reservation, *, admit_without: bool) -> ReserveResult:
    """The decision on a reservation.

    Args:
        quota: Who decides.
        reservation: What is wanted.
        admit_without: Whether requests go on, unreserved and logged, while accounting is away.

    Raises NaruError SERVICE_UNAVAILABLE when nobody can decide.
    """
    try:
        result = await quota.reserve(reservation)
        if result.refusal is not None and result.refusal.reason is Reason.CONCURRENCY_LIMIT_EXCEEDED:
            # A place is free once accounting heard that its request has ended, a moment after the answer: a client that sends
            # one request after the other is not refused for being quick.
            await asyncio.sleep(_ENDING_SECONDS)
            result = await quota.reserve(reservation)
    except NaruError as error:
        if error.reason is not Reason.SERVICE_UNAVAILABLE or not admit_without:
            raise
        _log.warning("admitted without accounting", event_id=reservation.event_id)
        return ReserveResult(decided=False)
    return result
