"""vLLM itself, with the default model."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from inference.engine import ChoiceOutput, EngineRequest, InputKind, Sampling
from inference.engine_count import EngineCount
from inference.vllm_compat import load, per_step_hook_available, renders_inline, text_hook
from inference.vllm_engine import VllmEngine
from inference.vllm_inline_renderer import usual_tokenizer
from inference.vllm_outputs import Outputs
from inference.vllm_payload import EnginePayload
from inference.vllm_submit import GenerateSubmitter, StepSubmitter, Submission, Submitter
from naru.errors import NaruError, Reason
from naru.ids import new_request_id
from naru.logs import get_logger
from tests.support.answering import MODEL
from tests.support.heard import Heard, begin, complete, openai_request

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
CHAT = InputKind.OPENAI_CHAT
COMPLETION = InputKind.OPENAI_COMPLETION
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="session"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def chat(**body: Any) -> EngineRequest:
    return openai_request(CHAT, messages=QUESTION, **body)


def completion(**body: Any) -> EngineRequest:
    return openai_request(COMPLETION, **body)


async def refusal(engine: VllmEngine, request: EngineRequest) -> NaruError:
    with pytest.raises(NaruError) as caught:
        await engine.prepare(request)
    return caught.value


async def test_it_knows_what_it_serves(engine: VllmEngine) -> None:
    """One model, with the context it was given; healthy, and answering."""
    (model,) = engine.models()
    assert (model.name, model.owned_by, model.context_tokens) == (MODEL, "naru", 1024)
    assert engine.healthy()
    assert await engine.responsive(5)


async def test_warm_up_is_not_counted(engine: VllmEngine) -> None:
    """Counters hold what requests used and nothing else."""
    before = engine.counters()
    heard = await complete(engine, chat(temperature=0, max_tokens=3))
    after = engine.counters()
    assert after.completion_tokens - before.completion_tokens == heard.outputs[-1].completion_tokens == 3
    assert after.prompt_tokens - before.prompt_tokens == 37
    assert after.requests - before.requests == 1
    if before.requests == 0:
        assert (before.prompt_tokens, before.completion_tokens) == (0, 0)


async def test_it_answers_truly(engine: VllmEngine) -> None:
    """The real model answers a real question, and ends by itself, its end token counted."""
    heard = await complete(engine, chat(temperature=0, max_tokens=40, return_token_ids=True))
    (output,) = heard.outputs
    assert "capital of France is Paris" in output.text
    assert output.finish_reason == "stop"
    assert output.completion_tokens == len(output.token_ids)
    assert output.token_ids[-1] == 2


async def test_a_stream_comes_in_pieces_that_make_the_whole(engine: VllmEngine) -> None:
    """Deltas add up to the text of the same request unstreamed, and their counts grow to its count."""
    whole, streamed = await asyncio.gather(
        complete(engine, chat(temperature=0, max_tokens=40)),
        complete(engine, chat(temperature=0, max_tokens=40, stream=True)),
    )
    counts = [output.completion_tokens for output in streamed.outputs]
    assert len(streamed.outputs) > 3
    assert streamed.text() == whole.text()
    assert counts == sorted(counts)
    assert counts[-1] == whole.outputs[0].completion_tokens
    assert [bool(output.finish_reason) for output in streamed.outputs] == [False] * (len(counts) - 1) + [True]


async def test_n_choices_are_greedy_too(engine: VllmEngine) -> None:
    """Two choices at temperature 0 are the same; sampled with a seed they differ, and again the same way."""
    greedy, sampled, again = await asyncio.gather(
        complete(engine, chat(n=2, temperature=0, max_tokens=8)),
        complete(engine, chat(n=2, seed=7, temperature=1.5, max_tokens=8)),
        complete(engine, chat(n=2, seed=7, temperature=1.5, max_tokens=8)),
    )
    assert greedy.text(0) == greedy.text(1) != ""
    assert sampled.text(0) != sampled.text(1)
    assert (sampled.text(0), sampled.text(1)) == (again.text(0), again.text(1))


async def test_prompts_times_n_are_numbered(engine: VllmEngine) -> None:
    """Choice index is prompt number times n plus the choice's; every prompt's tokens count once."""
    prompts = ["One, two, three,", "The capital of France is", "The capital of France is"]
    prepared = await engine.prepare(completion(prompt=prompts, n=2, temperature=0, max_tokens=3))
    heard = Heard()
    await engine.submit(prepared, heard)
    await heard.until_ends(6)
    assert (prepared.choices, prepared.prompt_tokens) == (6, 6 + 5 + 5)
    assert heard.text(0) == heard.text(1) != heard.text(2)
    assert {heard.text(i) for i in (2, 3, 4, 5)} == {" Paris.\n"}


async def test_completions_have_their_own_default_length(engine: VllmEngine) -> None:
    """Without `max_tokens` a completion has 16 tokens, fewer where the context or the cap ends sooner."""
    whole, capped, squeezed = await asyncio.gather(
        complete(engine, completion(prompt="Once upon a time", ignore_eos=True)),
        complete(engine, openai_request(COMPLETION, cap=4, prompt="Once upon a time", ignore_eos=True)),
        complete(engine, completion(prompt=[500] * 1020, ignore_eos=True)),
    )
    assert [heard.ends[0].completion_tokens for heard in (whole, capped, squeezed)] == [16, 4, 4]
    assert {heard.ends[0].finish_reason for heard in (whole, capped, squeezed)} == {"length"}


async def test_a_stop_text_ends_and_is_named(engine: VllmEngine) -> None:
    """Neither the stop text nor a part of it is in any delta."""
    heard = await complete(engine, chat(temperature=0, max_tokens=40, stop=["Paris"], stream=True))
    assert heard.text() == "The capital of France is "
    assert (heard.ends[0].finish_reason, heard.ends[0].stop_text) == ("stop", "Paris")
    assert heard.ends[0].completion_tokens == 6


async def test_a_stop_token_ends_and_is_named(engine: VllmEngine) -> None:
    """One of the caller's stop_token_ids is told as such."""
    heard = await complete(engine, chat(temperature=0, max_tokens=40, stop_token_ids=[7042]))
    assert (heard.ends[0].finish_reason, heard.ends[0].stop_token_id) == ("stop", 7042)


