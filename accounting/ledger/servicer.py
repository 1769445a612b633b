"""LedgerService over gRPC."""

from __future__ import annotations

import grpc

from accounting.ledger import convert
from accounting.ledger.management import LedgerManager
from accounting.ledger.verification import LedgerVerifier
from naru.api.accounting.v1 import ledger_service_pb2, ledger_service_pb2_grpc
from naru.context import current


class LedgerServicer(ledger_service_pb2_grpc.LedgerServiceServicer):
    """Shows accounts, puts money on them, and proves the books.

    Args:
        manager: Decides and does it.
        verifier: Proves.
    """

    def __init__(self, manager: LedgerManager, verifier: LedgerVerifier) -> None:
        self._manager = manager
        self._verifier = verifier

    async def GetBalance(
        self,
        request: ledger_service_pb2.GetBalanceRequest,
        context: grpc.aio.ServicerContext[ledger_service_pb2.GetBalanceRequest, ledger_service_pb2.GetBalanceResponse],
    ) -> ledger_service_pb2.GetBalanceResponse:
        account = await self._manager.balance(current().caller, request.workspace_id)
        return ledger_service_pb2.GetBalanceResponse(balance=convert.balance_to_proto(account))

    async def ListEntries(
        self,
        request: ledger_service_pb2.ListEntriesRequest,
        context: grpc.aio.ServicerContext[
            ledger_service_pb2.ListEntriesRequest, ledger_service_pb2.ListEntriesResponse
        ],
    ) -> ledger_service_pb2.ListEntriesResponse:
        page = await self._manager.list_page(
            current().caller, convert.filter_from_proto(request), size=request.page_size, token=request.page_token
        )
        return ledger_service_pb2.ListEntriesResponse(
            entries=map(convert.entry_to_proto, page.rows), next_page_token=page.next_page_token
        )

    async def Credit(
        self,
        request: ledger_service_pb2.CreditRequest,
        context: grpc.aio.ServicerContext[ledger_service_pb2.CreditRequest, ledger_service_pb2.CreditResponse],
    ) -> ledger_service_pb2.CreditResponse:
        wish = convert.credit_from_proto(request.credit)
        entry, account = await self._manager.credit(current().caller, request.workspace_id, wish, request.request_id)
        return ledger_service_pb2.CreditResponse(
            entry=convert.entry_to_proto(entry), balance=convert.balance_to_proto(account)
        )

    async def SetOverdraft(
        self,
        request: ledger_service_pb2.SetOverdraftRequest,
        context: grpc.aio.ServicerContext[
            ledger_service_pb2.SetOverdraftRequest, ledger_service_pb2.SetOverdraftResponse
        ],
    ) -> ledger_service_pb2.SetOverdraftResponse:
        overdraft = convert.overdraft_from_proto(request)
        account = await self._manager.set_overdraft(request.workspace_id, overdraft, request.request_id)
        return ledger_service_pb2.SetOverdraftResponse(balance=convert.balance_to_proto(account))

    async def VerifyLedger(
        self,
        request: ledger_service_pb2.VerifyLedgerRequest,
        context: grpc.aio.ServicerContext[
            ledger_service_pb2.VerifyLedgerRequest, ledger_service_pb2.VerifyLedgerResponse
        ],
    ) -> ledger_service_pb2.VerifyLedgerResponse:
        return convert.verification_to_proto(await self._verifier.verify())
