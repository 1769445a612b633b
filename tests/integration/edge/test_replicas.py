"""/api/replicas: adapters and control of replicas, from HTTP to the engine, and what clients notice of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.adapters import write_adapter
from tests.support.edge_and_replicas import Installation, edge_and_replicas
from tests.support.generation_bench import eventually


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Installation]:
    """A replica of `small`, with an alias and an adapter on the disk."""
    write_adapter(tmp_path / "adapters/sql")
    async with edge_and_replicas(tmp_path, {}, model_aliases=("gpt-4o=small", "small:taken=small")) as installation:
        yield installation


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Installation]:
    """Two replicas of `small`, slow enough to be caught at it."""
    write_adapter(tmp_path / "adapters/sql")
    slow = {"simulated_tokens_per_second": 20.0}
    async with edge_and_replicas(tmp_path, slow, slow) as installation:
        yield installation


def at(installation: Installation, path: str = "", *, number: int = 0) -> str:
    return f"/api/replicas/{installation.addresses[number]}{path}"


async def listed(installation: Installation, model: str, *, there: bool) -> None:
    """Waits until clients see a model, or see it no more."""
    async with asyncio.timeout(20):
        while (model in await installation.models()) is not there:
            await asyncio.sleep(0.01)


async def busy(installation: Installation) -> None:
    """Waits until the replica has a request."""
    async with asyncio.timeout(20):
        while (await installation.ask("GET", at(installation)))[1]["requests"] != 1:
            await asyncio.sleep(0.01)


async def load(installation: Installation, *, number: int = 0) -> None:
    status, adapter = await installation.ask(
        "POST", at(installation, "/adapters", number=number), {"name": "sql", "path": "sql"}
    )
    assert (status, adapter["model"], adapter["rank"]) == (200, "small:sql", 4)
    await listed(installation, "small:sql", there=True)


async def test_an_adapter_is_loaded_asked_for_billed_and_unloaded(one: Installation) -> None:
    """It is a model of its own to clients, with its parent; its answer is another one; usage names it and its base."""
    assert (await one.chat("small:sql"))[0] == 404
    await load(one)
    models = await one.models()
    assert (models["small:sql"]["parent"], models["small:sql"]["root"]) == ("small", "sql")
    assert models["small"]["parent"] is None
    status, adapted = await one.chat("small:sql")
    _, plain = await one.chat("small")
    assert (status, adapted["model"]) == (200, "small:sql")
    assert adapted["choices"][0]["message"]["content"] != plain["choices"][0]["message"]["content"]
    await eventually(lambda: len(one.accounting.events) == 2)
    assert {event.served_model for event in one.accounting.events} == {"small", "small:sql"}
    assert {item.served_model for item in one.accounting.reservations} == {"small", "small:sql"}
    status, answer = await one.ask("GET", at(one, "/adapters"))
    (shown,) = answer["adapters"]
    assert (shown["name"], shown["path"], shown["configured"], shown["requests"]) == ("sql", "sql", False, 0)
    assert (await one.ask("DELETE", at(one, "/adapters/sql")))[0] == 200
    await listed(one, "small:sql", there=False)
    status, refused = await one.chat("small:sql")
    assert (status, refused["error"]["code"]) == (404, "model_not_found")
    assert (await one.ask("DELETE", at(one, "/adapters/sql")))[0] == 404


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"name": "sql", "path": "../adapters/sql"}, 400, "path"),
        ({"name": "sql", "path": "/etc"}, 400, "path"),
        ({"name": "sql", "path": "nothing"}, 400, "path"),
        ({"name": "sql"}, 400, "path"),
        ({"path": "sql"}, 400, "name"),
        ({"name": "a/b", "path": "sql"}, 400, "name"),
        ({"name": "sql", "path": "sql", "surprise": 1}, 400, "surprise"),
        ({"name": "small", "path": "sql"}, 409, None),
        ({"name": "gpt-4o", "path": "sql"}, 409, None),
        ({"name": "taken", "path": "sql"}, 409, None),
    ],
)
async def test_what_cannot_be_loaded_is_said(
    one: Installation, body: dict[str, Any], status: int, field: str | None
) -> None:
    """Names of models and aliases are taken; the field that is wrong is named as the caller wrote it."""
    code, answer = await one.ask("POST", at(one, "/adapters"), body)
    assert (code, answer["error"]["param"]) == (status, field)


async def test_only_admins_and_only_known_replicas(one: Installation) -> None:
    """A user's key is refused, and so is a replica that is none."""
    for method, path in (("GET", "/api/replicas"), ("POST", at(one, "/pause")), ("GET", at(one, "/adapters"))):
        assert (await one.ask(method, path, key=one.user))[0] == 403
    assert (await one.ask("POST", "/api/replicas/127.0.0.1:1/pause"))[0] == 404


