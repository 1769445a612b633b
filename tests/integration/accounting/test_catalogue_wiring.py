"""Tiers, budgets and prices in the whole service: what is changed over gRPC decides about the next request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from naru.api.accounting.v1 import budget_service_pb2, limit_pb2, quota_service_pb2, tier_service_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.client import ServiceClient
from naru.config import ConfigError
from naru.errors import Reason
from naru.identity import Principal, ServiceName, ServiceTokens
from naru.lifecycle import Lifecycle
from tests.integration.accounting.catalogue_harness import Client, TierKeys, tier_keys
from tests.integration.accounting.harness import refused
from tests.integration.accounting.service import Caller, wanted

ONE = limit_pb2.LimitRule(kind=limit_pb2.LIMIT_KIND_REQUESTS, window=limit_pb2.LIMIT_WINDOW_HOUR, limit=1)
REFUSED = error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED


@dataclass
class Whole:
    """A running accounting, with whoever manages it and whoever reserves."""

    operator: Client
    edge: Caller
    keys: TierKeys

    async def reserve(self, principal: Principal) -> quota_service_pb2.ReserveResult:
        (result,) = await self.edge.reserve(wanted(principal))
        return result


@pytest.fixture
async def whole(config: AccountingConfig, tmp_path: Path) -> AsyncIterator[Whole]:
    """Beside an authsvc that knows which tiers have keys; the tier "fixed" comes from a file."""
    (tmp_path / "tiers.toml").write_text("[fixed]")
    await migrate(config)
    tokens = ServiceTokens.read(config.service_tokens_dir)
    async with AsyncExitStack() as stack:
        keys, authsvc, _ = await stack.enter_async_context(tier_keys(tokens))
        config = replace(config, authsvc_address=authsvc, tiers_file=tmp_path / "tiers.toml")
        up = await stack.enter_async_context(running(config, Lifecycle()))

        def client(name: ServiceName) -> ServiceClient:
            made = ServiceClient(f"127.0.0.1:{up.port}", name="accounting", service_token=tokens.of(name))
            stack.push_async_callback(made.close)
            return made

        yield Whole(Client(client(ServiceName.OPERATOR)), Caller(client(ServiceName.EDGE)), keys)


async def test_a_tier_decides_about_the_next_request(whole: Whole) -> None:
    """Made, it limits; changed, it does not any more; gone, the fallback's limits are back."""
    principal = Principal("w1", tier="pro", key_id="k1")
    tier = tier_service_pb2.Tier(name="pro", limits=[tier_service_pb2.TierLimit(rule=ONE)])
    await whole.operator.CreateTier(tier=tier)
    assert (await whole.reserve(principal)).HasField("grant")
    assert (await whole.reserve(principal)).refusal.reason == REFUSED
    await whole.operator.UpdateTier(tier=tier_service_pb2.Tier(name="pro"))
    assert (await whole.reserve(principal)).HasField("grant")
    whole.keys.used.add("pro")
    assert (await refused(whole.operator.DeleteTier(name="pro"))).reason is Reason.FAILED_PRECONDITION
    whole.keys.used.clear()
    await whole.operator.DeleteTier(name="pro")
    assert len((await whole.reserve(principal)).limits) == 3


async def test_a_budget_decides_about_the_next_request(whole: Whole) -> None:
    """Of a workspace, whichever of its keys calls; deleted, it is gone."""
    budget = budget_service_pb2.Budget(scope=limit_pb2.LIMIT_SCOPE_WORKSPACE, scope_id="w1", rule=ONE)
    made = (await whole.operator.CreateBudget(budget=budget)).budget
    assert (await whole.reserve(Principal("w1", key_id="k1"))).HasField("grant")
    assert (await whole.reserve(Principal("w1", key_id="k2"))).refusal.reason == REFUSED
    assert (await whole.reserve(Principal("w2", key_id="k3"))).HasField("grant")
    await whole.operator.DeleteBudget(budget_id=made.budget_id)
    assert (await whole.reserve(Principal("w1", key_id="k2"))).HasField("grant")


async def test_the_files_tiers_cannot_be_changed(whole: Whole) -> None:
    """They are listed and in force."""
    fixed = tier_service_pb2.Tier(name="fixed")
    assert (await whole.operator.GetTier(name="fixed")).tier.default_output_tokens == 4_096
    assert (await refused(whole.operator.UpdateTier(tier=fixed))).reason is Reason.FAILED_PRECONDITION
    assert list((await whole.reserve(Principal("w1", tier="fixed", key_id="k1"))).limits) == []


async def test_a_wrong_file_of_tiers_is_a_clear_error(config: AccountingConfig, tmp_path: Path) -> None:
    """The service does not start, and says which file and which tier."""
    (tmp_path / "tiers.toml").write_text('[gold]\nlimits = [{ kind = "cost", limit = -1 }]')
    with pytest.raises(ConfigError, match=r"NARU_ACCOUNTING_TIERS_FILE: .*gold"):
        async with running(replace(config, tiers_file=tmp_path / "tiers.toml"), Lifecycle()):
            pass
