"""Conversations like ones before them: what vLLM made of the rest is used again, and the engine is given the same."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from inference.engine import EngineRequest, InputKind
from inference.vllm_engine import VllmEngine
from inference.vllm_payload import EnginePayload
from inference.vllm_render import VllmRenderer
from inference.vllm_repeats import Repeats
from naru.errors import NaruError
from tests.support.heard import complete, openai_request

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="session"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

PARAMETERS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "no limit": {"stream": True, "temperature": 0.2},
    "at least": {"min_tokens": 9},
    "limit": {"max_tokens": 4},
    "stream": {"max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}},
    "sampling": {"max_completion_tokens": 4, "temperature": 0.5, "top_p": 0.9, "top_k": 3, "presence_penalty": 1},
    "choices": {"max_tokens": 4, "n": 3, "seed": 7},
    "stop": {"max_tokens": 4, "stop": ["\n", "."], "stop_token_ids": [2], "min_tokens": 1},
    "logprobs": {"max_tokens": 4, "logprobs": True, "top_logprobs": 3},
    "bias": {"max_tokens": 4, "logit_bias": {"50": -100}, "bad_words": ["ferry"]},
    "salt": {"max_tokens": 4, "cache_salt": "pepper"},
    "template": {"max_tokens": 4, "add_generation_prompt": False, "reasoning_effort": "low"},
    "whose": {"max_tokens": 4, "user": "Ada", "metadata": {"trip": "7"}},
}


def asking(*texts: str, cap: int | None = None, salt: str = "", **parameters: Any) -> EngineRequest:
    roles = ["system", "user", "assistant", "user"]
    messages = [{"role": roles[i], "content": text} for i, text in enumerate(texts)]
    request = openai_request(InputKind.OPENAI_CHAT, messages=messages, **parameters)
    return msgspec.structs.replace(request, output_token_cap=cap, cache_salt=salt)


async def given(engine: VllmEngine, request: EngineRequest, *, anew: bool = False) -> object:
    """What the engine is given of it; `anew`: by a renderer that has seen nothing before."""
    renderer = engine._renderer
    assert isinstance(renderer, VllmRenderer)
    known = renderer._repeats
    if anew:
        renderer._repeats = None
    try:
        prepared = await engine.prepare(request)
    finally:
        renderer._repeats = known
    payload = prepared.payload
    assert isinstance(payload, EnginePayload)
    cores = [msgspec.structs.asdict(one.core_request) | {"arrival_time": 0} for one in payload.choices]
    prompts = [dict(one.prompt) | {"arrival_time": 0} for one in payload.choices]
    params = [one.params for one in payload.choices]
    return (
        prepared.prompt_tokens,
        prepared.choices,
        payload.options,
        payload.priority,
        payload.readings,
        cores,
        prompts,
        str(params),
    )


def repeats(engine: VllmEngine) -> Repeats:
    """What the engine's renderer remembers."""
    renderer = engine._renderer
    assert isinstance(renderer, VllmRenderer)
    assert renderer._repeats is not None
    return renderer._repeats


def kinds(engine: VllmEngine) -> int:
    """How many are known."""
    return sum(known is not None for known in repeats(engine)._known.values())


@pytest.fixture(autouse=True)
def nothing_known(engine: VllmEngine) -> None:
    """The engine is everybody's: others may have asked alike."""
    repeats(engine)._known.clear()


async def teach(engine: VllmEngine, request: EngineRequest) -> None:
    """A kind is known once two requests were of it."""
    for _ in range(2):
        await engine.prepare(request)


@pytest.mark.parametrize("name", PARAMETERS)
async def test_what_repeats_is_prepared_as_if_it_did_not(engine: VllmEngine, name: str) -> None:
    parameters = PARAMETERS[name]
    await engine.prepare(asking("Be brief.", "Where do ferries land?", **parameters))
    assert kinds(engine) == 0, "once is no repetition"
    await engine.prepare(asking("Be brief.", "Where is the landing?", **parameters))
    assert kinds(engine) == 1
    for texts in [("Be brief.", "How deep is a river?"), ("", "a"), ("나루", "배는 언제 떠나요?", "곧", "고마워요 ⛴️")]:
        request = asking(*texts, salt="tenant", **parameters)
        assert await given(engine, request) == await given(engine, request, anew=True)
    assert kinds(engine) == 1