async def test_an_adapter_is_asked_for_only_where_it_is(two: Installation) -> None:
    """With an adapter on the second replica, its requests all go there, whichever is less busy."""
    await load(two, number=1)
    busy = [asyncio.create_task(two.chat("small:sql")) for _ in range(6)]
    for status, _ in await asyncio.gather(*busy):
        assert status == 200
    await eventually(lambda: len(two.accounting.events) == 6)
    assert {event.replica for event in two.accounting.events} == {"replica-1"}


@pytest.mark.parametrize(("what", "state"), [("pause", "paused"), ("drain", "draining")])
async def test_requests_go_to_the_replica_that_takes_them(two: Installation, what: str, state: str) -> None:
    """One of two replicas takes none: all are served by the other one, and by both after resume."""
    status, replica = await two.ask("POST", at(two, f"/{what}"))
    assert (status, replica["state"], replica["address"]) == (200, state, two.addresses[0])
    assert [status for status, _ in await asyncio.gather(*(two.chat("small") for _ in range(4)))] == [200] * 4
    await eventually(lambda: len(two.accounting.events) == 4)
    assert {event.replica for event in two.accounting.events} == {"replica-1"}
    assert (await two.ask("POST", at(two, "/resume")))[1]["state"] == "serving"

    async def both() -> bool:
        await asyncio.gather(*(two.chat("small", max_tokens=2) for _ in range(4)))
        return {event.replica for event in two.accounting.events} == {"replica-0", "replica-1"}

    async with asyncio.timeout(20):
        while not await both():
            pass
    _, answer = await two.ask("GET", "/api/replicas")
    assert [(one["address"], one["state"], one["name"], one["models"]) for one in answer["replicas"]] == [
        (address, "serving", f"replica-{number}", ["small"]) for number, address in enumerate(two.addresses)
    ]


async def test_a_paused_only_replica_is_503_and_holds_up_what_runs(one: Installation) -> None:
    """New requests hear when to try again; one that ran is held up, and ends whole after resume."""
    running = asyncio.create_task(one.chat("small", max_tokens=60, ignore_eos=True))
    await busy(one)
    assert (await one.ask("POST", at(one, "/pause")))[1] == {
        "state": "paused",
        "name": "replica-0",
        "requests": 1,
        "models": ["small"],
        "address": one.addresses[0],
    }
    headers = {"Authorization": f"Bearer {one.user}"}
    body = {"model": "small", "messages": [{"role": "user", "content": "Hello."}]}
    async with one.http.post(f"{one.url}/v1/chat/completions", json=body, headers=headers) as answer:
        assert answer.status == 503
        assert int(answer.headers["retry-after"]) >= 1
    # Its answer would have taken a bit more than a second.
    done, _ = await asyncio.wait([running], timeout=1.5)
    assert not done
    await one.ask("POST", at(one, "/resume"))
    status, answered = await running
    assert (status, answered["usage"]["completion_tokens"]) == (200, 60)
    assert (await one.chat("small"))[0] == 200


async def test_a_draining_replica_finishes_what_it_has(one: Installation) -> None:
    """The request that runs ends whole; no other one is taken; sleep comes after that, and wake."""
    running = asyncio.create_task(one.chat("small", max_tokens=100, ignore_eos=True))
    await busy(one)
    status, refused = await one.ask("POST", at(one, "/sleep"))
    assert (status, refused["error"]["code"]) == (400, "failed_precondition")
    assert (await one.ask("POST", at(one, "/drain")))[1]["requests"] == 1
    status, answered = await running
    assert (status, answered["usage"]["completion_tokens"]) == (200, 100)
    assert (await one.chat("small"))[0] == 503
    assert (await one.ask("POST", at(one, "/reset-prefix-cache")))[0] == 200
    assert (await one.ask("POST", at(one, "/sleep")))[1]["state"] == "sleeping"
    assert (await one.ask("POST", at(one, "/resume")))[0] == 400
    assert (await one.ask("POST", at(one, "/wake")))[1]["state"] == "serving"
    async with asyncio.timeout(20):
        while (await one.chat("small"))[0] != 200:
            await asyncio.sleep(0.02)
