"""`make up EMBEDDINGS=1` as a whole: a second, real engine beside the one that generates, which is simulated here."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy
import openai
import pytest

from inference.embedding_model import make_ready
from naru.api.accounting.v1 import usage_event_pb2
from tests.support import accounts
from tests.support.platform import MODEL as CHAT_MODEL
from tests.support.platform import ROOT, Platform, platform, until

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(400)]
MODEL = "all-minilm-l6-v2"
FIRST_OUTPUTS = "naru_inference_first_output_seconds_count"
FIGURES = ("requests", "prompt_tokens", "cached_prompt_tokens", "completion_tokens")
TEXTS = ["How do I cross the river?", "Take the ferry at the landing.", "Bread is baked at dawn."]


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation with both, and a price for embeddings."""
    folder = ROOT / ".naru/models" / MODEL
    make_ready(folder, lambda line: print(line, file=sys.stderr))
    state: Path = tmp_path_factory.mktemp("naru") / "state"
    environ = {"NARU_INFERENCE_ENGINE": "simulated", "NARU_UP_EMBEDDINGS": str(folder)}
    with platform(state, environ) as running:
        accounts.sell(running, model=MODEL)
        yield running


def counted(naru: Platform) -> dict[str, int]:
    """What the engine of the embedding model has counted."""
    return {
        name: round(naru.metric("up_embeddings", f'naru_inference_engine_counted{{figure="{name}"}}'))
        for name in FIGURES
    }


def post(naru: Platform, key: str, path: str, **body: Any) -> httpx.Response:
    """The answer to a request that the SDK does not know."""
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{naru.url}/v1/{path}", headers=headers, json={"model": MODEL, **body}, timeout=60)


def hang_up(naru: Platform, key: str) -> None:
    """Goes away while the engine works on 400 long texts; returns when it is idle again."""
    headers = {"Authorization": f"Bearer {key}"}
    body = json.dumps({"model": MODEL, "input": ["A long text. " * 40] * 400})
    connection = http.client.HTTPConnection(naru.url.removeprefix("http://"), timeout=60)
    begun = naru.metric("up_embeddings", FIRST_OUTPUTS)
    connection.request("POST", "/v1/embeddings", body, headers)
    until(lambda: naru.metric("up_embeddings", FIRST_OUTPUTS) > begun, 60, "the engine to work")
    connection.close()
    until(lambda: naru.metric("up_embeddings", "naru_inference_generations") == 0, 30, "an idle engine")


def test_both_models_are_listed_and_each_does_its_own(naru: Platform) -> None:
    """The curl line of `naru up` names the one that generates; what a model cannot do is a 400 that names `model`."""
    client = naru.client()
    assert [model.id for model in client.models.list()] == [MODEL, CHAT_MODEL]
    assert f'"model": "{CHAT_MODEL}"' in naru.output.read_text()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "Hi"}])
    assert (caught.value.param, caught.value.code) == ("model", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=CHAT_MODEL, input="Hi")
    assert caught.value.param == "model"
    assert client.chat.completions.create(model=CHAT_MODEL, messages=[{"role": "user", "content": "Hi"}]).choices


def test_what_is_too_much_is_a_400(naru: Platform) -> None:
    """A text longer than the context, and a vector shorter than the model's, by the SDK's typed exception."""
    for fields, param in (({"input": "river " * 300}, "input"), ({"input": "a", "dimensions": 64}, "dimensions")):
        with pytest.raises(openai.BadRequestError) as caught:
            naru.client().embeddings.create(model=MODEL, **fields)  # type: ignore[arg-type] # as named above
        assert caught.value.param == param


def test_the_ledger_is_what_the_engine_counted(naru: Platform) -> None:
    """One event per request, whatever its form and however many its inputs; also of one that hung up."""
    key = naru.new_key(description="embeddings", tier="unlimited")
    client, before = naru.client(key), counted(naru)
    floats = client.embeddings.create(model=MODEL, input=TEXTS, encoding_format="float")
    packed = client.embeddings.create(model=MODEL, input=TEXTS)
    vectors = numpy.array([one.embedding for one in floats.data])
    assert numpy.allclose(vectors, [one.embedding for one in packed.data], atol=1e-6)
    assert numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    ids = client.embeddings.create(model=MODEL, input=[[101, 5900, 102], [101, 7852, 102]])
    ranking = post(naru, key, "rerank", query=TEXTS[0], documents=TEXTS[1:], top_n=1).json()
    assert [result["index"] for result in ranking["results"]] == [0]
    scores = post(naru, key, "score", text_1=TEXTS[0], text_2=TEXTS[1:]).json()
    assert [one["score"] for one in scores["data"]] == pytest.approx(list(vectors[1:] @ vectors[0]), abs=1e-4)
    assert scores["data"][0]["score"] == pytest.approx(ranking["results"][0]["relevance_score"], abs=1e-6)
    hang_up(naru, key)
    row, told = accounts.used(naru, key, 60), [floats, packed, ids]
    engine = {name: value - before[name] for name, value in counted(naru).items()}
    assert engine == {
        "requests": row.requests,
        "prompt_tokens": row.usage.prompt_tokens,
        "cached_prompt_tokens": row.usage.cached_prompt_tokens,
        "completion_tokens": 0,
    }
    events = accounts.events(naru, key)
    assert row.requests == len(events) == 6
    aborted = [event for event in events if event.outcome == usage_event_pb2.OUTCOME_ABORTED]
    assert len(aborted) == 1
    billed = sum(event.usage.prompt_tokens for event in events) - aborted[0].usage.prompt_tokens
    shown = [answer.usage.prompt_tokens for answer in told]
    assert billed == sum(shown) + ranking["usage"]["prompt_tokens"] + scores["usage"]["prompt_tokens"]
    assert ids.usage.prompt_tokens == 6
    assert row.cost == accounts.cost(row.requests, row.usage.prompt_tokens, 0, row.usage.cached_prompt_tokens)
    assert {event.endpoint for event in events} == {"/v1/embeddings", "/v1/rerank", "/v1/score"}
    assert accounts.findings(naru) == []
