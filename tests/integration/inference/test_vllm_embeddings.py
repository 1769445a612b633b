"""Embeddings and scores of all-MiniLM-L6-v2 on a real vLLM engine, against what transformers makes of the same texts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import pytest_asyncio

from inference.engine import ChoiceOutput, EngineRequest, InputKind
from inference.engine_count import EngineCount
from inference.vllm_compat import load
from inference.vllm_engine import VllmEngine
from inference.vllm_pooling import PoolingPayload
from inference.vllm_pooling_outputs import PoolingOutputs
from inference.vllm_submit import GenerateSubmitter, Submission
from naru.errors import NaruError, Reason
from naru.ids import new_request_id
from naru.logs import get_logger
from tests.support.heard import Heard, begin, complete, openai_request
from tests.support.pooling_engine import minilm, pooling_engine

TEXTS = [
    "The ferry crosses the river at dawn.",
    "나루는 강을 건너는 곳이다.",
    "A",
    "How do I bake bread? " * 20,
]
CONTEXT = 256

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    # vLLM leaves one to the garbage collector when it shuts down.
    pytest.mark.filterwarnings("ignore:Unclosed context:ResourceWarning"),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The model's folder, which is made ready when it is not."""
    return minilm()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path) -> AsyncIterator[VllmEngine]:
    """The engine, started once."""
    async with pooling_engine(folder, "minilm") as started:
        yield started


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    """Makes transformers' vectors: the mean over tokens, normalised."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder))

    def vectors(texts: list[str]) -> tuple[Any, int]:
        made, tokens = [], 0
        for text in texts:
            encoded = tokenizer(text, return_tensors="pt")
            with torch.no_grad():
                hidden = model(**encoded).last_hidden_state[0]
            made.append(torch.nn.functional.normalize(hidden.mean(dim=0), dim=0).numpy())
            tokens += int(encoded["input_ids"].shape[1])
        return numpy.stack(made), tokens

    return vectors


def embeddings(**body: Any) -> EngineRequest:
    return openai_request(InputKind.OPENAI_EMBEDDINGS, **body)


def scores(**body: Any) -> EngineRequest:
    return openai_request(InputKind.SCORE, **body)


def vectors_of(heard: Heard) -> Any:
    outputs: list[ChoiceOutput] = sorted(heard.ends, key=lambda output: output.choice_index)
    return numpy.stack([numpy.frombuffer(output.embedding, "<f4") for output in outputs])


async def test_vectors_and_tokens_are_those_of_transformers(engine: VllmEngine, reference: Any) -> None:
    """Each number to 1e-3, in the order of the inputs; the tokens are counted, by the engine itself too."""
    expected, tokens = reference(TEXTS)
    before = engine.counters()
    request = embeddings(input=TEXTS)
    assert (await engine.prepare(request)).prompt_tokens == tokens
    made = vectors_of(await complete(engine, request))
    assert made.shape == (len(TEXTS), 384)
    assert float(numpy.abs(made - expected).max()) < 1e-3
    after = engine.counters()
    assert (after.requests - before.requests, after.prompt_tokens - before.prompt_tokens) == (1, tokens)
    assert after.completion_tokens == before.completion_tokens


async def test_ids_are_taken_as_they_are(engine: VllmEngine, reference: Any) -> None:
    """The ids of a text, alone or in a list, have the text's vector."""
    expected, _ = reference(TEXTS[:1])
    tokens = await engine.tokenize(
        EngineRequest(kind=InputKind.TEXT, model="", stream=False, text=TEXTS[0]), strings=False
    )
    ids = list(tokens.token_ids)
    for given in (ids, [ids], TEXTS[0]):
        made = vectors_of(await complete(engine, embeddings(input=given)))
        assert float(numpy.abs(made - expected).max()) < 1e-3


@pytest.mark.parametrize("queries", [TEXTS[:1], TEXTS[:2], TEXTS[0]])
async def test_scores_are_cosines(engine: VllmEngine, reference: Any, queries: Any) -> None:
    """One query is compared with all documents, several one by one; each text is counted once."""
    documents = TEXTS[2:]
    texts = [queries] if isinstance(queries, str) else queries
    vectors, tokens = reference([*texts, *documents])
    request = scores(queries=queries, documents=documents)
    prepared = await engine.prepare(request)
    assert (prepared.choices, prepared.prompt_tokens) == (len(documents), tokens)
    heard = await complete(engine, request)
    for output in heard.ends:
        query = vectors[0 if len(texts) == 1 else output.choice_index]
        expected = float(query @ vectors[len(texts) + output.choice_index])
        assert output.score == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("kind", [InputKind.OPENAI_EMBEDDINGS, InputKind.SCORE])
