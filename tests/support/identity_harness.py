"""A real authsvc on SQLite behind a real edge, and everybody else played, unless a test wants them real."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import sqlalchemy as sa

from authsvc.app import migrate
from authsvc.app import running as authsvc_running
from authsvc.config import AuthsvcConfig
from authsvc.tables import metadata
from edge.app import running as edge_running
from edge.config import EdgeConfig
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc, user_service_pb2, user_service_pb2_grpc
from naru.client import ServiceClient
from naru.database import Database
from naru.identity import ServiceName, ServiceTokens
from naru.lifecycle import Lifecycle
from naru.testing.clock import FakeClock
from tests.support.fake_accounting import FakeAccounting
from tests.support.fake_inference import FakeInference
from tests.support.real_peers import real_peers
from tests.support.service_tokens import EDGE_TOKENS

PASSWORD = "correct horse battery"
EMAIL = "ann@example.com"


@dataclass(slots=True)
class Answer:
    """What came back over HTTP."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def code(self) -> Any:
        """OpenAI's code of an error."""
        return self.body["error"]["code"]


@dataclass(slots=True)
class Installation:
    """An edge in front of authsvc. `key` and `admin_password` are what bootstrap showed; `replica` is inference's address."""

    url: str
    http: aiohttp.ClientSession
    clock: FakeClock
    authsvc_address: str
    authsvc: ServiceClient
    database: Database
    key: str
    workspace_id: str
    admin_email: str
    admin_password: str
    replica: str

    async def ask(
        self, method: str, path: str, body: Any = None, *, token: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """A request, by whoever owns the token."""
        sent = dict(headers or {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        data = {"data": body} if isinstance(body, bytes) else {} if body is None else {"json": body}
        async with self.http.request(method, self.url + path, headers=sent, **data) as answer:
            return Answer(answer.status, await answer.json(content_type=None), dict(answer.headers))

    async def login(self, email: str, password: str = PASSWORD) -> dict[str, Any]:
        """A new session's tokens."""
        answer = await self.ask("POST", "/api/auth/login", {"email": email, "password": password})
        assert answer.status == 200, answer
        return dict(answer.body)

    async def admin(self) -> str:
        """An access token of the administrator."""
        return str((await self.login(self.admin_email, self.admin_password))["access_token"])

    async def new_user(self, email: str = EMAIL, **fields: Any) -> dict[str, Any]:
        """A user with the usual password."""
        made = await self.ask("POST", "/api/users", {"email": email, **fields}, token=self.key)
        assert made.status == 200, made
        user = dict(made.body["user"])
        reset = await self.ask("POST", f"/api/users/{user['user_id']}/password", {"password": PASSWORD}, token=self.key)
        assert (reset.status, reset.body) == (200, {"password": ""})
        return user

    async def contents(self, *, without: tuple[str, ...] = ()) -> dict[str, list[Any]]:
        """All rows of all tables."""
        async with self.database.reading() as connection:
            return {
                table.name: sorted(map(repr, (await connection.execute(sa.select(table))).all()))
                for table in metadata.sorted_tables
                if table.name not in without
            }


@asynccontextmanager
async def installation(
    folder: Path, *, real: bool = False, behind: float = 0.0, **settings: Any
) -> AsyncIterator[Installation]:
    """Runs it, bootstrapped; `settings` are fields of AuthsvcConfig.

    With `real`, accounting and inference (with the simulated engine) are real too. Authsvc's clock is `behind` the edge's by
    so many seconds.
    """
    secrets = folder / "secrets"
    secrets.mkdir()
    for name in ServiceName:
        (secrets / f"service-token-{name}").write_text(EDGE_TOKENS.get(name, f"{name}-" + "t" * 32))
    (secrets / "pepper").write_text("p" * 32)
    config = AuthsvcConfig(
        port=0,
        database_url=f"sqlite+aiosqlite:///{folder}/authsvc.db",
        database_wait=0.0,
        pepper_files=(f"1:{secrets}/pepper",),
        service_tokens_dir=secrets,
        shutdown_grace=2.0,
    )
    config = replace(config, **settings)
    clock = FakeClock(float(int(time.time())) - behind)
    async with AsyncExitStack() as stack:
        await migrate(config)
        authsvc = await stack.enter_async_context(authsvc_running(config, Lifecycle(), clock=clock))
        address = f"127.0.0.1:{authsvc.port}"
        accounting, inference = await stack.enter_async_context(
            real_peers(folder, secrets, address) if real else played_peers()
        )
        edge_config = EdgeConfig(
            port=0,
            service_tokens_dir=secrets,
            authsvc_address=address,
            accounting_address=accounting,
            inference_addresses=(inference,),
            shutdown_grace=0.2,
            trusted_proxies=("127.0.0.0/8",),
        )
        edge = await stack.enter_async_context(edge_running(edge_config, Lifecycle()))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        token = ServiceTokens.read(secrets).of(ServiceName.OPERATOR)
        operator = ServiceClient(address, name="authsvc", service_token=token)
        stack.push_async_callback(operator.close)
        database = Database(config.database_url)
        stack.push_async_callback(database.close)
        auth = auth_service_pb2_grpc.AuthServiceStub(operator.channel)
        first = await operator.call(auth.Bootstrap, auth_service_pb2.BootstrapRequest(), timeout=30)
        users = user_service_pb2_grpc.UserServiceStub(operator.channel)
        admin = await operator.call(users.BootstrapAdmin, user_service_pb2.BootstrapAdminRequest(), timeout=30)
        url = f"http://127.0.0.1:{edge.port}"
        await _connected(http, url)
        yield Installation(
            url,
            http,
            clock,
            address,
            operator,
            database,
            first.api_key,
            first.workspace_id,
            admin.user.email,
            admin.password,
            inference,
        )


@asynccontextmanager
async def played_peers() -> AsyncIterator[tuple[str, str]]:
    """The addresses of an accounting and an inference that are played."""
    accounting, inference = FakeAccounting(), FakeInference()
    async with AsyncExitStack() as stack:
        for peer in (accounting, inference):
            await peer.start(EDGE_TOKENS)
            stack.push_async_callback(peer.kill)
        yield f"127.0.0.1:{accounting.port}", f"127.0.0.1:{inference.port}"


async def _connected(http: aiohttp.ClientSession, url: str) -> None:
    """Waits until the edge has a session with the replica, and all services answer."""
    async with asyncio.timeout(30):
        while True:
            async with http.get(f"{url}/health") as answer:
                if (await answer.json())["status"] == "ok":
                    return
            await asyncio.sleep(0.02)
