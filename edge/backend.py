"""The edge's side of the other services: clients, sessions, and what runs beside the requests."""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass

from edge.attribution import Attribution
from edge.clients import HealthProbe, InferenceClient, QuotaClient, RpcClient, UsageClient
from edge.config import EdgeConfig
from edge.gateway import Gateway
from edge.leases import BrokenRequests, Leases
from edge.metrics import EdgeMetrics
from edge.ports import GatewayPolicy
from edge.replica_rpcs import ReplicaRpcs
from edge.replicas import ReplicaPool
from edge.rounds import Busy, Rounds
from edge.session import ReplicaSession
from edge.streams import StreamLimits
from edge.tokenization import Tokenization
from naru.balancing import Target, target_of
from naru.client import ServiceClient
from naru.clock import SystemClock
from naru.config import END, ConfigError
from naru.credentials import CachedAuthenticator
from naru.identity import ServiceName, ServiceTokens
from naru.ids import uuid7
from naru.lifecycle import Background
from naru.revoked_requests import RevokedRequests
from naru.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Backend:
    """What the routes need of it."""

    gateway: Gateway
    attribution: Attribution
    tokenization: Tokenization
    usage: UsageClient
    rpcs: RpcClient
    replica_rpcs: Mapping[str, ReplicaRpcs]
    health: HealthProbe
    sessions: tuple[ReplicaSession, ...]

    async def dependencies(self) -> dict[str, str]:
        """How each service is; a replica is ok once it is connected too, and its upstream is not away."""
        states = await self.health.states()
        sessions = {f"inference {session.address}": session for session in self.sessions}
        return {
            name: _state_of(sessions[name]) if state == "ok" and name in sessions else state
            for name, state in states.items()
        }


def _state_of(session: ReplicaSession) -> str:
    if not session.connected:
        return "not connected"
    return "upstream away" if session.away else "ok"


def connect(
    config: EdgeConfig, background: Background, metrics: EdgeMetrics, tracing: Tracing, stack: AsyncExitStack
) -> Backend:
    """Opens it; `stack` closes it again, after sending what is left to be reported.

    Raises:
        ConfigError: The edge's service token is missing or too short.
    """
    clock, token = SystemClock(), _service_token(config)

    def client(address: str | Target, name: str) -> ServiceClient:
        opened = ServiceClient(address, name=name, service_token=token, tracing=tracing)
        stack.push_async_callback(opened.close)
        return opened

    authsvc = client(target_of(config.authsvc_address), "authsvc")
    accounting = client(config.accounting_address, "accounting")
    inference = {address: client(address, "inference") for address in config.inference_addresses}
    authenticator = CachedAuthenticator(authsvc, clock, background, stale_max=config.auth_stale_max)
    usage, quota = _accounting(accounting, background, metrics)
    for shipper in (
        usage.evidence,
        usage.requests,
        quota.releases,
        quota.unused_spares,
        quota.outcomes,
        authenticator.uses,
    ):
        stack.push_async_callback(shipper.flush)
    stack.callback(quota.spares.close)
    stack.push_async_callback(background.close)
    leases = Leases(quota, interval=config.lease_seconds / 3)
    watcher = BrokenRequests(usage.evidence.put, quota)
    busy = Busy()
    sessions = tuple(
        _session(config, InferenceClient(address, opened), watcher, background, busy)
        for address, opened in inference.items()
    )
    revocations = RevokedRequests(authenticator) if config.revoked_requests == END else None
    if revocations is not None:
        _ = background.start("revoked requests", revocations.run())
    _ = background.start("invalidations", authenticator.watch())
    _ = background.start("key uses", authenticator.uses.run())
    _ = background.start("leases", leases.run())
    _ = background.start("evidence", usage.evidence.run())
    _ = background.start("request records", usage.requests.run())
    _ = background.start("releases", quota.releases.run())
    _ = background.start("unused spares", quota.unused_spares.run())
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
        revocations=revocations,
    )
    tokenization = Tokenization(gateway=gateway, quota=quota, tokenizers=replicas, policy=policy, new_event_id=uuid7)
    dependencies = {"authsvc": authsvc, "accounting": accounting}
    dependencies |= {f"inference {address}": opened for address, opened in inference.items()}
    return Backend(
        gateway=gateway,
        attribution=Attribution(authsvc, config.trusted_front_end_keys),
        tokenization=tokenization,
        usage=usage,
        rpcs=RpcClient({"auth": authsvc, "accounting": accounting}),
        replica_rpcs={
            address: ReplicaRpcs(address, RpcClient({"inference": opened}), policy.model_aliases, replicas.known_models)
            for address, opened in inference.items()
        },
        health=HealthProbe(dependencies, clock),
        sessions=sessions,
    )


def _accounting(client: ServiceClient, background: Background, metrics: EdgeMetrics) -> tuple[UsageClient, QuotaClient]:
    def dropped(kind: str, number: int) -> None:
        metrics.dropped.labels(kind).inc(number)

    clock = SystemClock()
    usage = UsageClient(client, clock, dropped=dropped)
    return usage, QuotaClient(client, clock, background, dropped=dropped)


def _session(
    config: EdgeConfig, client: InferenceClient, watcher: BrokenRequests, background: Background, busy: Busy
) -> ReplicaSession:
    clock = SystemClock()
    return ReplicaSession(
        client,
        clock=clock,
        watcher=watcher,
        background=background,
        rounds=Rounds(clock, busy),
        random=random.random,
        limits=StreamLimits(config.stream_buffer_bytes, config.stream_stall_seconds, config.keep_alive_seconds),
        tick_interval=min(1.0, config.keep_alive_seconds / 4, config.stream_stall_seconds / 4),
    )


def _service_token(config: EdgeConfig) -> str:
    try:
        return ServiceTokens.read(config.service_tokens_dir).of(ServiceName.EDGE)
    except ValueError as error:
        raise ConfigError(f"NARU_SERVICE_TOKENS_DIR: {error}") from error
