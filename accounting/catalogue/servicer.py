"""TierService, BudgetService and PricingService over gRPC."""

from __future__ import annotations

import grpc

from accounting.catalogue import convert
from accounting.catalogue.budgets import BudgetManager
from accounting.catalogue.prices import PriceManager
from accounting.catalogue.tiers import TierManager
from naru.api.accounting.v1 import (
    budget_service_pb2,
    budget_service_pb2_grpc,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    tier_service_pb2,
    tier_service_pb2_grpc,
)
from naru.context import current


class TierServicer(tier_service_pb2_grpc.TierServiceServicer):
    """Makes, changes and deletes tiers.

    Args:
        manager: Decides and does it.
    """

    def __init__(self, manager: TierManager) -> None:
        self._manager = manager

    async def CreateTier(
        self,
        request: tier_service_pb2.CreateTierRequest,
        context: grpc.aio.ServicerContext[tier_service_pb2.CreateTierRequest, tier_service_pb2.CreateTierResponse],
    ) -> tier_service_pb2.CreateTierResponse:
        tier = await self._manager.create(convert.tier_from_proto(request.tier), request.request_id)
        return tier_service_pb2.CreateTierResponse(tier=convert.tier_to_proto(tier))

    async def GetTier(
        self,
        request: tier_service_pb2.GetTierRequest,
        context: grpc.aio.ServicerContext[tier_service_pb2.GetTierRequest, tier_service_pb2.GetTierResponse],
    ) -> tier_service_pb2.GetTierResponse:
        tier = await self._manager.get(request.name)
        return tier_service_pb2.GetTierResponse(tier=convert.tier_to_proto(tier))

    async def ListTiers(
        self,
        request: tier_service_pb2.ListTiersRequest,
        context: grpc.aio.ServicerContext[tier_service_pb2.ListTiersRequest, tier_service_pb2.ListTiersResponse],
    ) -> tier_service_pb2.ListTiersResponse:
        page = await self._manager.list_page(size=request.page_size, token=request.page_token)
        return tier_service_pb2.ListTiersResponse(
            tiers=map(convert.tier_to_proto, page.rows), next_page_token=page.next_page_token
        )

    async def UpdateTier(
        self,
        request: tier_service_pb2.UpdateTierRequest,
        context: grpc.aio.ServicerContext[tier_service_pb2.UpdateTierRequest, tier_service_pb2.UpdateTierResponse],
    ) -> tier_service_pb2.UpdateTierResponse:
        tier = await self._manager.update(convert.tier_from_proto(request.tier), request.request_id)
        return tier_service_pb2.UpdateTierResponse(tier=convert.tier_to_proto(tier))

    async def DeleteTier(
        self,
        request: tier_service_pb2.DeleteTierRequest,
        context: grpc.aio.ServicerContext[tier_service_pb2.DeleteTierRequest, tier_service_pb2.DeleteTierResponse],
    ) -> tier_service_pb2.DeleteTierResponse:
        await self._manager.delete(request.name, request.request_id)
        return tier_service_pb2.DeleteTierResponse()


