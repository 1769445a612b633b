"""Two replicas under load, one of which goes: no error for who has no token yet, a clean end for the rest, one bill each."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest

from naru import api_key
from naru.api.accounting.v1 import usage_event_pb2
from tests.support import accounts
from tests.support.platform import MODEL, Platform, platform, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

SLOTS, TOKENS = 6, 40
PROMPT = [{"role": "user", "content": "Tell me about ferries."}]


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """An installation on the simulated engine with room for a second replica, and short leases."""
    environ = {
        "NARU_INFERENCE_ENGINE": "simulated",
        "NARU_INFERENCE_SIMULATED_SLOTS": str(SLOTS),
        "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "5",
        "NARU_INFERENCE_SIMULATED_PREFILL_SECONDS": "0.5",
        "NARU_LEASE_SECONDS": "5",
    }
    with platform(tmp_path_factory.mktemp("naru") / "state", environ, two_replicas=True) as running:
        yield running


@dataclass(slots=True)
class Told:
    """What a client was told. `ending` is "complete", "error" for an error event, or "broken" for none of the two."""

    status: int = 0
    words: int = 0
    ending: str = "broken"


class Load:
    """Streams of one key.

    Args:
        naru: Where.
        key: Whose.
        session: How.
    """

    def __init__(self, naru: Platform, key: str, session: aiohttp.ClientSession) -> None:
        self._url = f"{naru.url}/v1/chat/completions"
        self._session = session
        self.told: list[Told] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self, requests: int, seconds: float) -> None:
        """Begins so many, evenly over so many seconds."""
        for _ in range(requests):
            told = Told()
            self.told.append(told)
            self._tasks.append(asyncio.create_task(self._stream(told)))
            await asyncio.sleep(seconds / requests)

    async def end(self) -> list[Told]:
        """Waits for all."""
        await asyncio.gather(*self._tasks)
        return self.told

    async def _stream(self, told: Told) -> None:
        body = {"model": MODEL, "messages": PROMPT, "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
        async with self._session.post(self._url, json=body) as response:
            told.status = response.status
            async for line in response.content:
                if line.startswith(b"data: [DONE]"):
                    told.ending = "error" if told.ending == "error" else "complete"
                elif line.startswith(b"data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        told.ending = "error"
                    else:
                        # A token of the simulated engine is a word.
                        told.words += sum(len((c["delta"].get("content") or "").split()) for c in event["choices"])


@asynccontextmanager
async def load(naru: Platform, key: str) -> AsyncIterator[Load]:
    """Clients that hold on."""
    headers, connector = {"Authorization": f"Bearer {key}"}, aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        yield Load(naru, key, session)


def attempts(naru: Platform, key: str) -> dict[str, list[usage_event_pb2.UsageRecord]]:
    """What the books say of a key's requests once all is settled, attempt by attempt."""
    until(lambda: naru.leases() == 0, 30, "every reservation to be settled")
    found: dict[str, list[usage_event_pb2.UsageRecord]] = {}
    for record in accounts.events(naru, key):
        found.setdefault(record.event_id, []).append(record)
    return found


def finished(naru: Platform) -> float:
    """Requests that the second replica has finished."""
    return naru.metric_at(naru.second_ports[1], "naru_inference_finished_total")


async def test_killing_a_replica_under_load(naru: Platform) -> None:
    """Kill -9: who had no token is answered by the other one, who had some hears an error, and each is billed once."""
    key = naru.new_key(description="kill replica", tier="unlimited")
    with naru.second_replica({}) as replica:
        async with load(naru, key) as clients:
            # More than both can run: when it dies, some of its requests generate, some wait.
            await clients.begin(4 * SLOTS, 0.3)
            async with asyncio.timeout(30):
                while sum(told.words > 0 for told in clients.told) < 2 * SLOTS:
                    await asyncio.sleep(0.01)
            os.kill(replica.pid, signal.SIGKILL)
            seen = [told.words for told in clients.told]
            answers = await clients.end()
    assert {told.status for told in answers} == {200}
    complete = [told for told in answers if told.ending == "complete"]
    broken = [told for told in answers if told.ending == "error"]
    assert len(complete) + len(broken) == len(answers)
    assert {told.words for told in complete} == {TOKENS}
    assert 1 <= len(broken) <= SLOTS
    assert all(1 <= told.words < TOKENS for told in broken)
    assert seen.count(0) > SLOTS
    books = attempts(naru, key)
    assert len(books) == len(answers)
    moved = [records for records in books.values() if max(record.attempt for record in records) == 1]
    assert moved
    assert naru.usage(api_key.parse(key).key_id)[0] == len(answers)
    before = naru.usage(api_key.parse(key).key_id)
    assert before[2] >= sum(told.words for told in answers)
    # What it had accepted it reports when it is back, and it gets requests again; what is billed stays as it is.
    again = naru.new_key(description="replica is back", tier="unlimited")
    with naru.second_replica({}):
        async with load(naru, again) as clients:
            await clients.begin(SLOTS, 0.1)
            assert {told.ending for told in await clients.end()} == {"complete"}
        assert finished(naru) == SLOTS / 2
        until(lambda: naru.metric_at(naru.second_ports[1], "naru_inference_journal_backlog") == 0, 30, "its reports")
        assert naru.usage(api_key.parse(key).key_id) == before


async def test_a_replica_that_stops_finishes_what_it_has(naru: Platform) -> None:
    """SIGTERM under load: what runs there ends there, what waits goes elsewhere, nobody hears of it."""
    key = naru.new_key(description="drain replica", tier="unlimited")
    with naru.second_replica({}) as replica:
        async with load(naru, key) as clients:
            await clients.begin(4 * SLOTS, 1.2)
            replica.send_signal(signal.SIGTERM)
            answers = await clients.end()
            assert await asyncio.to_thread(replica.wait, 30) == 0
    assert [(told.status, told.words, told.ending) for told in answers] == [(200, TOKENS, "complete")] * len(answers)
    books = attempts(naru, key)
    assert {record.attempt for records in books.values() for record in records} == {0}
    assert naru.usage(api_key.parse(key).key_id)[::2] == (len(answers), TOKENS * len(answers))


async def test_a_model_is_asked_of_a_replica_that_has_it(naru: Platform) -> None:
    """Two replicas with different models: each gets its own; without its replica a model is away, the other is not."""
    client = naru.client()

    def ask(model: str) -> str:
        return client.chat.completions.create(model=model, messages=PROMPT, max_tokens=2).model  # type: ignore[arg-type] # a plain dictionary

    with naru.second_replica({"NARU_INFERENCE_SERVED_MODEL_NAME": "other"}) as replica:
        until(lambda: {model.id for model in client.models.list()} == {MODEL, "other"}, 30, "both models to be listed")
        assert [ask("other") for _ in range(3)] == ["other"] * 3
        assert finished(naru) == 3
        assert [ask(MODEL) for _ in range(3)] == [MODEL] * 3
        assert finished(naru) == 3
        os.kill(replica.pid, signal.SIGKILL)
        until(lambda: [model.id for model in client.models.list()] == [MODEL], 30, "the edge to notice")
        assert ask(MODEL) == MODEL
        with pytest.raises(Exception, match="not available") as away:
            ask("other")
        assert getattr(away.value, "status_code", None) == 503