@pytest.mark.parametrize("stream", [True, False])
async def test_cancel_reaches_the_engine(engine: VllmEngine, stream: bool) -> None:
    """Each open choice hears one abort with its exact count, and the engine is idle within a second."""
    before = engine.counters()
    heard, handle = await begin(engine, chat(n=2, max_tokens=900, ignore_eos=True, stream=stream))
    other = await begin(engine, chat(max_tokens=900, ignore_eos=True, stream=True))
    await other[0].until_outputs(5)
    await handle.cancel()
    await other[1].cancel()
    cancelled = time.monotonic()
    while engine.unfinished_requests():
        assert time.monotonic() - cancelled < 10  # a busy machine gets more
        await asyncio.sleep(0.01)
    await handle.cancel()
    ends = heard.ends + other[0].ends
    assert [end.finish_reason for end in ends] == ["abort"] * 3
    generated = sum(end.completion_tokens for end in ends)
    assert generated == engine.counters().completion_tokens - before.completion_tokens > 0
    assert await engine.responsive(1)


async def test_logprobs_say_how_likely_each_token_was(engine: VllmEngine) -> None:
    """One entry per token; `top` is as long as asked, likeliest first, and holds a greedy choice first."""
    heard, bare = await asyncio.gather(
        complete(engine, chat(temperature=0, max_tokens=4, logprobs=True, top_logprobs=3, stream=True)),
        complete(engine, chat(temperature=0, max_tokens=2, logprobs=True)),
    )
    entries = [entry for output in heard.outputs for entry in output.logprobs]
    assert "".join(entry.chosen.token for entry in entries) == heard.text() == "The capital of France"
    for entry in entries:
        logprobs = [candidate.logprob for candidate in entry.top]
        assert len(entry.top) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert entry.top[0] == entry.chosen
        assert entry.chosen.logprob <= 0
    assert [entry.top for entry in bare.ends[0].logprobs] == [(), ()]


