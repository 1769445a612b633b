"""A whole installation for others' tokens: real edge, authsvc, accounting with its Redis, and inference that simulates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from authsvc.app import migrate as migrate_authsvc
from authsvc.app import running as authsvc_running
from authsvc.config import AuthsvcConfig
from edge.app import running as edge_running
from edge.config import EdgeConfig
from naru import api_key
from naru.api.auth.v1 import api_key_service_pb2, api_key_service_pb2_grpc, auth_service_pb2, auth_service_pb2_grpc
from naru.api.common.v1 import principal_pb2
from naru.client import ServiceClient
from naru.database import Database
from naru.identity import ServiceName
from naru.lifecycle import Lifecycle
from naru.testing.clock import FakeClock
from tests.support.identity_harness import Installation
from tests.support.real_peers import real_peers
from tests.support.recording_accounting import write_service_tokens

MODEL = "small"
"""What is served."""


class Whole(Installation):
    """The installation, with the key of a front end that is trusted to say for whom it asks."""

    front_end: str = ""

    async def chat(self, token: str = "", headers: dict[str, str] | None = None) -> Any:
        """A short conversation."""
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}
        return await self.ask("POST", "/v1/chat/completions", body, token=token, headers=headers)

    async def usage_by_user(self) -> dict[str, int]:
        """Requests by user, as the administrator's key sees them."""
        answer = await self.ask("GET", "/api/admin/usage?by=user", token=self.key)
        assert answer.status == 200, answer
        return {row.get("user_id", ""): int(row["requests"]) for row in answer.body["rows"]}

    async def user(self, user_id: str) -> dict[str, Any]:
        """A user, as the administrator's key sees them."""
        answer = await self.ask("GET", f"/api/users/{user_id}", token=self.key)
        assert answer.status == 200, answer
        return dict(answer.body)


@asynccontextmanager
async def whole(folder: Path, *, edge: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Whole]:
    """Runs it; `settings` are fields of AuthsvcConfig, `edge` of EdgeConfig."""
    tokens, clock = write_service_tokens(folder / "tokens"), FakeClock(float(int(time.time())))
    (folder / "pepper").write_text("p" * 32)
    common: dict[str, Any] = {"port": 0, "service_tokens_dir": folder / "tokens", "shutdown_grace": 0.3}
    async with AsyncExitStack() as stack:
        authsvc_config = AuthsvcConfig(
            **common,
            database_url=f"sqlite+aiosqlite:///{folder}/authsvc.db",
            database_wait=0.0,
            pepper_files=(f"1:{folder}/pepper",),
            **settings,
        )
        await migrate_authsvc(authsvc_config)
        authsvc = await stack.enter_async_context(authsvc_running(authsvc_config, Lifecycle(), clock=clock))
        address = f"127.0.0.1:{authsvc.port}"
        accounting, inference = await stack.enter_async_context(real_peers(folder, folder / "tokens", address))
        operator = ServiceClient(address, name="authsvc", service_token=tokens.of(ServiceName.OPERATOR))
        stack.push_async_callback(operator.close)
        auth = auth_service_pb2_grpc.AuthServiceStub(operator.channel)
        first = await operator.call(auth.Bootstrap, auth_service_pb2.BootstrapRequest(), timeout=30)
        front_end = await _front_end_key(address, first.api_key)
        edge_config = EdgeConfig(
            **common,
            authsvc_address=address,
            accounting_address=accounting,
            inference_addresses=(inference,),
            trusted_proxies=("127.0.0.0/8",),
            trusted_front_end_keys=(api_key.parse(front_end).key_id,),
            **(edge or {}),
        )
        up = await stack.enter_async_context(edge_running(edge_config, Lifecycle()))
        http = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        database = Database(authsvc_config.database_url)
        stack.push_async_callback(database.close)
        made = Whole(
            f"http://127.0.0.1:{up.port}",
            http,
            clock,
            address,
            operator,
            database,
            first.api_key,
            first.workspace_id,
            "",
            "",
            inference,
        )
        made.front_end = front_end
        async with asyncio.timeout(30):
            while (await made.ask("GET", f"/v1/models/{MODEL}", token=first.api_key)).status != 200:
                await asyncio.sleep(0.02)
        yield made


async def _front_end_key(address: str, admin_key: str) -> str:
    admin = ServiceClient(address, name="authsvc", credential=admin_key)
    try:
        keys = api_key_service_pb2_grpc.ApiKeyServiceStub(admin.channel)
        wish = api_key_service_pb2.CreateApiKeyRequest(
            service_account="open-webui", tier="unlimited", role=principal_pb2.ROLE_WORKSPACE_ADMIN
        )
        return str((await admin.call(keys.CreateApiKey, wish, timeout=10)).secret_key)
    finally:
        await admin.close()
