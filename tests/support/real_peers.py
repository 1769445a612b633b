"""A real accounting, on SQLite and a Redis of its own, and a real replica with the simulated engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from accounting.app import migrate
from accounting.app import running as accounting_running
from accounting.config import AccountingConfig
from inference.app import running as inference_running
from inference.config import InferenceConfig
from naru.lifecycle import Lifecycle
from naru.testing.redis_server import redis_server


@asynccontextmanager
async def real_peers(folder: Path, secrets: Path, authsvc_address: str) -> AsyncIterator[tuple[str, str]]:
    """Their addresses; `secrets` has the service tokens, and all that they keep lies in `folder`."""
    async with AsyncExitStack() as stack:
        config = AccountingConfig(
            port=0,
            database_url=f"sqlite+aiosqlite:///{folder}/accounting.db",
            database_wait=0.0,
            redis_url=stack.enter_context(redis_server()),
            service_tokens_dir=secrets,
            authsvc_address=authsvc_address,
            shutdown_grace=0.5,
            lease_seconds=2.0,
            recovery_seconds=1.0,
        )
        await migrate(config)
        accounting = await stack.enter_async_context(accounting_running(config, Lifecycle()))
        replica = InferenceConfig(
            port=0,
            engine="simulated",
            model="small",
            service_tokens_dir=secrets,
            journal_dir=folder / "journal",
            authsvc_address=authsvc_address,
            accounting_address=f"127.0.0.1:{accounting.port}",
            shutdown_grace=0.3,
            replica_id="replica-1",
            simulated_tokens_per_second=5000.0,
            simulated_prefill_seconds=0.0,
        )
        inference = await stack.enter_async_context(inference_running(replica, Lifecycle()))
        yield f"127.0.0.1:{accounting.port}", f"127.0.0.1:{inference.port}"
