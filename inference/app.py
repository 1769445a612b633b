"""Wires the inference service together."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from inference.adapter_folders import AdapterFolders
from inference.adapter_state import FILE_NAME, AdapterState
from inference.adapters import Adapters
from inference.admission import Leases, Reservations
from inference.availability import Availability
from inference.clients import AccountingClient
from inference.config import InferenceConfig
from inference.control import Control
from inference.control_servicer import ControlServicer
from inference.engine import Engine
from inference.events import EngineReport
from inference.fair_queue import FairQueue
from inference.generations import Generations
from inference.journal import Journal
from inference.metrics import InferenceMetrics
from inference.model_servicer import ModelServicer
from inference.outbox import OutboxLimits
from inference.servicer import InferenceServicer
from inference.session import Sessions
from inference.session_stream import SessionServer
from inference.shipper import Shipper
from inference.tokenization import Tokenization
from inference.tools import Tools
from inference.turns import TurnLimits, Turns
from inference.watchdog import Watchdog
from naru.api.inference.v1 import (
    control_service_pb2,
    control_service_pb2_grpc,
    inference_service_pb2,
    inference_service_pb2_grpc,
    model_service_pb2,
    model_service_pb2_grpc,
)
from naru.balancing import target_of
from naru.client import ServiceClient
from naru.clock import Clock, SystemClock
from naru.config import END, ConfigError
from naru.credentials import CachedAuthenticator
from naru.errors import unavailable
from naru.identity import ServiceName, ServiceTokens
from naru.ids import uuid7
from naru.interceptors import CallerAuthenticator, internal_error
from naru.lifecycle import Lifecycle, Running
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.ops import OpsListener
from naru.revoked_requests import RevokedRequests
from naru.server import GrpcServer
from naru.tracing import Tracing

_LAST_FRAMES_SECONDS = 5.0
_ENGINE_SHUTDOWN_SECONDS = 10.0
_LEAST_SHIPPING_SECONDS = 2.0
_LATE_ADAPTERS_SECONDS = 1.0
_log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Service:
    """What has to be stopped in order."""

    engine: Engine
    generations: Generations
    sessions: Sessions
    control: Control
    adapters: Adapters
    shipper: Shipper
    server: GrpcServer
    session_server: SessionServer


@asynccontextmanager
async def running(
    config: InferenceConfig, lifecycle: Lifecycle, make_engine: Callable[[InferenceConfig], Engine] | None = None
) -> AsyncIterator[Running]:
    """The service, up inside the block.

    `make_engine` makes the engine; by default the one that the configuration names. Raises ConfigError, OSError, or what
    the engine raises when it cannot load.
    """
    metrics = Metrics()
    own_metrics = InferenceMetrics(metrics)
    servers: list[GrpcServer] = []
    async with AsyncExitStack() as stack:
        ops = OpsListener(metrics, ready=lambda: any(server.serving for server in servers))
        ops_port = await ops.start(config.ops_host, config.ops_port)
        stack.push_async_callback(ops.close)
        tokens = _tokens(config)
        engine = (make_engine or _make_engine)(config)
        await _start_engine(engine, config, own_metrics, stack)
        # gRPC and forking do not mix: everything of gRPC is made after the engine has made its processes.
        service = await _assemble(
            config=config,
            lifecycle=lifecycle,
            engine=engine,
            tokens=tokens,
            metrics=metrics,
            own_metrics=own_metrics,
            stack=stack,
        )
        servers.append(service.server)
        await service.session_server.start(config.host, config.session_port)
        port = await service.server.start(config.host, config.port)
        stack.push_async_callback(_stop, service, config.shutdown_grace)
        _ = lifecycle.background.start("watchdog", _watch(service, config))
        await service.server.set_serving(True)
        yield Running(port, ops_port)


def _tokens(config: InferenceConfig) -> ServiceTokens:
    try:
        tokens = ServiceTokens.read(config.service_tokens_dir)
        tokens.of(ServiceName.INFERENCE)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return tokens


async def _start_engine(
    engine: Engine, config: InferenceConfig, metrics: InferenceMetrics, stack: AsyncExitStack
) -> None:
    metrics.engine_info.labels(config.engine).set(1)
    if config.engine == "simulated":
        _log.warning("the simulated engine answers: its texts mean nothing")
    stack.push_async_callback(engine.shutdown, _ENGINE_SHUTDOWN_SECONDS)
    await engine.start()
    metrics.watch_engine(engine.counters)


def _make_engine(config: InferenceConfig) -> Engine:
    # Heavy modules: only the engine that is wanted is imported.
    logger: Any = get_logger("inference.engine")
    if config.engine == "simulated":
        from inference.simulated_engine import SimulatedEngine, SimulatedEngineConfig

        behaviour = SimulatedEngineConfig(
            served_name=config.served_name(),
            tokens_per_second=config.simulated_tokens_per_second,
            prefill_seconds=config.simulated_prefill_seconds,
            slots=config.simulated_slots,
            context_tokens=config.simulated_context_tokens,
            answer_tokens=config.simulated_answer_tokens,
            die_after_tokens=config.simulated_die_after_tokens,
            hang_after_tokens=config.simulated_hang_after_tokens,
            account=config.simulated_account,
            adapters=config.simulated_adapters(),
        )
        return SimulatedEngine(behaviour, logger)
    if config.engine == "upstream":
        from inference.upstream_engine import UpstreamEngine

        return UpstreamEngine(config.upstream(), logger)
    from inference.parser_families import choose_parsers
    from inference.vllm_engine import VllmEngine
    from inference.vllm_settings import VllmEngineConfig

    parsers = choose_parsers(config.model, config.tool_call_parser, config.reasoning_parser)
    settings = VllmEngineConfig(config.model, config.served_name(), config.engine_arguments(), parsers)
    return VllmEngine(settings, environ=os.environ, new_id=uuid7, logger=logger)


async def _assemble(
    *,
    config: InferenceConfig,
    lifecycle: Lifecycle,
    engine: Engine,
    tokens: ServiceTokens,
    metrics: Metrics,
    own_metrics: InferenceMetrics,
    stack: AsyncExitStack,
) -> _Service:
    clock = SystemClock()
    tracing = Tracing.from_environment("inference")
    stack.callback(tracing.close)
    token = tokens.of(ServiceName.INFERENCE)
    authsvc = ServiceClient(target_of(config.authsvc_address), name="authsvc", service_token=token, tracing=tracing)
    stack.push_async_callback(authsvc.close)
    authenticator = CachedAuthenticator(authsvc, clock, lifecycle.background, stale_max=config.auth_stale_max)
    # Runs after the background was closed: what that was handing on when it was cancelled is handed on then.
    stack.push_async_callback(authenticator.uses.flush)
    accounting_channel = ServiceClient(
        config.accounting_address, name="accounting", service_token=token, tracing=tracing
    )
    stack.push_async_callback(accounting_channel.close)
    accounting = AccountingClient(accounting_channel)
    # After the engine has made its processes, so that none of them can inherit the lock on the journal.
    journal = _open_journal(config, own_metrics)
    stack.callback(journal.close)
    stack.push_async_callback(lifecycle.background.close)
    leases = Leases(accounting, _log, own_metrics, interval=config.lease_seconds / 3)
    replica, epoch = config.replica_id or f"{socket.gethostname()}-{config.port or os.getpid()}", uuid7()
    shipper = Shipper(journal, accounting, lambda: EngineReport(replica, epoch, engine.counters()), _log)
    revocations = RevokedRequests(authenticator) if config.revoked_requests == END else None
    reservations = Reservations(accounting, _log)
    turns = _turns(config, engine, clock, own_metrics)
    generations = Generations(
        Tools(
            engine=engine,
            journal=journal,
            leases=leases,
            reservations=reservations,
            turns=turns,
            clock=clock,
            # Bound once: each binding of the module's own would look the configuration up again.
            logger=_log.bind(),
            metrics=own_metrics,
            start_span=tracing.start_span,
            internal_error=internal_error,
            replica=replica,
            epoch=epoch,
        )
    )
    limits = OutboxLimits(buffer_bytes=config.session_buffer_bytes, stall_seconds=config.session_stall_seconds)
    sessions = Sessions(generations, own_metrics, limits)
    control = Control(engine, generations, name=replica, logger=_log, changed=sessions.announce)
    adapters = await _adapters(config, engine, generations, clock, control, changed=sessions.announce)
    # For what is begun while the service stops; before that, `_stop` waits longer.
    stack.push_async_callback(adapters.close, _LATE_ADAPTERS_SECONDS)
    server = GrpcServer(
        CallerAuthenticator(tokens, authenticator),
        metrics=metrics,
        tracing=tracing,
        clock=clock,
        reflection_enabled=config.reflection,
    )

    availability = Availability(engine)

    def load() -> inference_service_pb2.Load:
        requests = engine.unfinished_requests() + turns.waiting
        return inference_service_pb2.Load(
            requests=requests,
            draining=generations.draining,
            models_revision=adapters.revision,
            away=availability.away(),
        )

    session_server = SessionServer(sessions, load, tokens, lifecycle.background)
    _add_servicers(
        server,
        InferenceServicer(sessions, load, Tokenization(engine, reservations), revocations),
        ModelServicer(engine.models, adapters, lambda: session_server.port),
        ControlServicer(control),
    )
    if revocations is not None:
        _ = lifecycle.background.start("revoked requests", revocations.run())
    for name, work in (
        ("availability", availability.announce(sessions.announce)),
        ("journal", journal.keep_synced()),
        ("shipper", shipper.run()),
        ("leases", leases.keep()),
        ("ended", leases.tell_ended()),
        ("invalidations", authenticator.watch()),
        ("key uses", authenticator.uses.run()),
    ):
        _ = lifecycle.background.start(name, work)
    return _Service(engine, generations, sessions, control, adapters, shipper, server, session_server)


def _turns(config: InferenceConfig, engine: Engine, clock: Clock, metrics: InferenceMetrics) -> Turns:
    slots = engine.slots() if config.max_running is None else config.max_running
    limits = TurnLimits(config.queue_seconds, config.weights_by_tier())
    return Turns(FairQueue(slots, config.queue_length), limits, clock, metrics)


async def _adapters(
    config: InferenceConfig,
    engine: Engine,
    generations: Generations,
    clock: Clock,
    control: Control,
    *,
    changed: Callable[[], None],
) -> Adapters:
    """With those of the configuration loaded, and those that were loaded before. Raises ConfigError or EngineDiedError."""
    adapters = Adapters(
        engine=engine,
        folders=AdapterFolders(config.adapter_roots()),
        state=AdapterState(config.journal_dir / FILE_NAME),
        users=generations,
        clock=clock,
        logger=_log,
        changed=changed,
        awake=control.awake,
    )
    try:
        # vLLM leaves whoever waits for an engine that dies waiting for ever.
        await _watchdog(engine, config).unless_dead(adapters.start(config.adapters()))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return adapters


def _add_servicers(
    server: GrpcServer, inference: InferenceServicer, models: ModelServicer, control: ControlServicer
) -> None:
    server.add(
        inference_service_pb2_grpc.add_InferenceServiceServicer_to_server,
        inference,
        inference_service_pb2.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    )
    server.add(
        model_service_pb2_grpc.add_ModelServiceServicer_to_server,
        models,
        model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
    )
    server.add(
        control_service_pb2_grpc.add_ControlServiceServicer_to_server,
        control,
        control_service_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
    )


def _open_journal(config: InferenceConfig, metrics: InferenceMetrics) -> Journal:
    try:
        return Journal(config.journal_dir, _log, metrics, config.journal_segment_bytes)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _watchdog(engine: Engine, config: InferenceConfig) -> Watchdog:
    return Watchdog(engine, _log, probe_seconds=config.engine_probe_seconds, probe_timeout=config.engine_probe_timeout)


async def _watch(service: _Service, config: InferenceConfig) -> None:
    death = await _watchdog(service.engine, config).wait_for_death()
    await service.server.set_serving(False)
    service.generations.refuse_new()
    # The engine's own last words come first; those it does not reach are failed for it.
    await service.generations.wait_idle(1.0)
    service.generations.fail_all(unavailable("inference", "The engine died before the request was finished."))
    raise death


async def _stop(service: _Service, grace: float) -> None:
    """Stops without losing anything: refuse, finish or abort what runs, tell it, ship it."""
    ends = asyncio.get_running_loop().time() + grace
    await service.server.set_serving(False)
    service.generations.refuse_new()
    service.sessions.announce()
    await asyncio.gather(service.control.close(grace), service.adapters.close(grace))
    await service.generations.drain(max(ends - asyncio.get_running_loop().time(), 0.0))
    service.sessions.end_when_idle()
    await asyncio.gather(service.server.stop(_LAST_FRAMES_SECONDS), service.session_server.stop(_LAST_FRAMES_SECONDS))
    await service.shipper.drain(max(ends - asyncio.get_running_loop().time(), _LEAST_SHIPPING_SECONDS))
