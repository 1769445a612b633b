"""Outputs of one choice put together, and taken apart, without a word lost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

from msgspec.structs import replace

from inference.engine import ChoiceOutput, PromptOutput, ToolCallDelta


def merge_outputs(outputs: Sequence[ChoiceOutput]) -> ChoiceOutput:
    """One output that says what `outputs`, of one choice and in order, say together."""
    last = outputs[-1]
    if len(outputs) == 1:
        return last
    return replace(
        last,
        text="".join([output.text for output in outputs]),
        logprobs=tuple(chain.from_iterable([output.logprobs for output in outputs])),
        token_ids=tuple(chain.from_iterable([output.token_ids for output in outputs])),
        reasoning="".join([output.reasoning for output in outputs]),
        tool_calls=_merge_calls(chain.from_iterable([output.tool_calls for output in outputs])),
        prompt=_merge_prompts([output.prompt for output in outputs if output.prompt is not None]),
    )


def split_output(output: ChoiceOutput, count: int) -> list[ChoiceOutput]:
    """The same output in `count` pieces, of which only the last says that the choice ended."""
    pieces = []
    for number in range(count):
        last = number == count - 1
        pieces.append(
            replace(
                output,
                text=output.text[_part(len(output.text), number, count)],
                logprobs=output.logprobs[_part(len(output.logprobs), number, count)],
                token_ids=output.token_ids[_part(len(output.token_ids), number, count)],
                reasoning=output.reasoning[_part(len(output.reasoning), number, count)],
                tool_calls=_part_of_calls(output.tool_calls, number, count),
                prompt=_part_of_prompt(output.prompt, number, count),
                finish_reason=output.finish_reason if last else "",
                stop_text=output.stop_text if last else "",
                stop_token_id=output.stop_token_id if last else None,
            )
        )
    return pieces


def _merge_calls(pieces: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    merged: dict[int, list[ToolCallDelta]] = {}
    for piece in pieces:
        merged.setdefault(piece.index, []).append(piece)
    return tuple(
        ToolCallDelta(
            index,
            next((piece.id for piece in call if piece.id), ""),
            next((piece.name for piece in call if piece.name), ""),
            "".join([piece.arguments for piece in call]),
        )
        for index, call in merged.items()
    )


def _merge_prompts(prompts: Sequence[PromptOutput]) -> PromptOutput | None:
    if len(prompts) < 2:
        return prompts[0] if prompts else None
    return PromptOutput(
        tuple(chain.from_iterable([prompt.token_ids for prompt in prompts])),
        tuple(chain.from_iterable([prompt.logprobs for prompt in prompts])),
    )


def _part_of_calls(calls: Sequence[ToolCallDelta], number: int, count: int) -> tuple[ToolCallDelta, ...]:
    if number == 0:
        return tuple(replace(call, arguments=call.arguments[_part(len(call.arguments), 0, count)]) for call in calls)
    return tuple(
        ToolCallDelta(call.index, arguments=call.arguments[_part(len(call.arguments), number, count)]) for call in calls
    )


def _part_of_prompt(prompt: PromptOutput | None, number: int, count: int) -> PromptOutput | None:
    if prompt is None:
        return None
    return PromptOutput(
        prompt.token_ids[_part(len(prompt.token_ids), number, count)],
        prompt.logprobs[_part(len(prompt.logprobs), number, count)],
    )


def _part(length: int, number: int, count: int) -> slice:
    return slice(length * number // count, length * (number + 1) // count)
