"""Requests that run while their key or token stops working: they finish, or end, as configured. Real services, over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from authsvc.app import migrate
from authsvc.app import running as authsvc_running
from authsvc.config import AuthsvcConfig
from edge.app import running as edge_running
from edge.config import EdgeConfig
from naru.api.accounting.v1 import usage_event_pb2
from naru.api.auth.v1 import auth_service_pb2, auth_service_pb2_grpc
from naru.api.inference.v1 import generation_pb2
from naru.client import ServiceClient
from naru.config import END, FINISH
from naru.convert import error_from_proto
from naru.errors import Reason
from naru.identity import ServiceName, ServiceTokens
from naru.lifecycle import Lifecycle
from naru.testing.redis_server import free_port
from tests.support.generation_bench import eventually
from tests.support.inference_service import InferenceService, inference_service
from tests.support.recording_accounting import write_service_tokens

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(300)]
TOKENS_PER_SECOND = 100.0
PASSWORD = "correct horse battery"


@dataclass(slots=True)
class Stream:
    """One answer as it comes. `event` is what ended it: `[DONE]`, or the error before it."""

    answer: aiohttp.ClientResponse
    chunks: int = 0
    event: Any = None

    async def read(self, *, chunks: int = 1_000_000) -> None:
        """Reads so many chunks more, or to the end."""
        async for line in self.answer.content:
            data = line.decode().removeprefix("data: ").strip()
            if not line.startswith(b"data: "):
                continue
            if data == "[DONE]" or "error" in (event := json.loads(data)):
                self.event = self.event or (data if data == "[DONE]" else event["error"])
                continue
            self.chunks += 1
            if (chunks := chunks - 1) == 0:
                return


@dataclass(slots=True)
class Platform:
    """What runs; `admin` is the first key."""

    url: str
    http: aiohttp.ClientSession
    inference: InferenceService
    admin: str

    async def ask(self, method: str, path: str, body: Any = None, token: str = "") -> Any:
        """What a request, by the admin unless somebody else is given, answers."""
        headers = {"Authorization": f"Bearer {token or self.admin}"}
        async with self.http.request(method, self.url + path, json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            return await answer.json()

    async def new_key(self, **fields: Any) -> tuple[str, str]:
        """A key's id and its text."""
        made = await self.ask("POST", "/api/keys", fields)
        return made["api_key"]["key_id"], made["secret_key"]

    async def new_user(self) -> str:
        """The id of a user with the usual password."""
        user = (await self.ask("POST", "/api/users", {"email": "ann@example.com"}))["user"]
        await self.ask("POST", f"/api/users/{user['user_id']}/password", {"password": PASSWORD})
        return str(user["user_id"])

    @asynccontextmanager
    async def streaming(self, credential: str, max_tokens: int = 2000) -> AsyncIterator[Stream]:
        """An answer of which some chunks were read."""
        body = {
            "model": "small",
            "messages": [{"role": "user", "content": "Hello."}],
            "stream": True,
            "max_tokens": max_tokens,
        }
        headers = {"Authorization": f"Bearer {credential}"}
        async with self.http.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            stream = Stream(answer)
            await stream.read(chunks=5)
            yield stream

    async def outcome(self) -> tuple[str, int]:
        """How the one request that was metered ended, and how many tokens it is billed for."""
        await eventually(lambda: bool(self.inference.events))
        (event,) = self.inference.events
        return usage_event_pb2.Outcome.Name(event.outcome), event.usage.completion_tokens


@asynccontextmanager
async def platform(folder: Path, revoked_requests: str) -> AsyncIterator[Platform]:
    address = f"127.0.0.1:{free_port()}"
    (folder / "pepper").write_text("p" * 32)
    common = {"authsvc_address": address, "revoked_requests": revoked_requests}
    simulated = {
        "simulated_tokens_per_second": TOKENS_PER_SECOND,
        "simulated_prefill_seconds": 0.0,
        "simulated_answer_tokens": 2000,
    }
    async with AsyncExitStack() as stack:
        tokens = folder / "tokens"
        _ = write_service_tokens(tokens)
        auth = AuthsvcConfig(
            port=int(address.rpartition(":")[2]),
            database_url=f"sqlite+aiosqlite:///{folder}/auth.db",
            pepper_files=(f"1:{folder}/pepper",),
            service_tokens_dir=tokens,
            shutdown_grace=1.0,
        )
        await migrate(auth)
        # Before those that ask it, who would try again later and later.
        await stack.enter_async_context(authsvc_running(auth, Lifecycle()))
        inference = await stack.enter_async_context(inference_service(folder, **common, **simulated))
        config = EdgeConfig(
            port=0,
            service_tokens_dir=tokens,
            accounting_address=inference.peers_address,
            inference_addresses=(f"127.0.0.1:{inference.port}",),
            shutdown_grace=0.2,
            **common,
        )
        edge = await stack.enter_async_context(edge_running(config, Lifecycle()))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        token = ServiceTokens.read(tokens).of(ServiceName.OPERATOR)
        operator = ServiceClient(address, name="authsvc", service_token=token)
        stack.push_async_callback(operator.close)
        stub = auth_service_pb2_grpc.AuthServiceStub(operator.channel)
        first = await operator.call(stub.Bootstrap, auth_service_pb2.BootstrapRequest(), timeout=10)
        up = Platform(f"http://127.0.0.1:{edge.port}", http, inference, first.api_key)
        async with asyncio.timeout(10):
            while (await (await http.get(f"{up.url}/health")).json())["status"] != "ok":
                await asyncio.sleep(0.02)
        yield up


