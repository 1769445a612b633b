"""Keeps what the limiter counts for workspaces that pay in advance equal to the ledger."""

from __future__ import annotations

from accounting.catalogue.catalogue import credit_limit
from accounting.ledger.store import LedgerStore
from accounting.limiter.balances import Balances
from accounting.quota import Limit
from naru.logs import Logger


class BalanceKeeper:
    """Finds counters that are off, and puts them right.

    They come to be off by what the limiter was told after it had forgotten the reservation, by what it lost when it was killed,
    and by a debit that was counted and then not posted.
    """

    def __init__(self, store: LedgerStore, balances: Balances, logger: Logger) -> None:
        self._store = store
        self._balances = balances
        self._logger = logger
        self._suspected: dict[Limit, int] = {}

    async def reconcile(self) -> None:
        """Corrects what has been off by the same amount since the last call.

        Raises NaruError SERVICE_UNAVAILABLE when Redis or the database is away.
        """
        accounts = {credit_limit(one.workspace_id, 0): one.counted for one in await self._store.prepaid()}
        found = await self._balances.drifts(accounts) if accounts else {}
        # Requests that begin and end while we look seem to be off as well, but never twice by the same.
        lasting = [limit for limit, drift in found.items() if self._suspected.get(limit) == drift]
        self._suspected = found
        for limit in lasting:
            async with self._store.at_rest(limit.scope_id) as account:
                if account is not None and account.overdraft is not None:
                    drift = await self._balances.correct(limit, account.counted)
                    if drift:
                        self._logger.info("a balance was put right", workspace_id=limit.scope_id, nano_units=drift)
