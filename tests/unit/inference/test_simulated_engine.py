"""The simulated engine keeps the engine's promise."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from inference.admission import estimate
from inference.engine import ChoiceOutput, EngineCounters, EngineRequest, InputKind, Sampling
from inference.simulated_account import read_account
from inference.simulated_engine import SimulatedEngine, SimulatedEngineConfig
from naru.errors import NaruError, Reason
from naru.logs import get_logger
from tests.support.heard import Heard, begin, complete, openai_request

MESSAGES = [{"role": "user", "content": "Where does the ferry land?"}]
CHAT = InputKind.OPENAI_CHAT
COMPLETION = InputKind.OPENAI_COMPLETION


def chat(**body: Any) -> EngineRequest:
    return openai_request(CHAT, messages=MESSAGES, **body)


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[SimulatedEngine]:
    config = SimulatedEngineConfig(**({"tokens_per_second": 1000.0, "prefill_seconds": 0.0} | settings))
    engine = SimulatedEngine(config, get_logger("test"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown(1)


async def test_it_says_that_it_is_simulated() -> None:
    """The one model it serves is owned by "simulated"."""
    async with running(served_name="fast") as engine:
        (model,) = engine.models()
        assert (model.name, model.owned_by, model.context_tokens) == ("fast", "simulated", 8192)


async def test_the_same_request_gets_the_same_answer() -> None:
    """Text depends on prompt and seed only, streamed or not."""
    async with running() as engine:
        whole = await complete(engine, chat(max_tokens=8))
        streamed = await complete(engine, chat(max_tokens=8, stream=True))
        seeded = await complete(engine, chat(max_tokens=8, seed=1))
    assert whole.text() == streamed.text() != seeded.text()
    assert len(whole.outputs) == 1
    assert [output.completion_tokens for output in streamed.outputs] == list(range(1, 9))
    assert streamed.outputs[-1].finish_reason == "length"


async def test_an_answer_ends_by_itself() -> None:
    """Without a limit it stops after `answer_tokens`; `ignore_eos` goes on to the limit."""
    async with running(answer_tokens=5) as engine:
        stopped = await complete(engine, chat())
        limited = await complete(engine, chat(ignore_eos=True, max_tokens=7))
    assert [(output.finish_reason, output.completion_tokens) for output in stopped.outputs] == [("stop", 5)]
    assert [(output.finish_reason, output.completion_tokens) for output in limited.outputs] == [("length", 7)]


async def test_no_more_than_its_slots_are_worked_on() -> None:
    """The others wait in the order in which they came; one that is cancelled while it waits generated nothing."""
    async with running(slots=2) as engine:
        assert engine.slots() == 2
        begun = [await begin(engine, chat(max_tokens=30, stream=True)) for _ in range(5)]
        await begun[3][1].cancel()
        for heard, _ in begun:
            await heard.until_ends(1)
    counts = [heard.ends[0].completion_tokens for heard, _ in begun]
    assert counts == [30, 30, 30, 0, 30]
    assert engine.counters().completion_tokens == 120


async def test_no_more_at_once_than_slots() -> None:
    """While the first two run, the third has heard nothing."""
    async with running(slots=2) as engine:
        begun = [(await begin(engine, chat(max_tokens=20, stream=True)))[0] for _ in range(3)]
        await begun[0].until_outputs(10)
        assert (len(begun[1].outputs) > 0, len(begun[2].outputs)) == (True, 0)
        await begun[2].until_ends(1)


async def test_the_cap_wins_over_the_openai_request() -> None:
    """An output cap that is lower than what was asked for ends the answer."""
    async with running() as engine:
        heard = await complete(engine, openai_request(CHAT, cap=3, messages=MESSAGES, max_tokens=10))
    assert heard.outputs[-1].completion_tokens == 3
    assert heard.outputs[-1].finish_reason == "length"


async def test_every_prompt_gets_n_choices_in_order() -> None:
    """Choice number is prompt number times n plus the choice's own; prompt tokens count once per prompt."""
    async with running() as engine:
        prepared = await engine.prepare(
            openai_request(COMPLETION, prompt=["one two", "three four five"], n=2, max_tokens=2)
        )
        heard = Heard()
        await engine.submit(prepared, heard)
        await heard.until_ends(4)
        assert (prepared.choices, prepared.prompt_tokens) == (4, 5)
        assert sorted(output.choice_index for output in heard.outputs) == [0, 1, 2, 3]
        assert heard.text(0) != heard.text(1)
        counters = engine.counters()
    assert counters == EngineCounters(requests=1, prompt_tokens=5, completion_tokens=8)