async def test_a_json_schema_is_kept(engine: VllmEngine) -> None:
    """The answer is JSON of the schema that the request gave."""
    shape = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    heard = await complete(engine, chat(temperature=0, max_tokens=60, response_format=shape))
    answer = json.loads(heard.text())
    assert list(answer) == ["city"]
    assert isinstance(answer["city"], str)


async def test_typed_inputs_become_the_same_request(engine: VllmEngine) -> None:
    """ChatInput, text and token ids generate what their OpenAI JSON does."""
    sampling = Sampling(temperature=0.0, max_tokens=5)
    messages = (("user", QUESTION[0]["content"]),)
    typed = EngineRequest(InputKind.CHAT, MODEL, stream=False, messages=messages, sampling=sampling)
    text = EngineRequest(InputKind.TEXT, MODEL, stream=False, text="The capital of France is", sampling=sampling)
    ids = EngineRequest(
        InputKind.TOKEN_IDS, MODEL, stream=False, token_ids=(504, 3575, 282, 4649, 314), sampling=sampling
    )
    requests = (typed, chat(temperature=0, max_tokens=5), text, ids)
    heard = [one.text() for one in await asyncio.gather(*(complete(engine, request) for request in requests))]
    assert heard[0] == heard[1]
    assert heard[2] == heard[3]


async def test_the_prefix_cache_is_shared_within_a_tenant_only(engine: VllmEngine) -> None:
    """The same prompt again comes from the cache, unless it belongs to somebody else or was salted by the client."""

    async def cached(tenant: str, **body: Any) -> int:
        request = replace(completion(prompt=[600] * 150, max_tokens=1, **body), cache_salt=tenant)
        return (await complete(engine, request)).outputs[0].cached_prompt_tokens

    assert await cached("one") == 0
    assert await cached("one") > 0
    assert await cached("two") == 0
    assert await cached("one", cache_salt="mine") == 0
    assert await cached("one", cache_salt="mine") > 0
    assert await cached("two", cache_salt="mine") == 0


async def test_an_echo_of_a_chat_comes_from_the_prefix_cache(engine: VllmEngine) -> None:
    """It tells nothing of how likely the prompt's tokens were, for which the engine would have to work on them again."""
    said = [{"role": "user", "content": "echo " * 150}, {"role": "assistant", "content": "So"}]
    fields = {"echo": True, "add_generation_prompt": False, "continue_final_message": True, "max_tokens": 1}
    first, again = [await complete(engine, openai_request(CHAT, messages=said, **fields)) for _ in range(2)]
    assert first.outputs[0].cached_prompt_tokens == 0
    assert again.outputs[0].cached_prompt_tokens > 0


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"messages": [{"role": "pilot", "content": "x"}]}, "messages[0].role", "user, assistant"),
        ({"temperature": 9}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "(0, 1]"),
        ({"max_tokens": 5000}, "max_tokens", "1024"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens", "max_tokens=3"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "token IDs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs", "20"),
        ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            "response_format",
            "Grammar",
        ),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, "tools[0].function", "required"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=True"),
        ({"seed": 2**70}, "seed", "less than or equal"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "body", "surrogate"),
    ],
)
async def test_a_wrong_field_is_named(engine: VllmEngine, body: dict[str, Any], field: str, says: str) -> None:
    """What vLLM or Naru does not take is an INVALID_ARGUMENT naming the field and what is allowed."""
    error = await refusal(engine, openai_request(CHAT, **({"messages": QUESTION} | body)))
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.metadata == {"field": field}
    assert says in error.message


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"best_of": 3}, "best_of"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"kv_transfer_params": {"prompt_token_ids": [1]}}, "kv_transfer_params"),
    ],
)
async def test_what_cannot_be_delivered_is_refused_by_name(
    engine: VllmEngine, body: dict[str, Any], field: str
) -> None:
    """A field whose effect would be lost is NOT_SUPPORTED; the request is not answered as if it had not been there."""
    error = await refusal(engine, chat(**body))
    assert error.reason is Reason.NOT_SUPPORTED
    assert error.metadata == {"field": field}


