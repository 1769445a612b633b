"""Tiers, budgets and prices served by themselves, on a free port, and the ways into them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from accounting.catalogue.budgets import BudgetManager
from accounting.catalogue.keeper import CatalogueKeeper
from accounting.catalogue.prices import PriceManager
from accounting.catalogue.servicer import BudgetServicer, PricingServicer, TierServicer
from accounting.catalogue.store import CatalogueStore
from accounting.catalogue.tiers import TierManager
from accounting.clients import ApiKeys
from accounting.limits import Tier
from naru.api.accounting.v1 import (
    budget_service_pb2,
    budget_service_pb2_grpc,
    pricing_service_pb2,
    pricing_service_pb2_grpc,
    tier_service_pb2,
    tier_service_pb2_grpc,
)
from naru.api.auth.v1 import api_key_pb2, api_key_service_pb2, api_key_service_pb2_grpc
from naru.client import ServiceClient
from naru.clock import SystemClock
from naru.database import Database
from naru.errors import invalid_api_key
from naru.identity import Principal, Role, ServiceName, ServiceTokens
from naru.ids import uuid7
from naru.interceptors import CallerAuthenticator
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.server import GrpcServer

TOKENS = ServiceTokens({name: f"{name}-" + "t" * 40 for name in ServiceName})
_TIMEOUT = 5.0
_SERVICES = {
    tier_service_pb2_grpc.TierServiceStub: tier_service_pb2,
    budget_service_pb2_grpc.BudgetServiceStub: budget_service_pb2,
    pricing_service_pb2_grpc.PricingServiceStub: pricing_service_pb2,
}


class Client:
    """Whoever calls with one client: `await client.CreateTier(tier=...)`, and so for every RPC of the three services."""

    def __init__(self, client: ServiceClient) -> None:
        self._client = client

    def __getattr__(self, method: str) -> Any:
        for stub, messages in _SERVICES.items():
            request = getattr(messages, f"{method}Request", None)
            if request is not None:
                call = getattr(stub(self._client.channel), method)
                return lambda **fields: self._client.call(call, request(**fields), timeout=_TIMEOUT)
        raise AttributeError(method)


class TierKeys(api_key_service_pb2_grpc.ApiKeyServiceServicer):
    """An authsvc in which each of the tiers that a test names has a key."""

    def __init__(self) -> None:
        self.used: set[str] = set()
        self.asked: list[api_key_service_pb2.ListApiKeysRequest] = []

    async def ListApiKeys(
        self, request: api_key_service_pb2.ListApiKeysRequest, context: Any
    ) -> api_key_service_pb2.ListApiKeysResponse:
        self.asked.append(request)
        keys = [api_key_pb2.ApiKey(tier=request.tier)] if request.tier in self.used else []
        return api_key_service_pb2.ListApiKeysResponse(api_keys=keys)


class _Anybody:
    """A credential is a role and a workspace: "admin@w1"."""

    async def authenticate(self, credential: str, client_address: str = "") -> Principal:
        role, _, workspace_id = credential.partition("@")
        if role not in list(Role):
            raise invalid_api_key()
        return Principal(workspace_id, Role(role), key_id=f"{role}-{workspace_id}")


class CatalogueService:
    """A running replica."""

    def __init__(self, store: CatalogueStore, keeper: CatalogueKeeper, keys: TierKeys, address: str) -> None:
        self.store, self.keeper, self.keys = store, keeper, keys
        self._address = address
        self._stack = AsyncExitStack()

    def as_owner(self, role: Role = Role.ADMIN, workspace_id: str = "w1") -> Client:
        return self._client(credential=f"{role}@{workspace_id}")

    def as_service(self, name: ServiceName) -> Client:
        return self._client(service_token=TOKENS.of(name))

    def _client(self, **fields: str) -> Client:
        client = ServiceClient(self._address, name="accounting", **fields)
        self._stack.push_async_callback(client.close)
        return Client(client)

    async def close(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def tier_keys(tokens: ServiceTokens = TOKENS) -> AsyncIterator[tuple[TierKeys, str, GrpcServer]]:
    """An authsvc that can be stopped, and its address."""
    keys = TierKeys()
    server = GrpcServer(CallerAuthenticator(tokens, _Anybody()), metrics=Metrics())
    server.add(api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server, keys, "naru.api.auth.v1.ApiKeyService")
    port = await server.start("127.0.0.1", 0)
    try:
        yield keys, f"127.0.0.1:{port}", server
    finally:
        await server.stop(0)


async def _limiter_time() -> int:
    """Of one whose clock is behind."""
    return 0


@asynccontextmanager
async def serving(database: Database, keys: TierKeys, authsvc_address: str) -> AsyncIterator[CatalogueService]:
    """A replica of the three services."""
    clock, file_tiers = SystemClock(), {"fixed": Tier("fixed")}
    store = CatalogueStore(database)
    keeper = CatalogueKeeper(store, file_tiers, clock, get_logger("test"))
    authsvc = ServiceClient(authsvc_address, name="authsvc", service_token=TOKENS.of(ServiceName.ACCOUNTING))
    server = GrpcServer(CallerAuthenticator(TOKENS, _Anybody()), metrics=Metrics())
    refresh = keeper.refresh
    tiers = TierManager(
        store=store, file_tiers=file_tiers, tier_in_use=ApiKeys(authsvc).have_tier, refresh=refresh, clock=clock
    )
    budgets = BudgetManager(store=store, file_tiers=file_tiers, refresh=refresh, clock=clock, new_id=uuid7)
    prices = PriceManager(store=store, refresh=refresh, clock=clock, limiter_time=_limiter_time, new_id=uuid7)
    server.add(tier_service_pb2_grpc.add_TierServiceServicer_to_server, TierServicer(tiers), "tiers")
    server.add(budget_service_pb2_grpc.add_BudgetServiceServicer_to_server, BudgetServicer(budgets), "budgets")
    server.add(pricing_service_pb2_grpc.add_PricingServiceServicer_to_server, PricingServicer(prices), "prices")
    service = CatalogueService(store, keeper, keys, f"127.0.0.1:{await server.start('127.0.0.1', 0)}")
    try:
        yield service
    finally:
        await service.close()
        await server.stop(0)
        await authsvc.close()