async def test_only_what_has_ended_is_counted() -> None:
    """Not what runs still, nor what nobody waits for any more, whatever else the engine does."""
    async with running() as engine:
        runs, handle = await begin(engine, chat(n=2, max_tokens=5000, ignore_eos=True, stream=True))
        given_up, other = await begin(engine, chat(max_tokens=5000, ignore_eos=True, stream=True))
        await runs.until_outputs(4)
        await given_up.until_outputs(2)
        assert engine.counters() == EngineCounters()
        other.abandon()
        heard = len(given_up.outputs)
        await other.cancel()
        assert engine.counters() == EngineCounters()
        await handle.cancel()
        counted = engine.counters()
    assert (counted.requests, len(given_up.outputs)) == (1, heard)
    assert counted.completion_tokens == sum(output.completion_tokens for output in runs.outputs if output.finish_reason)


async def test_a_stop_text_is_cut_off_and_named() -> None:
    """The text ends before the stop text in every chunk; the tokens that made it are counted."""
    async with running() as engine:
        free = await complete(engine, chat(max_tokens=6))
        third = free.text().split()[2]
        heard = await complete(engine, chat(max_tokens=6, stop=["never", third], stream=True))
    last = heard.outputs[-1]
    assert heard.text() == free.text()[: free.text().index(third)]
    assert (last.finish_reason, last.stop_text, last.completion_tokens) == ("stop", third, 3)


async def test_cancel_ends_each_open_choice_once() -> None:
    """Every open choice hears "abort" with what it had generated; a second cancel does nothing."""
    async with running() as engine:
        heard, handle = await begin(engine, chat(n=2, max_tokens=5000, ignore_eos=True, stream=True))
        await heard.until_outputs(6)
        await handle.cancel()
        await handle.cancel()
        ends = [output for output in heard.outputs if output.finish_reason]
        assert {(end.choice_index, end.finish_reason) for end in ends} == {(0, "abort"), (1, "abort")}
        assert len(ends) == 2
        assert sum(end.completion_tokens for end in ends) == engine.counters().completion_tokens > 0
        assert engine.unfinished_requests() == 0


async def test_logprobs_and_token_ids_come_when_asked_for() -> None:
    """One entry per token, with as many candidates as were asked for."""
    async with running() as engine:
        heard = await complete(engine, chat(max_tokens=3, logprobs=True, top_logprobs=2, return_token_ids=True))
        plain = await complete(engine, chat(max_tokens=3))
    output = heard.outputs[-1]
    assert "".join(entry.chosen.token for entry in output.logprobs) == output.text
    assert [len(entry.top) for entry in output.logprobs] == [2, 2, 2]
    assert [entry.chosen.token_id for entry in output.logprobs] == list(output.token_ids)
    assert (plain.outputs[-1].logprobs, plain.outputs[-1].token_ids) == ((), ())