@pytest.mark.parametrize(
    "parameters",
    [
        {"max_tokens": 4, "response_format": {"type": "json_object"}},
        {"max_tokens": 4, "structured_outputs": {"regex": "a+"}},
        {"max_tokens": 4, "return_token_ids": True},
        {"max_tokens": 4, "echo": True, "add_generation_prompt": False, "continue_final_message": True},
        {"max_tokens": 4, "prompt_logprobs": 1},
        {"max_tokens": 4, "truncate_prompt_tokens": 6},
        {"max_tokens": 4, "documents": []} | {"tools": [{"type": "function", "function": {"name": "ask"}}]},
    ],
    ids=["JSON", "pattern", "token ids", "echo", "prompt's", "cut", "tools"],
)
async def test_what_depends_on_messages_is_always_vllms(engine: VllmEngine, parameters: dict[str, Any]) -> None:
    request = asking("Be brief.", "Where do", "ferries", **parameters)
    for _ in range(3):
        try:
            await engine.prepare(request)
        except NaruError:
            assert "tools" in parameters
    assert kinds(engine) == 0


async def test_values_that_are_only_equal_are_not_the_same(engine: VllmEngine) -> None:
    """`true` is no temperature, though Python says that it is 1."""
    await teach(engine, asking("", "a", max_tokens=4, temperature=1, frequency_penalty=0.25))
    with pytest.raises(NaruError, match="`temperature` must be a number"):
        await engine.prepare(asking("", "a", max_tokens=4, temperature=True, frequency_penalty=0.25))


async def test_a_longer_conversation_is_refused_as_ever(engine: VllmEngine) -> None:
    """It leaves no room for what the first of its kind had room for."""
    room = engine.models()[0].context_tokens
    short, long = asking("", "a", max_tokens=room - 60), asking("", "a " * 100, max_tokens=room - 60)
    await teach(engine, short)
    with pytest.raises(NaruError, match="maximum context length") as caught:
        await engine.prepare(long)
    with pytest.raises(NaruError) as anew:
        await given(engine, long, anew=True)
    assert caught.value.message == anew.value.message


async def test_room_that_a_cut_prompt_left_is_not_a_shorter_ones(engine: VllmEngine) -> None:
    """A prompt that may be cut gets less than was asked for where it is long, and only there."""
    room = engine.models()[0].context_tokens
    parameters = {"max_tokens": room - 60, "truncate_prompt_tokens": -1}
    await teach(engine, asking("", "a " * 100, **parameters))
    short = asking("", "a", **parameters)
    assert await given(engine, short) == await given(engine, short, anew=True)


@pytest.mark.parametrize("cap", [None, 5, 100_000])
async def test_an_answer_without_a_limit_has_the_room_that_its_prompt_leaves(
    engine: VllmEngine, cap: int | None
) -> None:
    await teach(engine, asking("", "a", cap=cap, top_p=0.875))
    for texts in [("", "a"), ("", "a " * 700), ("a " * 100, "b")]:
        request = asking(*texts, cap=cap, top_p=0.875)
        assert await given(engine, request) == await given(engine, request, anew=True)


@pytest.mark.parametrize("least", [0, 200], ids=["prompt", "prompt and what must come"])
async def test_a_prompt_without_room_is_refused_as_ever(engine: VllmEngine, least: int) -> None:
    room = engine.models()[0].context_tokens
    parameters = {"min_tokens": least} if least else {}
    await teach(engine, asking("", "a", **parameters))
    long = asking("", "7" * (room - 100), **parameters) if least else asking("", "7" * room)
    refused = []
    for anew in (False, True):
        with pytest.raises(NaruError) as caught:
            await given(engine, long, anew=anew)
        refused.append(caught.value.message)
    assert refused[0] == refused[1]


async def test_caps_of_operators_are_kept(engine: VllmEngine) -> None:
    """The same request is granted less the second time."""
    free, capped = asking("", "a", max_tokens=9), asking("", "a", max_tokens=9, cap=3)
    await teach(engine, free)
    heard = await complete(engine, capped)
    assert heard.ends[0].completion_tokens == 3


async def test_answers_that_run_beside_each_other_do_not_share_what_changes(engine: VllmEngine) -> None:
    requests = [asking("", text, max_tokens=6, temperature=0) for text in ("Count to three.", "Name a river.")]
    alone = [(await complete(engine, request)).text() for request in requests]
    assert alone == [(await complete(engine, request)).text() for request in requests]
    beside = await asyncio.gather(*(complete(engine, request) for request in requests))
    assert [heard.text() for heard in beside] == alone


async def test_nobodys_prompt_is_kept(engine: VllmEngine) -> None:
    await teach(engine, asking("", "Where do ferries land?", max_tokens=11))
    known = [one for one in repeats(engine)._known.values() if one is not None]
    assert known
    assert all(one.core_request.prompt_token_ids is None for one in known)


async def test_only_so_many_kinds_are_known(engine: VllmEngine) -> None:
    for seed in range(300):
        await engine.prepare(asking("", "a", max_tokens=4, seed=seed))
    assert len(repeats(engine)._known) == 256