async def test_what_does_not_fit_in_the_context_is_refused(engine: VllmEngine) -> None:
    """Too long a prompt, alone or with the output asked for, is told in OpenAI's words."""
    long = await refusal(engine, openai_request(CHAT, messages=[{"role": "user", "content": "hello " * 1500}]))
    huge = await refusal(engine, openai_request(CHAT, messages=[{"role": "user", "content": "hello " * 100_000}]))
    full = await refusal(engine, completion(prompt=[500] * 1024))
    with_output = await refusal(engine, chat(max_tokens=1000))
    assert {error.reason for error in (long, huge, full, with_output)} == {Reason.CONTEXT_LENGTH_EXCEEDED}
    assert long.metadata["field"] == huge.metadata["field"] == with_output.metadata["field"] == "messages"
    assert with_output.metadata["prompt_tokens"] == "37"
    assert full.metadata == {"field": "prompt", "prompt_tokens": "1024", "context_tokens": "1024"}
    for error in (long, huge, full, with_output):
        assert error.message.startswith("This model's maximum context length is 1024 tokens. However, ")
    assert engine.unfinished_requests() == 0


async def test_errors_do_not_repeat_the_prompt(engine: VllmEngine) -> None:
    """What the caller wrote is in no error text, and not in what the error came from."""
    body = {"messages": [{"role": "user", "content": "hush-hush"}], "response_format": {"type": 5}}
    error = await refusal(engine, openai_request(CHAT, **body))
    assert "hush-hush" not in f"{error!r}{error.__cause__!r}"


async def test_many_requests_share_the_engine_s_steps(engine: VllmEngine) -> None:
    """Sixteen requests at once all end as they would alone."""
    alone = (await complete(engine, chat(temperature=0, max_tokens=6))).text()
    heard = await asyncio.gather(*(complete(engine, chat(temperature=0, max_tokens=6, stream=True)) for _ in range(16)))
    assert {one.text() for one in heard} == {alone}


async def test_a_sink_that_raises_harms_nobody_else(engine: VllmEngine) -> None:
    """The engine's loop goes on, and the tokens are counted all the same."""

    def broken(output: ChoiceOutput) -> None:
        raise RuntimeError("a sink of no use")

    before = engine.counters().completion_tokens
    await engine.submit(await engine.prepare(chat(max_tokens=4, ignore_eos=True, stream=True)), broken)
    heard = await complete(engine, chat(max_tokens=8, ignore_eos=True))
    assert heard.ends[0].completion_tokens == 8
    assert engine.counters().completion_tokens - before == 12
    assert engine.healthy()


async def submit(engine: VllmEngine, submitter: Submitter, request: EngineRequest) -> tuple[Heard, Submission, int]:
    prepared = await engine.prepare(request)
    payload = prepared.payload
    assert isinstance(payload, EnginePayload)
    heard = Heard()
    counted = EngineCount().begin(prepared.choices, prepared.choices)
    outputs = Outputs(prepared.choices, payload.options, heard, counted, get_logger("test"), readings=payload.readings)
    return heard, await submitter.submit(payload, outputs), prepared.choices


async def test_without_the_hook_it_works_the_same(engine: VllmEngine) -> None:
    """`generate()` per choice gives the same outputs, counts and aborts as the hook."""
    submitter = GenerateSubmitter(load(), engine._engine, new_request_id)
    hooked = await complete(engine, chat(temperature=0, max_tokens=8))
    heard, _, choices = await submit(engine, submitter, chat(n=2, temperature=0, max_tokens=8, stream=True))
    await heard.until_ends(choices)
    cancelled, submission, _ = await submit(engine, submitter, chat(n=2, max_tokens=900, ignore_eos=True, stream=True))
    await cancelled.until_outputs(4)
    await submission.cancel()
    assert heard.text(0) == heard.text(1) == hooked.text()
    assert [end.completion_tokens for end in heard.ends] == [8, 8]
    assert [end.finish_reason for end in cancelled.ends] == ["abort", "abort"]
    assert engine.unfinished_requests() == 0