async def test_typed_inputs_are_taken_too() -> None:
    """A conversation, a text and token ids that are no OpenAI JSON generate like one."""
    sampling = Sampling(max_tokens=2)
    typed = EngineRequest(
        InputKind.CHAT, "simulated", stream=False, messages=(("user", MESSAGES[0]["content"]),), sampling=sampling
    )
    text = EngineRequest(InputKind.TEXT, "simulated", stream=False, text="one two", sampling=sampling)
    ids = EngineRequest(InputKind.TOKEN_IDS, "simulated", stream=False, token_ids=(1, 2), sampling=sampling)
    async with running() as engine:
        assert (await complete(engine, typed)).text() == (await complete(engine, chat(max_tokens=2))).text()
        assert (await engine.prepare(text)).prompt_tokens == (await engine.prepare(ids)).prompt_tokens == 2


@pytest.mark.parametrize(
    ("kind", "body", "field"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": ["hello"]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "pilot", "content": "x"}]}, "messages[0].role"),
        (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        (CHAT, {"messages": MESSAGES, "temperature": 9}, "temperature"),
        (CHAT, {"messages": MESSAGES, "temperature": "warm"}, "temperature"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": MESSAGES, "max_tokens": "8"}, "max_tokens"),
        (CHAT, {"messages": MESSAGES, "n": 129}, "n"),
        (CHAT, {"messages": MESSAGES, "n": True}, "n"),
        (CHAT, {"messages": MESSAGES, "stop": ["a", "b", "c", "d", "e"]}, "stop"),
        (CHAT, {"messages": MESSAGES, "logprobs": 2}, "logprobs"),
        (COMPLETION, {}, "prompt"),
        (COMPLETION, {"prompt": ""}, "prompt"),
        (COMPLETION, {"prompt": ["a", 1]}, "prompt"),
        (COMPLETION, {"prompt": ["a", [1]]}, "prompt"),
        (COMPLETION, {"prompt": ["a"] * 100, "n": 100}, "n"),
    ],
)
async def test_a_wrong_field_is_named(kind: InputKind, body: dict[str, Any], field: str) -> None:
    """What is missing, of the wrong type or out of range is an INVALID_ARGUMENT that names the field."""
    async with running() as engine:
        with pytest.raises(NaruError) as caught:
            await engine.prepare(openai_request(kind, **body))
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.metadata == {"field": field}


@pytest.mark.parametrize(
    "text", [b"", b"[1]", b"{", b'{"temperature": NaN}', b"\xff", b"[" * 100_000, b'{"a": "\\ud800"}']
)
async def test_a_body_that_is_no_json_object_is_refused(text: bytes) -> None:
    """Neither broken JSON nor another JSON value gets further."""
    async with running() as engine:
        with pytest.raises(NaruError) as caught:
            await engine.prepare(EngineRequest(CHAT, "simulated", stream=False, openai_json=text))
    assert caught.value.metadata == {"field": "body"}


async def test_a_prompt_beside_the_messages_is_passed_over() -> None:
    """A field of the other endpoint is neither an error of ours nor more choices."""
    async with running() as engine:
        for prompt in ([], ["a", "b"]):
            assert (await engine.prepare(chat(prompt=prompt, n=128))).choices == 128
        request = chat(prompt=["a", "b"], max_tokens=5)
        assert estimate(request).output_tokens == 5


async def test_content_other_than_text_is_not_supported() -> None:
    """An image is refused by name instead of being passed over."""
    part = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    async with running() as engine:
        with pytest.raises(NaruError) as caught:
            await engine.prepare(openai_request(CHAT, messages=[{"role": "user", "content": [part]}]))
    assert caught.value.reason is Reason.NOT_SUPPORTED
    assert caught.value.metadata == {"field": "messages[0].content[0].type"}


async def test_what_does_not_fit_in_the_context_is_refused() -> None:
    """A prompt that is too long, alone or with the output asked for, says how long it is."""
    async with running(context_tokens=20) as engine:
        with pytest.raises(NaruError) as prompt_too_long:
            await engine.prepare(openai_request(COMPLETION, prompt=[1] * 20))
        with pytest.raises(NaruError) as output_too_long:
            await engine.prepare(openai_request(COMPLETION, prompt=[1] * 18, max_tokens=3))
        fitting = await complete(engine, openai_request(COMPLETION, prompt=[1] * 18))
    assert prompt_too_long.value.reason is output_too_long.value.reason is Reason.CONTEXT_LENGTH_EXCEEDED
    assert prompt_too_long.value.metadata == {"field": "prompt", "prompt_tokens": "20", "context_tokens": "20"}
    assert "maximum context length is 20 tokens" in output_too_long.value.message
    asked = {"field": "prompt", "prompt_tokens": "18", "context_tokens": "20", "max_tokens": "3"}
    assert output_too_long.value.metadata == asked
    assert fitting.outputs[-1].completion_tokens == 2


async def test_it_generates_at_the_set_rate() -> None:
    """Ten tokens at 100 per second, after the prefill, take no less than that, but for one step that comes late."""
    loop = asyncio.get_running_loop()
    async with running(tokens_per_second=100.0, prefill_seconds=0.05) as engine:
        begun = loop.time()
        await complete(engine, chat(max_tokens=10))
        assert loop.time() - begun >= 0.05 + 8 * 0.01


async def test_a_dying_engine_fails_each_request_once() -> None:
    """After so many tokens it is unhealthy, every request hears one error, and no more are taken."""
    async with running(die_after_tokens=6) as engine:
        prepared = await engine.prepare(chat(max_tokens=50, stream=True))
        first, _ = await begin(engine, chat(n=2, max_tokens=50, ignore_eos=True, stream=True))
        second, _ = await begin(engine, chat(max_tokens=50, ignore_eos=True, stream=True))
        await first.until_ends(1)
        await second.until_ends(1)
        assert [output.error is not None for output in first.outputs].count(True) == 1
        assert [output.error is not None for output in second.outputs].count(True) == 1
        assert not engine.healthy()
        assert not await engine.responsive(0.01)
        with pytest.raises(NaruError) as caught:
            await engine.submit(prepared, first)
    assert caught.value.reason is Reason.SERVICE_UNAVAILABLE


async def test_a_hung_engine_is_healthy_but_does_not_answer() -> None:
    """It generates no more, does not abort, and `responsive` says so."""
    async with running(hang_after_tokens=3) as engine:
        assert await engine.responsive(0.01)
        heard, handle = await begin(engine, chat(max_tokens=50, stream=True))
        await heard.until_outputs(3)
        await handle.cancel()
        assert engine.healthy()
        assert not await engine.responsive(0.01)
        assert len(heard.outputs) == 3
        assert engine.unfinished_requests() == 1


async def test_a_sink_that_raises_harms_nobody_else() -> None:
    """The engine goes on for other requests."""

    def broken(output: ChoiceOutput) -> None:
        raise RuntimeError("a sink of no use")

    async with running() as engine:
        await engine.submit(await engine.prepare(chat(max_tokens=5, stream=True)), broken)
        heard = await complete(engine, chat(max_tokens=5))
        assert heard.outputs[-1].completion_tokens == 5
        assert engine.healthy()


async def test_it_keeps_an_account_of_what_began_and_what_ended(tmp_path: Path) -> None:
    """One line for each choice that begins, and one with its tokens when it has ended or was cancelled."""
    path = tmp_path / "account.jsonl"
    async with running(account=path) as engine:
        await complete(engine, chat(max_tokens=3, n=2, user="whole"))
        _, handle = await begin(engine, chat(max_tokens=5000, ignore_eos=True, user="cut"))
        await handle.cancel()
        _ = await begin(engine, chat(max_tokens=5000, ignore_eos=True, user="left"))
    lines = [(line.user, line.choice, line.ended, line.generated) for line in read_account(path)]
    assert lines[:4] == [("whole", 0, False, 0), ("whole", 1, False, 0), ("whole", 0, True, 3), ("whole", 1, True, 3)]
    assert [line[:3] for line in lines[4:]] == [("cut", 0, False), ("cut", 0, True), ("left", 0, False)]
    assert {line.process for line in read_account(path)} == {os.getpid()}