async def test_cancelling_aborts_every_input(engine: VllmEngine, kind: InputKind) -> None:
    """Nothing is left in the engine, every choice hears of it, and the engine goes on working."""
    texts = [f"{TEXTS[3]} {number}" for number in range(300)]
    body = {"input": texts} if kind is InputKind.OPENAI_EMBEDDINGS else {"queries": TEXTS[0], "documents": texts}
    before = engine.counters()
    request = openai_request(kind, **body)
    tokens = (await engine.prepare(request)).prompt_tokens
    heard, handle = await begin(engine, request)
    await handle.cancel()
    await heard.until_ends(300)
    assert {output.finish_reason for output in heard.ends} >= {"abort"}
    assert engine.unfinished_requests() == 0
    assert engine.counters().prompt_tokens - before.prompt_tokens == tokens
    again = await complete(engine, embeddings(input="A"))
    assert vectors_of(again).shape == (1, 384)
    assert engine.healthy()


@pytest.mark.parametrize(
    ("request_", "reason", "field"),
    [
        (embeddings(input="river " * 300), Reason.CONTEXT_LENGTH_EXCEEDED, "input"),
        (embeddings(input=[[7] * (CONTEXT + 1)]), Reason.CONTEXT_LENGTH_EXCEEDED, "input"),
        (embeddings(input=[[30522]]), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input=[[2**70]]), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input=[]), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input=""), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input=["A", ""]), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input=["A", 1]), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input=["A"] * 2049), Reason.INVALID_ARGUMENT, "input"),
        (embeddings(input="A", dimensions=64), Reason.NOT_SUPPORTED, "dimensions"),
        (embeddings(input="A", truncate_prompt_tokens=-5), Reason.INVALID_ARGUMENT, "truncate_prompt_tokens"),
        (scores(queries=["A", "B"], documents=["C"]), Reason.INVALID_ARGUMENT, "queries"),
        (scores(queries="A", documents=[]), Reason.INVALID_ARGUMENT, "documents"),
        (scores(queries="A", documents=["river " * 300]), Reason.CONTEXT_LENGTH_EXCEEDED, "documents"),
        (
            openai_request(InputKind.OPENAI_CHAT, messages=[{"role": "user", "content": "Hi"}]),
            Reason.NOT_SUPPORTED,
            "model",
        ),
        (openai_request(InputKind.OPENAI_COMPLETION, prompt="Hi"), Reason.NOT_SUPPORTED, "model"),
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
    """As in vLLM's server, by `truncate_prompt_tokens`; an input as long as the context fits."""
    prepared = await engine.prepare(embeddings(input="river " * 300, truncate_prompt_tokens=-1))
    assert prepared.prompt_tokens == CONTEXT
    longest = [101, *[7] * (CONTEXT - 2), 102]
    assert vectors_of(await complete(engine, embeddings(input=longest))).shape == (1, 384)


async def test_without_the_hook_it_works_the_same(engine: VllmEngine) -> None:
    """By `encode()` per input: the same vectors, counts and aborts as by the hook."""
    submitter = GenerateSubmitter(load(), engine._engine, new_request_id)

    async def submit(texts: list[str]) -> tuple[Heard, Submission, EngineCount, int]:
        prepared = await engine.prepare(embeddings(input=texts))
        payload = prepared.payload
        assert isinstance(payload, PoolingPayload)
        heard, count = Heard(), EngineCount()
        outputs = PoolingOutputs(len(texts), (), heard, count.begin(len(texts), 1), get_logger("test"))
        return heard, await submitter.submit(payload, outputs), count, prepared.prompt_tokens

    hooked = vectors_of(await complete(engine, embeddings(input=TEXTS)))
    heard, _, count, tokens = await submit(TEXTS)
    await heard.until_ends(len(TEXTS))
    assert float(numpy.abs(vectors_of(heard) - hooked).max()) < 1e-5
    assert (count.ended.requests, count.ended.prompt_tokens) == (1, tokens)
    cancelled, submission, _, _ = await submit([f"{TEXTS[3]} {number}" for number in range(100)])
    await submission.cancel()
    await cancelled.until_ends(100)
    assert "abort" in {output.finish_reason for output in cancelled.ends}
    assert engine.unfinished_requests() == 0


async def test_many_inputs_do_not_hold_up_the_loop(engine: VllmEngine) -> None:
    """Reading, tokenising and checking 2,048 texts happens beside it."""
    worst, done = 0.0, asyncio.Event()

    async def beat() -> None:
        nonlocal worst
        while not done.is_set():
            # What this process did meanwhile, whichever thread kept the interpreter: time in which it did not run is no delay.
            began = time.process_time()
            await asyncio.sleep(0.005)
            worst = max(worst, time.process_time() - began)

    beating = asyncio.create_task(beat())
    prepared = await engine.prepare(embeddings(input=[f"text {number}" for number in range(2048)]))
    done.set()
    await beating
    assert prepared.choices == 2048
    assert worst < 0.5
