"""Scores of a model that reads a query and a document at once, on a real vLLM engine, against what transformers makes of them.

The weights are random, and large enough that scores differ; the tokenizer is a real one.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import numpy
import pytest
import pytest_asyncio

from inference.engine import EngineRequest, InputKind
from inference.vllm_engine import VllmEngine
from naru.errors import NaruError, Reason
from tests.support.answering import MODEL
from tests.support.borrowed_engine import Borrowed
from tests.support.dangerous_pooling import RERANK, SCORE, asked, pooling_bodies
from tests.support.heard import Heard, begin, complete, openai_request
from tests.support.pooling_engine import minilm, pooling_engine
from tests.support.simulated_edge import simulated_edge

QUERY = "How do I cross the river?"
DOCUMENTS = ["Take the ferry.", "나루는 강을 건너는 곳이다.", "Bread " * 60, "?", "A bridge, or a boat at the landing."]
CONTEXT = 128

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # vLLM leaves one to the garbage collector when it shuts down.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]

Score = Callable[[str, str], float]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with one label, and MiniLM's tokenizer."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    path = tmp_path_factory.mktemp("cross-encoder")
    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=CONTEXT,
        num_labels=1,
        initializer_range=0.4,
    )
    BertForSequenceClassification(config).save_pretrained(path)
    AutoTokenizer.from_pretrained(str(minilm())).save_pretrained(path)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    """The engine, started once."""
    async with pooling_engine(folder, MODEL) as started:
        yield started


@pytest.fixture(scope="module")
def score(folder: Path) -> Score:
    """Makes transformers' score of a pair: the sigmoid of the one label."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()

    def of(query: str, document: str) -> float:
        encoded = tokenizer(query, document, return_tensors="pt")
        assert set(encoded["token_type_ids"][0].tolist()) == {0, 1}
        with torch.no_grad():
            return float(torch.sigmoid(model(**encoded).logits[0, 0]))

    return of


def scores(**body: object) -> EngineRequest:
    return openai_request(InputKind.SCORE, **body)


def told_of(heard: Heard) -> list[float]:
    """The scores, in the order of the pairs."""
    ordered = sorted(heard.ends, key=lambda output: output.choice_index)
    made = [output.score for output in ordered]
    assert all(score is not None for score in made)
    return [score or 0.0 for score in made]


async def test_scores_are_those_of_transformers(engine: VllmEngine, score: Score) -> None:
    """Each to 1e-3, of one query with all documents and of pairs; the tokens of every pair are counted."""
    expected = [score(QUERY, document) for document in DOCUMENTS]
    assert numpy.ptp(expected) > 0.2
    before = engine.counters()
    request = scores(queries=QUERY, documents=DOCUMENTS)
    prepared = await engine.prepare(request)
    assert prepared.choices == len(DOCUMENTS)
    assert told_of(await complete(engine, request)) == pytest.approx(expected, abs=1e-3)
    after = engine.counters()
    assert (after.requests - before.requests, after.prompt_tokens - before.prompt_tokens) == (1, prepared.prompt_tokens)
    queries = [QUERY, "Bread?", "A", "B", "C"]
    expected = [score(*pair) for pair in zip(queries, DOCUMENTS, strict=True)]
    heard = await complete(engine, scores(queries=queries, documents=DOCUMENTS))
    assert told_of(heard) == pytest.approx(expected, abs=1e-3)
    # Which of the two is the query matters to such a model.
    assert abs(score("Bread?", QUERY) - score(QUERY, "Bread?")) > 1e-2


async def test_without_the_sigmoid(engine: VllmEngine, score: Score) -> None:
    """`use_activation` is vLLM's: without it the score is the label's raw value."""
    (raw,) = told_of(await complete(engine, scores(queries=QUERY, documents=DOCUMENTS[:1], use_activation=False)))
    assert 1 / (1 + numpy.exp(-raw)) == pytest.approx(score(QUERY, DOCUMENTS[0]), abs=1e-3)


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (openai_request(InputKind.OPENAI_EMBEDDINGS, input="A"), Reason.NOT_SUPPORTED, "model"),
        (openai_request(InputKind.OPENAI_COMPLETION, prompt="A"), Reason.NOT_SUPPORTED, "model"),
        (scores(queries="A", documents=["river " * CONTEXT]), Reason.CONTEXT_LENGTH_EXCEEDED, "documents"),
        (
            scores(queries="A", documents=["B"], truncate_prompt_tokens=-5),
            Reason.INVALID_ARGUMENT,
            "truncate_prompt_tokens",
        ),
        (scores(queries="A", documents=["B"], dimensions=3), Reason.NOT_SUPPORTED, "dimensions"),
        (scores(queries="A", documents=[]), Reason.INVALID_ARGUMENT, "documents"),
    ],
)
async def test_what_cannot_be_done_names_its_field(
    engine: VllmEngine, request_: EngineRequest, reason: Reason, field: str
) -> None:
    """Refused before anything is submitted."""
    with pytest.raises(NaruError) as refused:
        await engine.prepare(request_)
    assert (refused.value.reason, refused.value.metadata["field"]) == (reason, field)