async def test_the_hook_is_there(engine: VllmEngine) -> None:
    """The installed vLLM still has what outputs per step need; without it streams cost a task per request."""
    assert per_step_hook_available(engine._engine)
    assert text_hook(engine._engine) is not None, "without it two objects per token"
    assert text_hook(object()) is None


@pytest.mark.parametrize(
    "body",
    [
        {"max_tokens": 24, "ignore_eos": True},
        {"max_tokens": 24, "n": 2},
        {"max_tokens": 24, "stop": ["Paris", "capital"]},
        {"max_tokens": 24, "min_tokens": 3, "stop": ["a"], "include_stop_str_in_output": True},
        {"max_tokens": 6, "logprobs": True, "top_logprobs": 1},
        {"max_tokens": 6, "return_token_ids": True},
    ],
    ids=["length", "choices", "stops", "stops told", "log probabilities", "token ids"],
)
async def test_text_is_taken_as_vllm_would_tell_it(engine: VllmEngine, body: dict[str, Any]) -> None:
    """Each step of a stream, with and without vLLM's objects around its text."""
    request = chat(temperature=0, stream=True, **body)
    _ = await complete(engine, request)  # from here on the prompt is in the cache
    plain = StepSubmitter(load(), engine._engine, new_request_id)
    told, _, choices = await submit(engine, plain, request)
    await told.until_ends(choices)
    taken = await complete(engine, request)
    for choice in range(choices):
        assert steps(taken, choice) == steps(told, choice)


def steps(heard: Heard, choice: int) -> list[ChoiceOutput]:
    return [output for output in heard.outputs if output.choice_index == choice]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "Ferries",
        "  two\n\nlines\t",
        "나루터에서 배를 기다린다",
        "⛴️👩‍👩‍👧",
        "<|im_start|>user<|im_end|>",
        "a" * 900,
        "\u0000é",
    ],
)
@pytest.mark.parametrize("special", [True, False])
async def test_short_texts_have_the_tokens_of_long_ones(engine: VllmEngine, text: str, special: bool) -> None:
    """What transformers does around a tokeniser changes nothing about them."""
    tokenizer = engine._engine.renderer.tokenizer
    own = usual_tokenizer(tokenizer)
    assert own is not None
    expected = tokenizer(text, truncation=True, max_length=2_049, add_special_tokens=special)["input_ids"]
    assert own.encode(text, add_special_tokens=special).ids == expected


@pytest.mark.parametrize(
    "request_",
    [
        chat(),
        chat(tools=[{"type": "function", "function": {"name": "ask", "parameters": {"type": "object"}}}]),
        completion(prompt="Ferries"),
        completion(prompt=["Ferries", "Boats"]),
        completion(prompt="Ferries " * 20, truncate_prompt_tokens=5),
        completion(prompt="Ferries", add_special_tokens=False),
    ],
    ids=["chat", "tools", "text", "prompts", "cut", "without special tokens"],
)
async def test_short_requests_are_rendered_as_long_ones_are(engine: VllmEngine, request_: EngineRequest) -> None:
    """At once or in threads: what the engine is given is the same."""
    long = replace(request_, openai_json=request_.openai_json + b" " * 4_096)
    assert await given_to_engine(engine, request_) == await given_to_engine(engine, long)


async def test_a_short_request_is_refused_as_a_long_one_is(engine: VllmEngine) -> None:
    wrong = chat(truncate_prompt_tokens=-7)
    long = replace(wrong, openai_json=wrong.openai_json + b" " * 4_096)
    assert (await refusal(engine, wrong)).message == (await refusal(engine, long)).message


async def test_short_requests_can_be_rendered_at_once(engine: VllmEngine) -> None:
    """The installed vLLM still has what that needs; without it each takes two ways to a thread and back."""
    assert renders_inline(engine._engine.renderer)


async def given_to_engine(engine: VllmEngine, request: EngineRequest) -> list[tuple[object, Mapping[str, Any]]]:
    payload = (await engine.prepare(request)).payload
    assert isinstance(payload, EnginePayload)
    return [(one.core_request.prompt_token_ids, dict(one.prompt) | {"arrival_time": 0}) for one in payload.choices]
