"""The counters of workspaces that pay in advance: taking money off them, and putting right what they count."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import cast

from redis.exceptions import ConnectionError, WatchError

from accounting.limiter.limiter import EPOCH_KEY, KEY_PREFIX, Limiter, translated
from accounting.limiter.wire import amounts_held
from accounting.quota import Limit
from naru.errors import unavailable

_BATCH = 500


class Balances:
    """Works on the counters that the limiter's script keeps of limits on cost for all time.

    Every method raises NaruError SERVICE_UNAVAILABLE when Redis is away.
    """

    def __init__(self, limiter: Limiter) -> None:
        self._redis = limiter.redis

    async def take(self, limit: Limit, amount: int) -> bool:
        """Counts an amount as used if that much is free, requests in flight included; tells whether.

        Raises NaruError SERVICE_UNAVAILABLE also while what Redis holds is not all there was.
        """
        key = _key(limit)
        taken, recovered = await self._count(key, amount)
        if recovered and taken <= limit.limit:
            return True
        _ = await self._count(key, -amount)
        if not recovered:
            raise unavailable("accounting", "The limiter has lost its state and is recovering.", retry_after=5.0)
        return False

    async def drifts(self, known: dict[Limit, int]) -> dict[Limit, int]:
        """How much more each counts than what is known and what is reserved; below zero: less.

        Something may be counted meanwhile, so this is a suspicion only. What is not off is left out.
        """
        with translated():
            reserved = await self._reserved()
            taken = [int(found or 0) for found in await self._redis.mget([_key(limit) for limit in known])]
        drifts = {limit: one - known[limit] - reserved[_key(limit)] for limit, one in zip(known, taken, strict=True)}
        return {limit: drift for limit, drift in drifts.items() if drift}

    async def correct(self, limit: Limit, known: int) -> int:
        """Makes the counter `known` and what is reserved, unless anything is counted meanwhile; tells by how much it was off.

        `known` must have everything that the limiter was ever told to settle, and nothing that it is still to be told.
        """
        key = _key(limit)
        with translated(), suppress(WatchError):
            async with self._redis.pipeline() as pipe:
                # Whatever changes the counter from here on, even to the same figure, makes the change below fail.
                await pipe.watch(key)
                drift = int(await pipe.get(key) or 0) - known - (await self._reserved())[key]
                if drift == 0:
                    return 0
                pipe.multi()  # type: ignore[no-untyped-call] # it has no types
                _ = pipe.decrby(key, drift)
                await pipe.execute()
                return drift
        return 0

    async def _count(self, key: str, amount: int) -> tuple[int, bool]:
        """Adds to a counter, once or not at all; what it is then, and whether what Redis holds is all there was."""
        with translated():
            try:
                async with self._redis.pipeline() as pipe:
                    # A client that watches something does not ask again when its connection breaks, and so counts nothing twice.
                    await pipe.watch(EPOCH_KEY)
                    pipe.multi()  # type: ignore[no-untyped-call] # it has no types
                    _ = pipe.incrby(key, amount)
                    _ = pipe.hget(EPOCH_KEY, "open_at")
                    _ = pipe.get(f"{KEY_PREFIX}now")
                    counted, open_time, now = await pipe.execute()
            except WatchError as error:
                # What was counted all the same is taken off by the next reconciliation.
                raise ConnectionError("the connection broke, or Redis was emptied") from error
        return int(counted), open_time is not None and now is not None and float(open_time) <= float(now)

    async def _reserved(self) -> Counter[str]:
        """What open reservations hold, by counter."""
        found = cast("list[bytes]", await self._redis.zrange(f"{KEY_PREFIX}leases", 0, -1))
        refs = [ref.decode() for ref in found]
        reserved: Counter[str] = Counter()
        for start in range(0, len(refs), _BATCH):
            async with self._redis.pipeline(transaction=False) as pipe:
                for ref in refs[start : start + _BATCH]:
                    _ = pipe.get(f"{KEY_PREFIX}r:{ref}")
                for reservation in await pipe.execute():
                    for name, amount in amounts_held(reservation).items():
                        reserved[f"{KEY_PREFIX}{name}"] += amount
        return reserved


def _key(limit: Limit) -> str:
    """Where `quota_places.lua` counts it."""
    return f"{KEY_PREFIX}{'b' if limit.credit else 'p'}:{limit.scope}:{limit.scope_id}:{limit.model}:{limit.kind}:{limit.window}"
