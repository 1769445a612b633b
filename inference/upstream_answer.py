"""One answer of an upstream while it comes: who is told what, and what is known of its tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from inference.engine import ChoiceOutput, Sink, ToolCallDelta
from inference.upstream_body import UpstreamCall
from inference.upstream_bounds import too_much
from inference.upstream_chunks import ChoicePiece, read_chunk, read_usage
from naru.errors import NaruError, unavailable
from naru.ids import uuid7
from naru.usage import Usage

_ASCII = bytes(range(128))
_TOKEN_BYTES = 256
"""More than almost any token has; those of the longest runs of blanks have half of it."""
_TOKEN_PIECES = 16
"""In more pieces than this no upstream sends a token."""
_SPARE_TOKENS = 256
"""What an upstream may count otherwise than we do, for every choice."""


@dataclass(slots=True)
class _Delivered:
    """What one choice was seen to gain.

    Attributes:
        calls: The first piece of the last call of each of the upstream's indexes, as it was told.
        begun: How many calls were told.
    """

    listed: int = 0
    pieces: int = 0
    narrow: int = 0
    wide: int = 0
    heard: int = 0
    begun: int = 0
    calls: dict[int, ToolCallDelta] = field(default_factory=dict)

    def as_told(self, pieces: Sequence[ToolCallDelta], new_id: Callable[[], str]) -> tuple[ToolCallDelta, ...]:
        """Pieces of calls, each call's id and name with its first one only, and an id where the upstream gives none."""
        told = []
        for piece in pieces:
            call = self.calls.get(piece.index)
            # Some give several calls the same index.
            if call is None or (piece.name and piece.id and piece.id != call.id):
                call = replace(piece, index=self.begun, id=piece.id or f"call_{new_id()}")
                self.calls[piece.index] = call
                self.begun += 1
                told.append(call)
            elif piece.arguments:
                told.append(ToolCallDelta(call.index, arguments=piece.arguments))
        return tuple(told)

    def add(self, output: ChoiceOutput) -> None:
        """Takes a piece."""
        self.heard += 1
        self.listed += max(len(output.token_ids), len(output.logprobs))
        said = output.text + output.reasoning + "".join(call.name + call.arguments for call in output.tool_calls)
        if said:
            self.pieces += 1
            text = said.encode("utf-8", "replace")
            wide = len(text.translate(None, _ASCII))
            self.wide += wide
            self.narrow += len(text) - wide

    def exceeds(self, tokens: int) -> bool:
        """Whether it is more than so many tokens can be."""
        return self.narrow + self.wide > tokens * _TOKEN_BYTES or self.heard > tokens * _TOKEN_PIECES

    @property
    def tokens(self) -> int:
        """Tokens, where they were listed; else an estimate.

        The greater of the pieces, since most upstreams send a token or more in each, and of one token per four bytes of
        ASCII and per two of everything else, for those that send many at once.
        """
        return self.listed or max(self.pieces, math.ceil(self.narrow / 4 + self.wide / 2))


class UpstreamAnswer:
    """Passes an answer on.

    An end of a choice is held back until the usage is there, which comes after all of them: who is told that the last
    choice ended is told what the request used as well.

    Args:
        call: What was asked.
        sink: Who is told.
        new_id: Makes ids of tool calls that came without one.
    """

    def __init__(self, call: UpstreamCall, sink: Sink, new_id: Callable[[], str] = uuid7) -> None:
        self._call = call
        self._sink = sink
        self._new_id = new_id
        self._delivered = [_Delivered() for _ in range(call.choices)]
        # With an echo the prompt is part of the answer.
        self._most = None if call.most_tokens is None else call.prompt_tokens + call.most_tokens + _SPARE_TOKENS
        self._ends: dict[int, ChoicePiece] = {}
        self._usage: Usage | None = None
        self._heard_all = False
        self._over = False

    @property
    def open_choices(self) -> int:
        """Choices of which nobody was told the end."""
        return 0 if self._over else len(self._delivered)

    @property
    def any_ended(self) -> bool:
        """Whether a choice has said how it ended."""
        return bool(self._ends)

    @property
    def ended(self) -> bool:
        """Whether every choice has said how it ended, so that nothing but the usage is left to come."""
        return len(self._ends) == len(self._delivered)

    def take(self, chunk: object) -> None:
        """Takes what came. Raises NaruError when it is not what the API promises, or far more than was asked for."""
        call = self._call
        pieces = read_chunk(chunk, chat=call.chat, whole=not call.stream, choices=call.choices)
        self._usage = read_usage(chunk) or self._usage
        for piece in pieces:
            output = piece.output
            delivered = self._delivered[output.choice_index]
            if output.tool_calls:
                output = replace(output, tool_calls=delivered.as_told(output.tool_calls, self._new_id))
            delivered.add(output)
            if self._most is not None and delivered.exceeds(self._most):
                raise too_much()
            if piece.finish_reason:
                self._ends[output.choice_index] = piece
            told = output.text or output.reasoning or output.tool_calls or output.logprobs or output.token_ids
            if (told or output.prompt is not None) and not self._over:
                self._sink(replace(output, completion_tokens=delivered.tokens))

    def end(self) -> None:
        """Nothing more comes: tells how every choice ended, and the usage with the last one.

        Raises NaruError, and tells nothing, when a choice has not ended.
        """
        self._heard_all = True
        if not self.ended:
            raise unavailable("inference", "The model's upstream ended its answer early.")
        self._tell_ends(lambda index: self._ends[index], self._usage)

    def abort(self) -> None:
        """Tells that every choice was stopped; nothing when all is told."""
        self._tell_ends(lambda index: ChoicePiece(ChoiceOutput(index, "", 0), finish_reason="abort"), None)

    def fail(self, error: NaruError) -> None:
        """Tells that the upstream failed; nothing when all is told."""
        if not self._over:
            self._over = True
            tokens = self._delivered[0].tokens
            # What was said in the midst of an answer is not yet what the whole of it used.
            usage = self._usage if self._heard_all else None
            self._sink(ChoiceOutput(0, "", tokens, finish_reason="error", error=error, usage=usage))

    def mute(self) -> None:
        """Tells nothing more."""
        self._over = True

    def _tell_ends(self, end_of: Callable[[int], ChoicePiece], usage: Usage | None) -> None:
        if self._over:
            return
        self._over = True
        last = len(self._delivered) - 1
        for index, delivered in enumerate(self._delivered):
            end = end_of(index)
            # With one choice the claim is of this choice; of several only their sum is known.
            claimed = usage.completion_tokens if usage is not None and last == 0 else None
            self._sink(
                ChoiceOutput(
                    choice_index=index,
                    text="",
                    completion_tokens=delivered.tokens if claimed is None else claimed,
                    finish_reason=end.finish_reason,
                    stop_text=end.stop_text,
                    stop_token_id=end.stop_token_id,
                    usage=usage if index == last else None,
                )
            )
