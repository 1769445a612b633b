"""/tokenize, /detokenize and Anthropic's count_tokens over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anthropic
import pytest

from naru.errors import NaruError, Reason, unavailable
from naru.identity import Scopes
from tests.support.edge_harness import KEY, PRINCIPAL, Harness, edge_with_peers, until
from tests.support.fake_accounting import refuse
from tests.support.fake_inference import MODEL

TEXT = {"model": MODEL, "prompt": "Hello there"}
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello there"}]}


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Harness]:
    async with edge_with_peers(tmp_path, replicas=2, model_aliases=("other=test-model",)) as harness:
        yield harness


def asked(edge: Harness) -> list[Any]:
    return [request for replica in edge.replicas for request in replica.tokenized]


async def test_vllms_shape(edge: Harness) -> None:
    """Ids, their count, the model's context, and texts when asked for; and the text again."""
    async with edge.post("/tokenize", TEXT) as answer:
        assert answer.status == 200
        assert await answer.json() == {"count": 2, "max_model_len": 2048, "tokens": [0, 1], "token_strs": None}
    async with edge.post("/tokenize", CHAT | {"return_token_strs": True, "model": "other"}) as answer:
        assert (await answer.json())["token_strs"] == ["Hello", "there"]
    async with edge.post("/detokenize", {"model": MODEL, "tokens": [1, 0]}) as answer:
        assert await answer.json() == {"prompt": "1 0"}
    first, second = (request for request in asked(edge) if hasattr(request, "json"))
    assert json.loads(first.json) == TEXT
    assert second.model == MODEL


async def test_only_the_request_counts(edge: Harness) -> None:
    """No prompt tokens are reserved, what is reserved is given back, and the request is in the log."""
    async with edge.post("/tokenize", TEXT) as answer:
        assert answer.status == 200
    await until(lambda: edge.accounting.released and edge.accounting.records)
    (reservation,), (record,) = edge.accounting.reserved, edge.accounting.records
    assert (reservation.endpoint, reservation.input_tokens, reservation.output_tokens) == ("/tokenize", 0, 1)
    assert edge.accounting.released == [(reservation.event_id, 0)]
    assert (record.event_id, record.endpoint, record.status) == (reservation.event_id, "/tokenize", 200)
    assert edge.accounting.usage == []


async def test_a_limit_holds(edge: Harness) -> None:
    """A caller over the limit on requests is refused, and nobody is asked."""
    error = NaruError(Reason.RATE_LIMIT_EXCEEDED, "Too many.", metadata={"kind": "requests"}, retry_after=3.0)
    edge.accounting.decide = lambda reservation: refuse(reservation, error)
    async with edge.post("/tokenize", TEXT) as answer:
        assert answer.status == 429
        assert answer.headers["Retry-After"] == "3"
    assert asked(edge) == []


async def test_scopes_hold(edge: Harness) -> None:
    """A key for another endpoint is 403, one for other models 404."""
    edge.auth.principals[KEY] = replace(PRINCIPAL, scopes=Scopes(endpoints=("/tokenize",), models=("none",)))
    async with edge.post("/detokenize", {"model": MODEL, "tokens": []}) as answer:
        assert answer.status == 403
    async with edge.post("/tokenize", TEXT) as answer:
        assert answer.status == 404


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {"prompt": "x"}, "model"),
        ("/detokenize", {"model": MODEL}, "tokens"),
        ("/detokenize", {"model": MODEL, "tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"model": MODEL, "tokens": "x"}, "tokens"),
    ],
)
async def test_malformed_questions(edge: Harness, path: str, body: dict[str, Any], param: str) -> None:
    """The wrong field is named, and nothing is reserved."""
    async with edge.post(path, body) as answer:
        assert answer.status == 400
        assert (await answer.json())["error"]["param"] == param
    assert edge.accounting.reserved == []


async def test_a_replica_that_is_away_is_not_the_end(edge: Harness) -> None:
    """Another one is asked; what the model's tokenizer refuses is not asked twice."""
    edge.replicas[0].tokenizing = unavailable("inference")
    async with edge.post("/tokenize", TEXT) as answer:
        assert answer.status == 200
    for replica in edge.replicas:
        replica.tokenizing = NaruError(Reason.INVALID_ARGUMENT, "No.", metadata={"field": "prompt"})
    before = len(asked(edge))
    async with edge.post("/tokenize", TEXT) as answer:
        assert answer.status == 400
    assert len(asked(edge)) == before + 1


async def test_anthropics_count(edge: Harness) -> None:
    """The SDK's count_tokens counts the prompt that the same message would have, tools included."""
    async with anthropic.AsyncAnthropic(base_url=edge.url, api_key=KEY, max_retries=0) as client:
        counted = await client.messages.count_tokens(
            model=MODEL,
            messages=[{"role": "user", "content": "Hello there"}],
            system="Be brief.",
            tools=[{"name": "weather", "input_schema": {"type": "object"}}],
        )
        assert counted.input_tokens == 2
        with pytest.raises(anthropic.BadRequestError) as caught:
            await client.messages.count_tokens(model=MODEL, messages=[])
    assert "at least one message" in str(caught.value)
    sent = json.loads(asked(edge)[0].json)
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    assert sent["tools"][0]["function"]["name"] == "weather"
    assert edge.accounting.reserved[0].endpoint == "/v1/messages/count_tokens"
