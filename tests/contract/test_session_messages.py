"""What inference writes to a session is what the edge reads from it, whichever way a message says it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from edge import convert as edge_convert
from edge.generation import Delta
from edge.generation import Event as Heard
from inference.convert import frame_to_proto, session_response_to_proto
from inference.engine import ChoiceOutput, PromptOutput, TokenCandidate, TokenLogprob, ToolCallDelta
from inference.events import Accepted, Event, Finished, Refused
from naru.api.inference.v1.inference_service_pb2 import GenerateSessionResponse, Load
from naru.errors import NaruError, Reason
from naru.usage import Outcome, Usage

_LOGPROBS = (TokenLogprob(TokenCandidate("나", -0.5, 7), ()),)
_EVENTS: list[Event] = [
    ChoiceOutput(0, "나루", 1),
    ChoiceOutput(0, "", 2**33),
    ChoiceOutput(0, " ferry", 3),
    ChoiceOutput(1, "b", 1),
    ChoiceOutput(0, "end", 4, finish_reason="stop", stop_text="\n"),
    ChoiceOutput(0, "", 4, stop_token_id=0, finish_reason="stop"),
    ChoiceOutput(0, "c", 5, logprobs=_LOGPROBS),
    ChoiceOutput(0, "d", 6, token_ids=(1, 2)),
    ChoiceOutput(0, "e", 7, reasoning="why"),
    ChoiceOutput(0, "f", 8, tool_calls=(ToolCallDelta(0, "call", "f", "{}"),)),
    ChoiceOutput(0, "g", 9, prompt=PromptOutput((1,), ())),
    ChoiceOutput(0, "", 0, finish_reason="stop", embedding=b"\0\0\x80?"),
    ChoiceOutput(0, "", 0, finish_reason="stop", score=0.0),
    Accepted("event", "request", "small", 7, 1, 0.0),
    Finished(Outcome.COMPLETED, Usage(7, 2)),
    Refused(NaruError(Reason.OVERLOADED, "busy")),
]


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(_EVENTS)), max_size=20))
def test_every_stream_is_told_its_events_in_order(batch: list[tuple[int, Event]]) -> None:
    """By columns or by frames: the same events, each stream's in its order."""
    message = GenerateSessionResponse.FromString(session_response_to_proto(batch, Load(requests=3)).SerializeToString())
    one_by_one = ((stream_id, _alone(event)) for stream_id, event in batch)
    assert _by_stream(edge_convert.events_from_proto(message)) == _by_stream(one_by_one)
    assert message.load.requests == 3


def test_text_travels_in_columns() -> None:
    """A delta of nothing but text needs no frame, unless something that has one came before it."""
    text, accepted = ChoiceOutput(0, "a", 2), Accepted("event", "request", "small", 7, 1, 0.0)
    message = session_response_to_proto([(1, text), (2, accepted), (2, text), (3, text)], Load())
    assert list(message.plain_deltas.stream_ids) == [1, 3]
    assert [frame.stream_id for frame in message.frames] == [2, 2]


def _alone(event: Event) -> Heard:
    heard = edge_convert.event_from_proto(frame_to_proto(1, event))
    assert heard is not None
    return heard


def _by_stream(events: Iterable[tuple[int, Heard]]) -> dict[int, list[object]]:
    told: dict[int, list[object]] = defaultdict(list)
    for stream_id, event in events:
        told[stream_id].append(event if isinstance(event, Delta) else repr(event))
    return told
