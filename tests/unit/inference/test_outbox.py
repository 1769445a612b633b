"""How events wait for a caller that reads fast, slowly or not at all."""

from __future__ import annotations

import asyncio

import pytest

from inference.convert import frame_to_proto
from inference.engine import ChoiceOutput, PromptOutput, TokenCandidate, TokenLogprob, ToolCallDelta
from inference.events import Accepted, Event, Finished, Refused
from inference.outbox import Outbox, OutboxLimits, merge, size_of
from inference.output_merging import split_output
from naru.errors import NaruError, Reason
from naru.usage import Outcome, Usage
from tests.support.generation_bench import eventually

ACCEPTED = Accepted("event", "request", "small", 7, 1, 0.0)
FINISHED = Finished(Outcome.COMPLETED, Usage(7, 2))


def output(text: str, tokens: int, *, choice: int = 0, finish_reason: str = "", logprobs: int = 0) -> ChoiceOutput:
    candidate = TokenCandidate("가" * 3, -1.5, 7)
    return ChoiceOutput(
        choice_index=choice,
        text=text,
        completion_tokens=tokens,
        finish_reason=finish_reason,
        logprobs=(TokenLogprob(candidate, (candidate,) * 20),) * logprobs,
        token_ids=(4_000_000_000,) * logprobs,
    )


def new_outbox(stalls: list[str] | None = None, **limits: float) -> Outbox:
    said = stalls if stalls is not None else []
    return Outbox(OutboxLimits(**limits), lambda: said.append("stalled"))  # type: ignore[arg-type]  # a test names fields


async def test_one_engine_step_is_one_batch() -> None:
    """What is put within one turn of the loop, for whatever streams, is taken together."""
    outbox = new_outbox()
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.put(1, output("a", 1))
    outbox.put(2, output("b", 1))
    outbox.put(1, output("c", 1, choice=1))
    assert await taking == [(1, output("a", 1)), (2, output("b", 1)), (1, output("c", 1, choice=1))]
    outbox.close()


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_steps_in_quick_succession_share_a_batch() -> None:
    """After a batch with further tokens, more of those wait; each stays an output of its own, in order."""
    outbox = new_outbox(pause_seconds=1.0)
    outbox.put(1, output("a", 2))
    assert await outbox.take() == [(1, output("a", 2))]
    taking = asyncio.create_task(outbox.take())
    for number in (3, 4):
        outbox.put(1, output("b", number))
        outbox.put(2, output("c", number))
        await turns()
    assert not taking.done()
    assert await taking == [(1, output("b", 3)), (1, output("b", 4)), (2, output("c", 3)), (2, output("c", 4))]
    outbox.close()


@pytest.mark.parametrize("urgent", [output("d", 1), output("d", 9, finish_reason="stop"), FINISHED])
async def test_what_somebody_waits_for_leaves_at_once(urgent: Event) -> None:
    """First tokens, ends and the like do not wait, and take along what does."""
    outbox = new_outbox(pause_seconds=60)
    outbox.put(1, output("a", 2))
    await outbox.take()
    taking = asyncio.create_task(outbox.take())
    outbox.put(1, output("b", 3))
    await turns()
    assert not taking.done()
    outbox.put(2, urgent)
    assert await taking == [(1, output("b", 3)), (2, urgent)]
    outbox.close()


async def test_only_further_tokens_make_further_tokens_wait() -> None:
    """A batch of other things, or one before the pause, holds nothing up; nor does an end that was asked for."""
    outbox = new_outbox(pause_seconds=60)
    for event in (output("a", 1), output("b", 2)):
        outbox.put(1, event)
        assert await outbox.take() == [(1, event)]
    outbox.put(1, output("c", 3))
    outbox.end()
    assert await outbox.take() == [(1, output("c", 3))]
    assert await outbox.take() is None
    patient = new_outbox(pause_seconds=0.01)
    for number in (2, 3):
        patient.put(1, output("a", number))
        assert await patient.take() == [(1, output("a", number))]
        await asyncio.sleep(0.02)
    patient.close()


async def test_an_acceptance_waits_a_moment_for_the_first_token() -> None:
    """Nobody is told anything before the token; it leaves alone when none comes, and holds nothing else up."""
    outbox = new_outbox(pause_seconds=60)
    taking = asyncio.create_task(outbox.take())
    outbox.put(1, ACCEPTED)
    await turns()
    assert not taking.done()
    outbox.put(1, output("a", 1))
    assert await taking == [(1, ACCEPTED), (1, output("a", 1))]
    outbox.put(2, ACCEPTED)
    outbox.put(3, output("b", 2))
    assert await outbox.take() == [(2, ACCEPTED), (3, output("b", 2))]
    hasty = new_outbox(pause_seconds=0.01)
    hasty.put(1, ACCEPTED)
    assert await hasty.take() == [(1, ACCEPTED)]
    for one in (outbox, hasty):
        one.close()


