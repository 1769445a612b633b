"""How outputs are read where a parser may fail: vLLM's loop over a step must never hear of it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from inference.engine import ChoiceOutput
from inference.engine_count import EngineCount
from inference.vllm_outputs import OutputOptions, Outputs, Reading
from inference.vllm_parsers import ChoiceParser
from inference.vllm_payload import fan_out
from naru.errors import NaruError, Reason
from naru.logs import get_logger


class _Confused:
    """A parser that cannot make anything of what the model writes."""

    def read(self, output: ChoiceOutput, token_ids: Sequence[int]) -> ChoiceOutput | None:
        raise KeyError("the model wrote something odd")


def step(text: str, *token_ids: int) -> Any:
    """What the engine puts out for a step of a choice."""
    completion = SimpleNamespace(text=text, token_ids=token_ids, finish_reason=None, stop_reason=None, logprobs=None)
    return SimpleNamespace(
        outputs=[completion],
        finished=False,
        num_cached_tokens=0,
        prompt_token_ids=[5, 6],
        prompt_logprobs=None,
    )


def reading(**fields: Any) -> Reading:
    return Reading(decode=str, **fields)


def test_an_answer_that_cannot_be_read_ends_with_an_error() -> None:
    """The request hears INTERNAL once, with the tokens that were counted; what the engine says after it is not told."""
    heard: list[ChoiceOutput] = []
    count = EngineCount()
    readings = [reading(parser=cast(ChoiceParser, _Confused()))]
    outputs = Outputs(1, OutputOptions(), heard.append, count.begin(1, 1), get_logger("test"), readings=readings)
    outputs.take(0, step("<odd>", 1, 2))
    outputs.take(0, step("more", 3))
    (end,) = heard
    assert isinstance(end.error, NaruError)
    assert end.error.reason is Reason.INTERNAL
    assert "odd" not in end.error.message
    assert (end.finish_reason, end.completion_tokens) == ("error", 2)
    assert count.ended.requests == 0, "what is settled by an estimate is no exact figure of the engine's"


def test_a_grammar_that_cannot_be_kept_is_the_callers_fault() -> None:
    """The engine finds out by the first token, and says only that there was an error; later ones have other causes."""
    for tokens, options, reason in (
        ((), OutputOptions(grammar="response_format"), Reason.INVALID_ARGUMENT),
        ((0,), OutputOptions(grammar="response_format"), Reason.INVALID_ARGUMENT),
        ((1, 2), OutputOptions(grammar="response_format"), None),
        ((), OutputOptions(), None),
    ):
        heard: list[ChoiceOutput] = []
        count = EngineCount()
        outputs = Outputs(1, options, heard.append, count.begin(1, 1), get_logger("test"))
        output = step("", *tokens)
        output.finished, output.outputs[0].finish_reason = True, "error"
        outputs.take(0, output)
        (end,) = heard
        assert (end.finish_reason, end.error.reason if isinstance(end.error, NaruError) else None) == ("error", reason)
        assert count.ended.requests == (reason is None), "what is settled by an estimate is no exact figure"


class _Holding:
    """A parser that holds back everything."""

    def read(self, output: ChoiceOutput, token_ids: Sequence[int]) -> ChoiceOutput | None:
        return None


def test_what_is_held_back_counts_when_another_choice_cannot_be_read() -> None:
    """The tokens of every choice are told before the error, so that they are billed as they were generated."""
    heard: list[ChoiceOutput] = []
    readings = [reading(parser=cast(ChoiceParser, parser())) for parser in (_Holding, _Confused)]
    outputs = Outputs(
        2, OutputOptions(), heard.append, EngineCount().begin(2, 1), get_logger("test"), readings=readings
    )
    outputs.take(0, step("a b c", 1, 2, 3))
    outputs.take(1, step("<odd>", 4))
    assert [(output.choice_index, output.completion_tokens, output.finish_reason) for output in heard] == [
        (0, 3, ""),
        (1, 1, "error"),
    ]


def test_a_prompt_that_cannot_be_told_ends_the_request() -> None:
    """Nobody waits for an end that was lost with what came before it."""

    def undecodable(token_id: int) -> str:
        raise OverflowError("no such token: hush-hush")

    heard: list[ChoiceOutput] = []
    readings = [Reading(decode=undecodable, echo="So ", echo_tokens=True)]
    options = OutputOptions(top_logprobs=1)
    count = EngineCount()
    outputs = Outputs(1, options, heard.append, count.begin(1, 1), get_logger("test"), readings=readings)
    last = step("it", 1)
    last.finished, last.prompt_logprobs = True, [None, {}]
    with capture_logs() as logs:
        outputs.take(0, last)
    assert [(output.finish_reason, output.completion_tokens) for output in heard] == [("error", 1)]
    assert count.ended.requests == 0
    assert "hush-hush" not in repr(logs)


def test_seeds_of_choices_stay_in_64_bits() -> None:
    """The seed after the largest is the smallest, which an engine can take."""
    request = SimpleNamespace(sampling_params=SimpleNamespace(seed=2**63 - 1))
    seeds = [choice.params.seed for choice in fan_out(0, 3, "prompt", request)]
    assert seeds == [2**63 - 1, -(2**63), -(2**63) + 1]


def test_a_prompt_is_told_once() -> None:
    """The echo and the prompt's ids are in the first output only; a completion of no tokens says nothing else."""
    heard: list[ChoiceOutput] = []
    options = OutputOptions(token_ids=True, prompt_token_ids=True)
    readings = [reading(echo="So "), reading(echo="So ", generates=False)]
    outputs = Outputs(2, options, heard.append, EngineCount().begin(2, 1), get_logger("test"), readings=readings)
    for text in ("it ", "is"):
        outputs.take(0, step(text, 1))
    outputs.take(1, step("it", 1))
    first, second, bare = heard
    assert (first.text, second.text, bare.text) == ("So it ", "is", "So ")
    assert (first.prompt and first.prompt.token_ids, second.prompt) == ((5, 6), None)
    assert (bare.token_ids, bare.completion_tokens) == ((), 1)