@pytest.mark.parametrize("act", ["revoke", "block", "rotate", "block user", "log out everywhere"])
async def test_a_running_stream_ends_with_its_credential(tmp_path: Path, act: str) -> None:
    """Within a second of the change comes an error event; what was generated until then is billed, and no more."""
    async with platform(tmp_path, END) as up:
        user_id = await up.new_user()
        key_id, credential = await up.new_key(user_id=user_id)
        if act == "log out everywhere":
            login = {"email": "ann@example.com", "password": PASSWORD}
            credential = (await up.ask("POST", "/api/auth/login", login))["access_token"]
        async with up.streaming(credential) as stream:
            # A change that leaves the credential good ends nothing.
            await up.ask("PATCH", f"/api/keys/{key_id}", {"description": "still good"})
            await stream.read(chunks=20)
            match act:
                case "revoke":
                    await up.ask("DELETE", f"/api/keys/{key_id}")
                case "block":
                    await up.ask("POST", f"/api/keys/{key_id}/block")
                case "rotate":
                    await up.ask("POST", f"/api/keys/{key_id}/rotate", {"grace_period": "0s"})
                case "block user":
                    await up.ask("PUT", f"/api/users/{user_id}", {"email": "ann@example.com", "blocked": True})
                case _:
                    await up.ask("DELETE", f"/api/users/{user_id}/sessions")
            changed = time.monotonic()
            # Promised is a second; a busy machine gets more, but less than the 9 after which services without invalidations
            # ask anew.
            async with asyncio.timeout(8):
                await stream.read()
            print(f"ended {time.monotonic() - changed:.2f} s after the change")
        assert stream.event["code"] == "invalid_api_key", stream.event
        outcome, tokens = await up.outcome()
        assert outcome == "OUTCOME_ABORTED"
        # The first chunk is the role's.
        assert stream.chunks - 1 <= tokens <= stream.chunks + TOKENS_PER_SECOND
        assert [event.event_id for event in up.inference.events] == [
            reservation.event_id for reservation in up.inference.accounting.reservations
        ]
        assert not up.inference.accounting.released


async def test_a_stream_of_another_key_goes_on(tmp_path: Path) -> None:
    """Only the requests of the key that was revoked end."""
    async with platform(tmp_path, END) as up:
        (revoked_id, revoked), (_, other) = await up.new_key(), await up.new_key()
        async with up.streaming(revoked) as ends, up.streaming(other, max_tokens=100) as goes_on:
            await up.ask("DELETE", f"/api/keys/{revoked_id}")
            await ends.read()
            await goes_on.read()
        assert (ends.event["code"], goes_on.event) == ("invalid_api_key", "[DONE]")


async def test_a_running_stream_finishes_by_default(tmp_path: Path) -> None:
    """The answer comes whole and is billed whole, though the next request with the key is refused."""
    assert EdgeConfig().revoked_requests == FINISH
    async with platform(tmp_path, FINISH) as up:
        key_id, key = await up.new_key()
        async with up.streaming(key, max_tokens=150) as stream:
            await up.ask("DELETE", f"/api/keys/{key_id}")
            async with asyncio.timeout(20):
                while (
                    await up.http.get(f"{up.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
                ).status != 401:
                    await asyncio.sleep(0.01)
            before = stream.chunks
            await stream.read()
        assert stream.event == "[DONE]"
        assert stream.chunks > before
        assert await up.outcome() == ("OUTCOME_COMPLETED", 150)


@pytest.mark.parametrize("revoked_requests", [END, FINISH])
async def test_a_direct_call_ends_or_finishes_too(tmp_path: Path, revoked_requests: str) -> None:
    """Generate of the inference service, called with the key itself."""
    async with platform(tmp_path, revoked_requests) as up:
        key_id, key = await up.new_key()
        message = generation_pb2.ChatMessage(role="user", content="Hello.")
        # One that is to end takes too long to come to its end by itself.
        max_tokens = 150 if revoked_requests == FINISH else 2000
        sampling = generation_pb2.SamplingParameters(max_tokens=max_tokens)
        chat = generation_pb2.ChatInput(messages=[message], sampling=sampling)
        asked = generation_pb2.Generation(chat=chat, stream=True)
        async with up.inference.generate(asked, key=key) as responses:
            for _ in range(5):
                last = await anext(responses)
            await up.ask("DELETE", f"/api/keys/{key_id}")
            async for response in responses:
                last = response
        outcome, tokens = await up.outcome()
        assert last.WhichOneof("event") == "finished"
        if revoked_requests == FINISH:
            assert (outcome, tokens) == ("OUTCOME_COMPLETED", 150)
            return
        assert outcome == "OUTCOME_ABORTED"
        assert 0 < tokens < 2000
        assert error_from_proto(last.finished.error).reason is Reason.INVALID_API_KEY