async def test_deltas_merge_while_the_writer_is_busy() -> None:
    """Text is joined, counts are the latest, logprobs are all there, and each stream stays in order."""
    outbox = new_outbox()
    outbox.put(1, ACCEPTED)
    assert await outbox.take() == [(1, ACCEPTED)]
    for number in range(1, 40):
        outbox.put(1, output("a", number, logprobs=1))
        outbox.put(2, output("A", number))
        await asyncio.sleep(0)
    outbox.put(1, output("z", 40, finish_reason="stop"))
    outbox.put(1, FINISHED)
    assert await outbox.take() == [
        (
            1,
            ChoiceOutput(
                0,
                "a" * 39 + "z",
                40,
                "stop",
                logprobs=output("", 0, logprobs=39).logprobs,
                token_ids=(4_000_000_000,) * 39,
            ),
        ),
        (2, output("A" * 39, 39)),
        (1, FINISHED),
    ]
    outbox.close()


async def test_messages_stay_small_enough() -> None:
    """Steps larger than a message, and single outputs larger than one, are spread over several; nothing is lost."""
    outbox = new_outbox(message_bytes=20_000)
    outbox.put(1, ACCEPTED)
    for stream in range(1, 30):
        outbox.put(stream, output("ü" * 300, 1))
    outbox.put(1, output("나루" * 4000, 9, logprobs=100, finish_reason="stop"))
    outbox.put(1, FINISHED)
    outbox.end()
    received: list[tuple[int, Event]] = []
    sizes = []
    while (batch := await outbox.take()) is not None:
        sizes.append(sum(frame_to_proto(stream, event).ByteSize() for stream, event in batch))
        received += batch
    assert max(sizes) <= 20_000
    assert len(sizes) > 5
    deltas = [event for stream, event in received if stream == 1 and isinstance(event, ChoiceOutput)]
    assert "".join(delta.text for delta in deltas) == "ü" * 300 + "나루" * 4000
    assert sum(len(delta.logprobs) for delta in deltas) == 100
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["stop"]
    assert deltas[-1].finish_reason == "stop"
    assert received[0] == (1, ACCEPTED)
    assert received[-1] == (1, FINISHED)
    assert {stream for stream, _ in received} == set(range(1, 30))
    assert outbox.waiting_bytes == 0


async def test_a_caller_that_lets_too_much_wait_is_cut_off() -> None:
    """Past the buffer's bound nothing more is collected and the caller is given up, once."""
    stalls: list[str] = []
    outbox = new_outbox(stalls, buffer_bytes=1000)
    for number in range(20):
        outbox.put(number, output("x" * 100, 1))
    assert stalls == ["stalled"]
    assert outbox.waiting_bytes == 0
    assert await outbox.take() is None


async def test_a_caller_that_does_not_take_a_message_is_cut_off() -> None:
    """A write that does not end in time gives the caller up; an idle caller, or one that reads, is left alone."""
    stalls: list[str] = []
    outbox = new_outbox(stalls, stall_seconds=0.08)
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0.2)
    assert stalls == []
    outbox.put(1, output("a", 1))
    assert await taking
    await eventually(lambda: stalls)
    assert stalls == ["stalled"]


async def test_end_lets_the_rest_be_taken_and_close_does_not() -> None:
    """Ending delivers what waits; closing drops it."""
    ended, closed = new_outbox(), new_outbox()
    for outbox in (ended, closed):
        outbox.put(1, FINISHED)
    ended.end()
    closed.close()
    assert await ended.take() == [(1, FINISHED)]
    assert await ended.take() is None
    assert await closed.take() is None


async def test_poke_gives_an_empty_batch() -> None:
    """A caller that waits can be told something although no stream has news."""
    outbox = new_outbox()
    taking = asyncio.create_task(outbox.take())
    await asyncio.sleep(0)
    outbox.poke()
    assert await taking == []
    outbox.close()


_ENTRY = TokenLogprob(TokenCandidate("한", -1.5, 49_151, 2_000_000), (TokenCandidate("국", -0.1, 1, 1),), unknown=True)
PARSED = ChoiceOutput(
    1000,
    "그리고 text",
    2_000_000_000,
    finish_reason="tool_calls",
    reasoning="생각 " * 20,
    tool_calls=(ToolCallDelta(0, "call-0", "날씨", '{"city": "서울"}'), ToolCallDelta(100, "call-1", "f", "{}")),
    prompt=PromptOutput((49_151,) * 9, (_ENTRY,) * 9),
)


@pytest.mark.parametrize(
    "event",
    [
        output("plain", 300, finish_reason="length"),
        output("한국어 🙂", 2_000_000_000, choice=1000, logprobs=5),
        PARSED,
        ACCEPTED,
        FINISHED,
        Refused(NaruError(Reason.MODEL_NOT_FOUND, "모델 없음" * 50, metadata={"model": "나" * 100}), 2**40),
    ],
)
def test_sizes_are_upper_bounds(event: Event) -> None:
    """An event never takes more bytes in a message than was counted for it."""
    assert frame_to_proto(2**60, event).ByteSize() + 6 <= size_of(event)


@pytest.mark.parametrize("whole", [output("한국어 text", 12, finish_reason="stop", logprobs=7), PARSED])
def test_split_and_merge_are_opposites(whole: ChoiceOutput) -> None:
    """Pieces of an output, merged again, are the output."""
    assert merge(split_output(whole, 5)) == whole
