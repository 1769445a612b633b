"""What is seen of an upstream that goes away and comes back: a real edge before a model of its own and one of an upstream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from naru.testing.redis_server import free_ports
from tests.support.edge_and_replicas import Installation, edge_and_replicas
from tests.support.upstream import behind, fake_upstream, whole


async def health(installation: Installation) -> tuple[int, str, list[str]]:
    """Status of /health, what it says of the whole, and of each replica."""
    async with installation.http.get(installation.url + "/health") as answer:
        told = await answer.json()
        states = [told["dependencies"][f"inference {address}"] for address in installation.addresses]
        return answer.status, told["status"], states


async def becomes(installation: Installation, states: list[str]) -> tuple[int, str]:
    """Waits until /health says so of the replicas; its status and what it says of the whole."""
    async with asyncio.timeout(15):
        while True:
            status, whole_, now = await health(installation)
            if now == states:
                return status, whole_
            await asyncio.sleep(0.05)


async def states_of(installation: Installation, path: str = "") -> list[str]:
    """The states of replicas as an admin sees them."""
    _, answer = await installation.ask("GET", f"/api/replicas{path}")
    return [replica["state"] for replica in answer.get("replicas", [answer])]


def theirs(port: int, **fields: Any) -> dict[str, Any]:
    """A replica of `ours`, which looks often whether the upstream is there."""
    own = {"engine_args": "{}", "lora_roots": (), "upstream_probe_seconds": 0.1, "upstream_connect_retries": 0}
    return behind(f"http://127.0.0.1:{port}/v1", **own, **fields)


async def test_an_upstream_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    """Its model is a 503 that says so and stays listed, other models work, and health and replicas show it; then it is back."""
    (port,) = free_ports(1)
    async with fake_upstream(port) as upstream, edge_and_replicas(tmp_path, {}, theirs(port)) as naru:
        upstream.answer = whole({"content": "Hello"})
        assert await health(naru) == (200, "ok", ["ok", "ok"])
        assert (await naru.chat("ours"))[0] == 200
        assert await states_of(naru) == ["serving", "serving"]
        await asyncio.gather(upstream.leave(), becomes(naru, ["ok", "upstream away"]))
        # One service of several models is there.
        assert await health(naru) == (200, "degraded", ["ok", "upstream away"])
        status, refused = await naru.chat("ours")
        assert (status, refused["error"]["code"]) == (503, "service_unavailable")
        assert refused["error"]["message"] == "The model's upstream is not available right now."
        assert (await naru.chat("small"))[0] == 200
        assert sorted(await naru.models()) == ["ours", "small"]
        assert await states_of(naru) == ["serving", "upstream_away"]
        assert await states_of(naru, f"/{naru.addresses[1]}") == ["upstream_away"]
        await upstream.come(port)
        assert await becomes(naru, ["ok", "ok"]) == (200, "ok")
        assert (await naru.chat("ours"))[0] == 200
        assert await states_of(naru) == ["serving", "serving"]


async def test_with_nothing_else_the_edge_is_not_healthy(tmp_path: Path) -> None:
    """An edge all of whose models are an upstream's that is away says 503; the services themselves stay up."""
    (port,) = free_ports(1)
    async with fake_upstream(port) as upstream, edge_and_replicas(tmp_path, theirs(port)) as naru:
        await upstream.leave()
        assert await becomes(naru, ["upstream away"]) == (503, "degraded")
        async with naru.http.get(naru.url + "/readyz") as ready:
            assert ready.status == 200


async def test_another_replica_takes_over(tmp_path: Path) -> None:
    """Of two upstreams of one model, the one that is away is asked nothing."""
    one, two = free_ports(2)
    async with (
        fake_upstream(one) as away,
        fake_upstream(two) as there,
        edge_and_replicas(tmp_path, theirs(one), theirs(two)) as naru,
    ):
        there.answer = whole({"content": "Hello"})
        await away.leave()
        assert await becomes(naru, ["upstream away", "ok"]) == (200, "degraded")
        for _ in range(4):
            assert (await naru.chat("ours"))[0] == 200
        assert len(there.bodies) == 4
        assert {event.attempt for event in naru.accounting.reservations} == {0}
