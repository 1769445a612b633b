"""The edge's side of the other services: clients, sessions, and what runs beside the requests."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack
from dataclasses import dataclass

from edge.clients import HealthProbe, InferenceClient, QuotaClient, RpcClient, UsageClient
from edge.config import EdgeConfig
from edge.gateway import Gateway
from edge.leases import BrokenRequests, Leases
from edge.metrics import EdgeMetrics
from edge.ports import GatewayPolicy
from edge.replicas import ReplicaPool
from edge.session import ReplicaSession
from edge.streams import StreamLimits
from edge.tokenization import Tokenization
from naru.client import ServiceClient
from naru.clock import SystemClock
from naru.config import ConfigError
from naru.credentials import CachedAuthenticator
from naru.identity import ServiceName, ServiceTokens
from naru.ids import uuid7
from naru.lifecycle import Background
from naru.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes need of it."""

    gateway: Gateway
    tokenization: Tokenization
    usage: UsageClient
    rpcs: RpcClient
    health: HealthProbe
    sessions: tuple[ReplicaSession, ...]

    async def dependencies(self) -> dict[str, str]:
        """How each service is; a replica is ok once it is connected too."""
        states = await self.health.states()
        connected = {f"inference {session.address}": session.connected for session in self.sessions}
        return {
            name: "not connected" if state == "ok" and not connected.get(name, True) else state
            for name, state in states.items()
        }


def connect(
    config: EdgeConfig, background: Background, metrics: EdgeMetrics, tracing: Tracing, stack: AsyncExitStack
) -> Backend:
    """Opens it; `stack` closes it again, after sending what is left to be reported.

    Raises:
        ConfigError: The edge's service token is missing or too short.
    """
    clock, token = SystemClock(), _service_token(config)

    def client(address: str, name: str) -> ServiceClient:
        opened = ServiceClient(address, name=name, service_token=token, tracing=tracing)
        stack.push_async_callback(opened.close)
        return opened

    authsvc = client(config.authsvc_address, "authsvc")
    accounting = client(config.accounting_address, "accounting")
    inference = {address: client(address, "inference") for address in config.inference_addresses}
    authenticator = CachedAuthenticator(authsvc, clock, stale_max=config.auth_stale_max)
    usage, quota = _accounting(accounting, background, metrics)
    for shipper in (usage.evidence, usage.requests, quota.releases, quota.outcomes):
        stack.push_async_callback(shipper.flush)
    stack.push_async_callback(background.close)
    leases = Leases(quota, interval=config.lease_seconds / 3)
    watcher = BrokenRequests(usage.evidence.put, quota)
    sessions = tuple(
        _session(config, InferenceClient(address, opened), watcher, background) for address, opened in inference.items()
    )
    _ = background.start("invalidations", authenticator.watch())
    _ = background.start("leases", leases.run())
    _ = background.start("evidence", usage.evidence.run())
    _ = background.start("request records", usage.requests.run())
    _ = background.start("releases", quota.releases.run())
    _ = background.start("outcomes", quota.outcomes.run())
    for session in sessions:
        _ = background.start(f"session {session.address}", session.run())
        _ = background.start(f"streams {session.address}", session.tick())
    replicas = ReplicaPool(sessions)
    policy = GatewayPolicy(
        model_aliases=config.aliases(),
        request_timeout=config.request_timeout,
        admit_without_accounting=config.admit_without_accounting,
    )
    gateway = Gateway(
        authenticator=authenticator,
        quota=quota,
        leases=leases,
        replicas=replicas,
        policy=policy,
        clock=clock,
        new_event_id=uuid7,
    )
    tokenization = Tokenization(gateway=gateway, quota=quota, tokenizers=replicas, policy=policy, new_event_id=uuid7)
    dependencies = {"authsvc": authsvc, "accounting": accounting}
    dependencies |= {f"inference {address}": opened for address, opened in inference.items()}
    return Backend(gateway, tokenization, usage, RpcClient(accounting), HealthProbe(dependencies, clock), sessions)


def _accounting(client: ServiceClient, background: Background, metrics: EdgeMetrics) -> tuple[UsageClient, QuotaClient]:
    def dropped(kind: str, number: int) -> None:
        metrics.dropped.labels(kind).inc(number)

    clock = SystemClock()
    usage = UsageClient(client, clock, dropped=dropped)
    return usage, QuotaClient(client, clock, background, dropped=dropped)


def _session(
    config: EdgeConfig, client: InferenceClient, watcher: BrokenRequests, background: Background
) -> ReplicaSession:
    return ReplicaSession(
        client,
        clock=SystemClock(),
        watcher=watcher,
        background=background,
        random=random.random,
        limits=StreamLimits(config.stream_buffer_bytes, config.stream_stall_seconds, config.keep_alive_seconds),
        tick_interval=min(1.0, config.keep_alive_seconds / 4, config.stream_stall_seconds / 4),
    )


def _service_token(config: EdgeConfig) -> str:
    try:
        return ServiceTokens.read(config.service_tokens_dir).of(ServiceName.EDGE)
    except ValueError as error:
        raise ConfigError(f"NARU_SERVICE_TOKENS_DIR: {error}") from error