class BudgetServicer(budget_service_pb2_grpc.BudgetServiceServicer):
    """Makes, changes and deletes budgets.

    Args:
        manager: Decides and does it.
    """

    def __init__(self, manager: BudgetManager) -> None:
        self._manager = manager

    async def CreateBudget(
        self,
        request: budget_service_pb2.CreateBudgetRequest,
        context: grpc.aio.ServicerContext[
            budget_service_pb2.CreateBudgetRequest, budget_service_pb2.CreateBudgetResponse
        ],
    ) -> budget_service_pb2.CreateBudgetResponse:
        wish = convert.budget_from_proto(request.budget)
        budget = await self._manager.create(current().caller, wish, request.request_id)
        return budget_service_pb2.CreateBudgetResponse(budget=convert.budget_to_proto(budget))

    async def GetBudget(
        self,
        request: budget_service_pb2.GetBudgetRequest,
        context: grpc.aio.ServicerContext[budget_service_pb2.GetBudgetRequest, budget_service_pb2.GetBudgetResponse],
    ) -> budget_service_pb2.GetBudgetResponse:
        budget = await self._manager.get(request.budget_id)
        return budget_service_pb2.GetBudgetResponse(budget=convert.budget_to_proto(budget))

    async def ListBudgets(
        self,
        request: budget_service_pb2.ListBudgetsRequest,
        context: grpc.aio.ServicerContext[
            budget_service_pb2.ListBudgetsRequest, budget_service_pb2.ListBudgetsResponse
        ],
    ) -> budget_service_pb2.ListBudgetsResponse:
        page = await self._manager.list_page(
            size=request.page_size,
            token=request.page_token,
            scope=convert.scope_filter_from_proto(request.scope),
            scope_id=request.scope_id,
        )
        return budget_service_pb2.ListBudgetsResponse(
            budgets=map(convert.budget_to_proto, page.rows), next_page_token=page.next_page_token
        )

    async def UpdateBudget(
        self,
        request: budget_service_pb2.UpdateBudgetRequest,
        context: grpc.aio.ServicerContext[
            budget_service_pb2.UpdateBudgetRequest, budget_service_pb2.UpdateBudgetResponse
        ],
    ) -> budget_service_pb2.UpdateBudgetResponse:
        budget = await self._manager.update(convert.budget_from_proto(request.budget), request.request_id)
        return budget_service_pb2.UpdateBudgetResponse(budget=convert.budget_to_proto(budget))

    async def DeleteBudget(
        self,
        request: budget_service_pb2.DeleteBudgetRequest,
        context: grpc.aio.ServicerContext[
            budget_service_pb2.DeleteBudgetRequest, budget_service_pb2.DeleteBudgetResponse
        ],
    ) -> budget_service_pb2.DeleteBudgetResponse:
        await self._manager.delete(request.budget_id, request.request_id)
        return budget_service_pb2.DeleteBudgetResponse()


class PricingServicer(pricing_service_pb2_grpc.PricingServiceServicer):
    """Sets prices.

    Args:
        manager: Decides and does it.
    """

    def __init__(self, manager: PriceManager) -> None:
        self._manager = manager

    async def CreatePrice(
        self,
        request: pricing_service_pb2.CreatePriceRequest,
        context: grpc.aio.ServicerContext[
            pricing_service_pb2.CreatePriceRequest, pricing_service_pb2.CreatePriceResponse
        ],
    ) -> pricing_service_pb2.CreatePriceResponse:
        price = await self._manager.create(current().caller, convert.price_from_proto(request), request.request_id)
        return pricing_service_pb2.CreatePriceResponse(price=convert.price_to_proto(price))

    async def ListPrices(
        self,
        request: pricing_service_pb2.ListPricesRequest,
        context: grpc.aio.ServicerContext[
            pricing_service_pb2.ListPricesRequest, pricing_service_pb2.ListPricesResponse
        ],
    ) -> pricing_service_pb2.ListPricesResponse:
        page = await self._manager.list_page(
            current().caller,
            size=request.page_size,
            token=request.page_token,
            model=request.model,
            workspace_id=request.workspace_id,
        )
        return pricing_service_pb2.ListPricesResponse(
            prices=map(convert.price_to_proto, page.rows), next_page_token=page.next_page_token
        )

    async def DeletePrice(
        self,
        request: pricing_service_pb2.DeletePriceRequest,
        context: grpc.aio.ServicerContext[
            pricing_service_pb2.DeletePriceRequest, pricing_service_pb2.DeletePriceResponse
        ],
    ) -> pricing_service_pb2.DeletePriceResponse:
        await self._manager.delete(request.price_id, request.request_id)
        return pricing_service_pb2.DeletePriceResponse()
