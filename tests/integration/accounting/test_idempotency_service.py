"""Idempotency keys over gRPC, as the edge uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from accounting.app import migrate, running
from accounting.config import AccountingConfig
from naru.api.accounting.v1 import quota_service_pb2
from naru.api.common.v1 import error_reason_pb2
from naru.errors import Reason
from naru.identity import Principal, Role, ServiceName, ServiceTokens
from naru.lifecycle import Lifecycle
from tests.integration.accounting.harness import SECRET, refused
from tests.integration.accounting.service import Caller, Service, final, ref, wanted
from tests.support.recording_accounting import KeyRing, RecordingAccounting, peers

KEY = Principal("ws-1", tier="free", key_id="key-1")
ANSWERED = quota_service_pb2.OUTCOME_FATE_ANSWERED
TOO_LARGE = quota_service_pb2.OUTCOME_FATE_TOO_LARGE
FAILED = quota_service_pb2.OUTCOME_FATE_FAILED
LARGEST = 262_144


@asynccontextmanager
async def accounting(config: AccountingConfig) -> AsyncIterator[Service]:
    """A real accounting on a free port."""
    keys, tokens = KeyRing(), ServiceTokens.read(config.service_tokens_dir)
    async with (
        peers(tokens, RecordingAccounting(), keys) as authsvc,
        running(replace(config, authsvc_address=authsvc), Lifecycle()) as up,
        Service(up, tokens, keys) as service,
    ):
        yield service


@pytest.fixture
async def keyed_config(config: AccountingConfig) -> AccountingConfig:
    """A configuration with a secret, and a database with the schema."""
    await migrate(config)
    return replace(config, outcome_key=SECRET)


@pytest.fixture
async def service(keyed_config: AccountingConfig) -> AsyncIterator[Service]:
    """An accounting that takes keys."""
    async with accounting(keyed_config) as service:
        yield service


@pytest.fixture
def edge(service: Service) -> Caller:
    """The edge."""
    return service.as_service(ServiceName.EDGE)


def keyed(key: str = "k", digest: bytes = b"\1" * 32, **fields: Any) -> quota_service_pb2.Reservation:
    """A reservation with a key."""
    given = quota_service_pb2.Idempotency(key=key, body_digest=digest)
    return wanted(KEY, idempotency=given, **fields)


async def refusal(edge: Caller, item: quota_service_pb2.Reservation) -> Reason:
    """Why it is refused."""
    (result,) = await edge.reserve(item)
    assert result.HasField("refusal"), result
    return Reason(error_reason_pb2.ErrorReason.Name(result.refusal.reason).removeprefix("ERROR_REASON_"))


async def test_from_reservation_to_replay(edge: Caller, service: Service) -> None:
    """In flight, then answered: billed once, counted once, and answered again whatever bytes it was."""
    first, answer = keyed(), bytes(range(256)) * (LARGEST // 256)
    (result,) = await edge.reserve(first)
    assert result.HasField("grant")
    (waits,) = await edge.reserve(keyed())
    assert waits.refusal.retry_delay.seconds == 1
    assert await refusal(edge, keyed()) is Reason.IDEMPOTENCY_IN_FLIGHT
    assert await refusal(edge, keyed(digest=b"\2" * 32)) is Reason.IDEMPOTENCY_CONFLICT
    assert await edge.keep(first, ANSWERED, answer)
    await service.as_service(ServiceName.INFERENCE).record(final(KEY, first.event_id))
    (again,) = await edge.reserve(keyed())
    assert again.replay.outcome == answer
    assert [limit.remaining for limit in again.limits] == [9, 99, 4]
    assert await refusal(edge, keyed(digest=b"\2" * 32)) is Reason.IDEMPOTENCY_CONFLICT
    (row,) = (await edge.query()).rows
    assert row.requests == 1


async def test_a_restart_changes_nothing(keyed_config: AccountingConfig) -> None:
    """Another accounting on the same Redis gives the lost answer again, and knows who has the key."""
    first = keyed()
    async with accounting(keyed_config) as service:
        (before,) = await service.as_service(ServiceName.EDGE).reserve(first)
    async with accounting(keyed_config) as service:
        edge = service.as_service(ServiceName.EDGE)
        (after,) = await edge.reserve(first)
        assert after.grant == before.grant
        assert await refusal(edge, keyed()) is Reason.IDEMPOTENCY_IN_FLIGHT
        assert await edge.keep(first, ANSWERED, b"answer")
    async with accounting(keyed_config) as service:
        (again,) = await service.as_service(ServiceName.EDGE).reserve(keyed())
        assert again.replay.outcome == b"answer"


async def test_what_is_too_large_and_what_failed(edge: Caller) -> None:
    """The one stays unanswered, the other may be made again, as may what was released."""
    large, failed, released = keyed("large"), keyed("failed"), keyed("released")
    await edge.reserve(large, failed, released)
    assert await edge.keep(large, TOO_LARGE)
    assert await edge.keep(failed, FAILED)
    assert await edge.release(ref(released), ref(failed)) == [True, True]
    assert await refusal(edge, keyed("large")) is Reason.IDEMPOTENCY_OUTCOME_NOT_KEPT
    for key in ("failed", "released"):
        (result,) = await edge.reserve(keyed(key))
        assert result.HasField("grant")


async def test_a_hundred_at_once(edge: Caller) -> None:
    """Exactly one of a hundred calls is granted."""
    results = await asyncio.gather(*(edge.reserve(keyed()) for _ in range(100)))
    assert sum(result.HasField("grant") for (result,) in results) == 1


async def test_without_a_secret(config: AccountingConfig) -> None:
    """Keys are refused by name of the setting, requests without one are not."""
    await migrate(config)
    async with accounting(config) as service:
        edge = service.as_service(ServiceName.EDGE)
        without, result = await edge.reserve(wanted(KEY), keyed())
        assert without.HasField("grant")
        assert result.refusal.reason == error_reason_pb2.ERROR_REASON_NOT_SUPPORTED
        assert "NARU_ACCOUNTING_OUTCOME_KEY" in result.refusal.message
        assert (await refused(edge.keep(keyed(), FAILED))).reason is Reason.NOT_SUPPORTED


@pytest.mark.parametrize(
    ("key", "digest", "field"),
    [
        ("", b"\1" * 32, "idempotency.key"),
        ("x" * 256, b"\1" * 32, "idempotency.key"),
        ("\n", b"\1" * 32, "idempotency.key"),
        ("열쇠", b"\1" * 32, "idempotency.key"),
        ("k", b"\1" * 31, "idempotency.body_digest"),
    ],
)
async def test_wrong_keys(edge: Caller, key: str, digest: bytes, field: str) -> None:
    """Each is refused by the name of what is wrong, without harm to others in the batch."""
    wrong, right = await edge.reserve(keyed(key, digest), keyed())
    assert dict(wrong.refusal.metadata) == {"field": field}
    assert right.HasField("grant")


async def test_wrong_outcomes(edge: Caller, service: Service) -> None:
    """What fits no fate, or is too large, is refused; nobody but the edge may tell at all."""
    item = keyed()
    await edge.reserve(item)
    wrong = [
        (item, quota_service_pb2.OUTCOME_FATE_UNSPECIFIED, b"", "fate"),
        (item, ANSWERED, b"", "outcome"),
        (item, ANSWERED, b"x" * (LARGEST + 1), "outcome"),
        (item, FAILED, b"x", "outcome"),
        (keyed("\0"), FAILED, b"", "key"),
        (keyed(event_id="none"), FAILED, b"", "event_id"),
        (quota_service_pb2.Reservation(event_id=item.event_id), FAILED, b"", "principal.workspace_id"),
    ]
    for asked, fate, outcome, field in wrong:
        assert (await refused(edge.keep(asked, fate, outcome))).metadata == {"field": field}
    owner, _ = service.as_owner("ws-1", Role.ADMIN)
    for caller in (owner, service.as_service(ServiceName.INFERENCE)):
        assert (await refused(caller.keep(item, FAILED))).reason is Reason.PERMISSION_DENIED
    assert await refusal(edge, keyed()) is Reason.IDEMPOTENCY_IN_FLIGHT