async def test_what_is_too_long_can_be_cut(engine: VllmEngine) -> None:
    """By `truncate_prompt_tokens`, from either side, query and all."""
    for side in ("left", "right"):
        request = scores(queries=QUERY, documents=["river " * CONTEXT], truncate_prompt_tokens=-1, truncation_side=side)
        assert (await engine.prepare(request)).prompt_tokens == CONTEXT
        assert len(told_of(await complete(engine, request))) == 1


async def test_cancelling_ends_every_pair(engine: VllmEngine) -> None:
    """Nothing is left in the engine, and it goes on working."""
    heard, handle = await begin(engine, scores(queries=QUERY, documents=[DOCUMENTS[2]] * 500))
    await handle.cancel()
    await heard.until_ends(500)
    assert "abort" in {output.finish_reason for output in heard.ends}
    assert engine.unfinished_requests() == 0
    assert len(told_of(await complete(engine, scores(queries=QUERY, documents=DOCUMENTS)))) == len(DOCUMENTS)


async def test_nothing_that_is_sent_ends_the_engine(engine: VllmEngine, score: Score, tmp_path: Path) -> None:
    """Each is a 400 that says what is wrong, or an answer; and after every few the same engine gives the same score."""
    plain = score(QUERY, DOCUMENTS[0])
    statuses: list[int] = []
    problems: list[str] = []
    async with (
        simulated_edge(tmp_path, Borrowed(engine)) as service,  # type: ignore[arg-type] # the engine's, all but two
        httpx.AsyncClient(
            base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}, timeout=120
        ) as client,
    ):
        sent = [(path, body) for path, body in pooling_bodies() if path in (SCORE, RERANK)]
        for first in range(0, len(sent), 6):
            bodies = [(path, json.dumps({"model": MODEL} | body).encode()) for path, body in sent[first : first + 6]]
            for told, problem in await asyncio.gather(*(asked(client, *one) for one in bodies)):
                statuses.append(told)
                problems += [problem] * bool(problem)
            (now,) = told_of(await complete(engine, scores(queries=QUERY, documents=DOCUMENTS[:1])))
            assert now == pytest.approx(plain, abs=1e-3), bodies
    assert engine.unfinished_requests() == 0
    assert problems == []
    assert set(statuses) == {200, 400}


async def test_rerank_and_score_over_http(engine: VllmEngine, score: Score, tmp_path: Path) -> None:
    """Through a real edge: the best document first, the same figures by both endpoints, usage of all pairs."""
    expected = [score(QUERY, document) for document in DOCUMENTS]
    tokens = (await engine.prepare(scores(queries=QUERY, documents=DOCUMENTS))).prompt_tokens
    async with (
        simulated_edge(tmp_path, Borrowed(engine)) as service,  # type: ignore[arg-type] # the engine's, all but two
        httpx.AsyncClient(base_url=service.url, headers={"Authorization": f"Bearer {service.key}"}) as client,
    ):
        ranking = (
            await client.post("/v1/rerank", json={"model": MODEL, "query": QUERY, "documents": DOCUMENTS})
        ).json()
        scored = (await client.post("/v1/score", json={"model": MODEL, "text_1": QUERY, "text_2": DOCUMENTS})).json()
        refused = await client.post("/v1/embeddings", json={"model": MODEL, "input": "A"})
    order = [result["index"] for result in ranking["results"]]
    assert order == sorted(range(len(DOCUMENTS)), key=lambda number: -expected[number])
    by_index = {result["index"]: result["relevance_score"] for result in ranking["results"]}
    assert [by_index[number] for number in range(len(DOCUMENTS))] == pytest.approx(expected, abs=1e-3)
    assert [one["score"] for one in scored["data"]] == pytest.approx(expected, abs=1e-3)
    assert ranking["usage"]["prompt_tokens"] == scored["usage"]["prompt_tokens"] == tokens
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
