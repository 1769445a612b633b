"""Puts authsvc together, from the configuration to a server that is serving."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from authsvc import migrations
from authsvc.audit_log import AuditLog
from authsvc.audit_servicer import AuditServicer
from authsvc.audit_store import AuditStore
from authsvc.authentication import Authenticator
from authsvc.config import AuthsvcConfig, read_peppers
from authsvc.foreign import open_foreign
from authsvc.identity import Identity, open_identity
from authsvc.key_changes import KeyChanger
from authsvc.key_store import KeyChanges
from authsvc.key_usage import KeyUsage
from authsvc.management import KeyManager
from authsvc.servicer import ApiKeyServicer, AuthServicer
from authsvc.shared import Shared
from naru.api.auth.v1 import api_key_service_pb2_grpc, audit_service_pb2_grpc, auth_service_pb2_grpc
from naru.clock import Clock, SystemClock
from naru.config import ConfigError
from naru.database import Database, answering
from naru.identity import ServiceTokens
from naru.ids import uuid7
from naru.interceptors import CallerAuthenticator
from naru.lifecycle import Lifecycle, Running
from naru.logs import get_logger
from naru.metrics import Metrics
from naru.ops import OpsListener
from naru.server import GrpcServer
from naru.tracing import Tracing

_log = get_logger(__name__)


@asynccontextmanager
async def running(config: AuthsvcConfig, lifecycle: Lifecycle, *, clock: Clock | None = None) -> AsyncIterator[Running]:
    """Serves inside the block, and unwinds in reverse order after it.

    Raises:
        ConfigError: The configuration, the schema or the peppers do not fit.
        OSError: A port is taken, or the database did not answer in time.
    """
    clock = clock or SystemClock()
    peppers = read_peppers(config)
    tokens = _service_tokens(config)
    metrics = Metrics()
    tracing = Tracing.from_environment(config.SERVICE)
    async with AsyncExitStack() as stack:
        stack.callback(tracing.close)
        database = _database(config)
        stack.push_async_callback(database.close)
        shared = Shared.of(config, database, peppers, clock)
        feed, changes = shared.feed, KeyChanges(database)
        usage = KeyUsage(changes, clock)
        foreign = await open_foreign(shared, stack)
        identity = open_identity(
            shared,
            key_authenticator=Authenticator(shared.store, peppers, clock, usage, lifecycle.background),
            foreign=foreign.authenticator,
            stack=stack,
        )
        server = GrpcServer(
            CallerAuthenticator(tokens, identity.authenticator),
            metrics=metrics,
            tracing=tracing,
            reflection_enabled=config.reflection,
        )
        _add_services(server, shared, identity, changes, usage)
        ops = OpsListener(metrics, lambda: server.serving and feed.reachable)
        stack.push_async_callback(ops.close)
        ops_port = await ops.start(config.ops_host, config.ops_port)

        await answering(
            lambda: _check_database(shared, identity),
            seconds=config.database_wait,
            stopping=lifecycle.stopping,
        )
        stack.push_async_callback(usage.flush)
        stack.push_async_callback(lifecycle.background.close)
        _ = lifecycle.background.start("invalidations", feed.run())
        _ = lifecycle.background.start("key uses", usage.run())
        _ = lifecycle.background.start("signing keys", identity.ring.run())
        foreign.start(lifecycle.background)
        port = await server.start(config.host, config.port)
        stack.push_async_callback(server.stop, config.shutdown_grace)
        stack.callback(feed.close)  # before the server stops: watches would hold it up for the whole grace
        await server.set_serving(True)
        yield Running(port, ops_port)


async def migrate(config: AuthsvcConfig) -> None:
    """Brings the schema up to date. Raises ConfigError, or OSError when the database did not answer in time."""
    async with AsyncExitStack() as stack:
        database = _database(config)
        stack.push_async_callback(database.close)
        await answering(
            lambda: migrations.MIGRATIONS.upgrade(database), seconds=config.database_wait, stopping=asyncio.Event()
        )
    _log.info("the schema is up to date")


def _add_services(server: GrpcServer, shared: Shared, identity: Identity, changes: KeyChanges, usage: KeyUsage) -> None:
    manager = KeyManager(
        store=shared.store,
        auditor=shared.auditor,
        peppers=shared.peppers,
        clock=shared.clock,
        random_bytes=os.urandom,
        new_id=uuid7,
        user_keys=shared.config.user_keys,
    )
    changer = KeyChanger(
        store=shared.store,
        changes=changes,
        feed=shared.feed,
        auditor=shared.auditor,
        peppers=shared.peppers,
        clock=shared.clock,
        random_bytes=os.urandom,
    )
    server.add(
        auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
        AuthServicer(identity.authenticator, shared.feed, manager, usage),
        "naru.api.auth.v1.AuthService",
    )
    server.add(
        api_key_service_pb2_grpc.add_ApiKeyServiceServicer_to_server,
        ApiKeyServicer(manager, changer, shared.clock),
        "naru.api.auth.v1.ApiKeyService",
    )
    server.add(
        audit_service_pb2_grpc.add_AuditServiceServicer_to_server,
        AuditServicer(AuditLog(AuditStore(shared.database), shared.clock)),
        "naru.api.auth.v1.AuditService",
    )
    identity.add_to(server)


async def _check_database(shared: Shared, identity: Identity) -> None:
    if not await migrations.MIGRATIONS.is_current(shared.database):
        raise ConfigError("the database does not have the schema of this version: run `python -m authsvc migrate`")
    peppers = shared.peppers
    used = await shared.store.pepper_versions(shared.clock.time())
    missing = used.keys() - peppers.versions
    if missing:
        versions = ", ".join(str(version) for version in sorted(missing))
        raise ConfigError(f"NARU_AUTHSVC_PEPPER_FILES: keys in the database need the pepper of version {versions}")
    # So that an operator knows when an earlier one can go.
    _log.info("peppers", keys_by_version={str(version): used.get(version, 0) for version in sorted(peppers.versions)})
    await identity.ring.turn()


def _database(config: AuthsvcConfig) -> Database:
    try:
        return Database(config.database_url)
    except ValueError as error:
        raise ConfigError(f"NARU_AUTHSVC_DATABASE_URL: {error}") from error


def _service_tokens(config: AuthsvcConfig) -> ServiceTokens:
    try:
        return ServiceTokens.read(config.service_tokens_dir)
    except ValueError as error:
        raise ConfigError(f"NARU_SERVICE_TOKENS_DIR: {error}") from error
