"""Several replicas of authsvc: what one is told the other knows, and either may die."""

from __future__ import annotations

import asyncio
import itertools
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from naru.testing import databases
from naru.testing.postgres_server import PostgresServer
from tests.support.authsvc_replicas import Replicated, replicated

# pytest finds fixtures by name in this module.
postgres = databases.postgres
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


async def test_a_revocation_through_one_replica_holds_at_all_edges(tmp_path: Path, postgres: PostgresServer) -> None:
    """Whichever replica a key is revoked through and whichever an edge listens to, it is refused within a second."""
    async with replicated(tmp_path, postgres.new_database()) as up:
        keys = [await up.new_key(through=number % 2) for number in range(8)]
        assert {await up.status(url, key) for url in up.urls for key in keys} == {200}
        late: list[float] = []
        for number, key in enumerate(keys):
            await up.revoke(key, through=number % 2)
            revoked = time.monotonic()
            late += await asyncio.gather(*(_seconds_until_refused(up, url, key, revoked) for url in up.urls))
        print(f"refused {max(late):.2f} s after the revocation at the latest")


async def test_a_replica_that_is_killed_costs_no_request(tmp_path: Path, postgres: PostgresServer) -> None:
    """Under load either replica is killed: keys that the edge knows and keys that it does not go on being answered."""
    async with replicated(tmp_path, postgres.new_database(), edges=1) as up:
        known = [await up.new_key() for _ in range(5)]
        fresh = [await up.new_key() for _ in range(200)]
        statuses: list[tuple[str, int]] = []

        over = asyncio.Event()

        async def ask(kind: str, key: str) -> None:
            statuses.append((kind, await up.status(up.urls[0], key)))
            await asyncio.sleep(0.005)

        async def ask_known() -> None:
            while not over.is_set():
                for key in known:
                    await ask("known", key)

        async def ask_fresh(left: list[str]) -> None:
            while left:
                await ask("fresh", left.pop())

        for key in known:
            await ask("known", key)
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(ask_known())
            for number, replica in enumerate(up.replicas):
                # Half of the new keys for each that dies: some are asked about before that, most while it is away.
                left = fresh[number::2]
                asking = [group.create_task(ask_fresh(left)) for _ in range(4)]
                while len(left) > 80:
                    await asyncio.sleep(0.001)
                assert left
                await replica.kill()
                await asyncio.wait(asking)
                await replica.start(up.http)
                # Connected to again before the other one goes: the edge asks them in turn.
                while not await replica.resolved(up.http):
                    await ask("fresh", await up.new_key(through=1 - number))
            over.set()
        assert {status for _, status in statuses} == {200}, statuses
        assert {kind for kind, _ in statuses} == {"known", "fresh"}
        key = await up.new_key(through=1)
        assert await up.status(up.urls[0], key) == 200
        await up.revoke(key, through=0)
        late = await _seconds_until_refused(up, up.urls[0], key, time.monotonic())
        print(f"refused {late:.2f} s after the revocation")


async def test_the_owner_gets_in_through_either_replica(tmp_path: Path, postgres: PostgresServer) -> None:
    """While strangers guess, an address from which one replica logged the owner in is the owner's for the other one too."""
    proxies = {"trusted_proxies": ("127.0.0.0/8",)}
    async with replicated(tmp_path, postgres.new_database(), edges=1, **proxies) as up:
        headers = {"Authorization": f"Bearer {up.key}"}
        owner = {"email": "ann@example.com", "password": "correct horse battery"}

        async def ask(path: str, body: dict[str, str], address: str = "192.0.2.1") -> tuple[int, Any]:
            sent = headers | {"X-Forwarded-For": address}
            async with up.http.post(f"{up.urls[0]}{path}", json=body, headers=sent) as answer:
                return answer.status, await answer.json()

        _, made = await ask("/api/users", {"email": owner["email"]})
        await ask(f"/api/users/{made['user']['user_id']}/password", {"password": owner["password"]})
        assert (await ask("/api/auth/login", owner))[0] == 200
        wrong, addresses, statuses = owner | {"password": "a wrong one"}, itertools.count(), {401}
        while statuses != {429}:
            strangers = [f"2001:db8:0:{next(addresses):x}::1" for _ in range(8)]
            answers = await asyncio.gather(*(ask("/api/auth/login", wrong, address) for address in strangers))
            statuses = {status for status, _ in answers}
        assert next(addresses) < 150, "each of two replicas lets 50 through"
        assert [(await ask("/api/auth/login", owner, "198.51.100.1"))[0] for _ in range(2)] == [429, 429]
        assert [(await ask("/api/auth/login", owner))[0] for _ in range(4)] == [200] * 4


async def test_replicas_that_begin_together_work_together(tmp_path: Path, postgres: PostgresServer) -> None:
    """One of them makes a signing key, and both take tokens of both; an API key is made once by a request to both."""
    async with replicated(tmp_path, postgres.new_database(), edges=2) as up:
        headers = {"Authorization": f"Bearer {up.key}"}
        made = (await _posted(up, "/api/users", {"email": "ann@example.com"}, headers))["user"]
        password = {"password": "correct horse battery"}
        await _posted(up, f"/api/users/{made['user_id']}/password", password, headers)
        login = password | {"email": "ann@example.com"}
        tokens = [(await _posted(up, "/api/auth/login", login, {}))["access_token"] for _ in range(4)]
        # Twice by each edge, which takes turns between the replicas.
        assert {await up.status(url, token) for url in up.urls for token in tokens} == {200}
        async with up.http.get(f"{up.urls[0]}/.well-known/jwks.json") as answer:
            assert len((await answer.json())["keys"]) == 1
        once = headers | {"Idempotency-Key": str(uuid4())}
        answers = await asyncio.gather(*(_posted(up, "/api/keys", {"description": "once"}, once) for _ in range(6)))
        assert len({answer["api_key"]["key_id"] for answer in answers}) == 1
        async with up.http.get(f"{up.urls[0]}/api/audit?action=api_key.create", headers=headers) as answer:
            assert len((await answer.json())["entries"]) == 1


async def _posted(up: Replicated, path: str, body: dict[str, str], headers: dict[str, str]) -> Any:
    async with up.http.post(f"{up.urls[0]}{path}", json=body, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def _seconds_until_refused(up: Replicated, url: str, key: str, since: float) -> float:
    # Promised is a second; a busy machine gets more, but less than the 9 after which an edge without invalidations asks anew.
    async with asyncio.timeout(8):
        while await up.status(url, key) != 401:
            await asyncio.sleep(0.005)
    return time.monotonic() - since
