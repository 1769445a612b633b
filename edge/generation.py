"""What the edge asks of inference and what comes back, free of any transport.

The events are `msgspec.Struct`s without garbage collector tracking: one is made per token of every stream, and they cost a
third of a frozen dataclass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import msgspec

from naru.errors import NaruError
from naru.identity import Principal
from naru.usage import Usage


class Endpoint(StrEnum):
    """The HTTP requests that a model answers, by their path."""

    CHAT_COMPLETIONS = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    MESSAGES = "/v1/messages"
    RESPONSES = "/v1/responses"
    EMBEDDINGS = "/v1/embeddings"
    RERANK = "/v1/rerank"
    SCORE = "/v1/score"


class GenerationRequest(msgspec.Struct, frozen=True):
    """One attempt of one request, as `naru.api.inference.v1.Generation` documents it.

    Attributes:
        timeout: Seconds it may take from now.
        body: The client's JSON, untouched.
    """

    event_id: str
    attempt: int
    principal: Principal
    reserved_prompt_tokens: int
    output_token_cap: int | None
    timeout: float
    traceparent: str
    request_id: str
    model: str
    requested_model: str
    stream: bool
    endpoint: Endpoint
    body: bytes


class Candidate(msgspec.Struct, frozen=True, gc=False):
    """A token the model could have generated; `logprob` is its natural-log probability.

    `rank` is 1 for the likeliest; 0 where it is not told.
    """

    token: str
    logprob: float
    token_id: int
    rank: int = 0


class Logprob(msgspec.Struct, frozen=True):
    """How likely a token was, and the likeliest ones in its place; `unknown` for the first token of a prompt."""

    chosen: Candidate
    top: tuple[Candidate, ...] = ()
    unknown: bool = False


class PromptOutput(msgspec.Struct, frozen=True):
    """What a request asked to be told of its prompt."""

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[Logprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of a tool call. Pieces of one `index` make a call; only the first has its `id` and `name`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """The engine has the request. `accept_time` in seconds since the Unix epoch."""

    model: str
    prompt_tokens: int
    choices: int
    accept_time: float


class Refused(msgspec.Struct, frozen=True):
    """The request was not taken. With `prompt_tokens`, reserve as many and submit again."""

    error: NaruError
    prompt_tokens: int | None = None


class Delta(msgspec.Struct, frozen=True, gc=False):
    """What one choice gained; `completion_tokens` counts all of the choice's tokens so far.

    Within a delta `reasoning` comes first, then `text`, then `tool_calls`. `prompt` comes once, with the first delta. Of
    embeddings, a choice is an input and has a vector, in little-endian 32-bit floats; of scores, it is a pair and has one.
    """

    choice_index: int
    text: str
    completion_tokens: int
    finish_reason: str = ""
    stop_text: str = ""
    stop_token_id: int | None = None
    logprobs: tuple[Logprob, ...] = ()
    token_ids: tuple[int, ...] = ()
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    prompt: PromptOutput | None = None
    embedding: bytes = b""
    score: float | None = None


class FinishOutcome(StrEnum):
    """How a generation ended."""

    COMPLETED = "completed"
    ABORTED = "aborted"
    FAILED = "failed"


class Finished(msgspec.Struct, frozen=True):
    """The last event of a request that was accepted. `error` says why the service ended it, if it did."""

    outcome: FinishOutcome
    usage: Usage
    error: NaruError | None = None


Event = Accepted | Refused | Delta | Finished


@dataclass(frozen=True, slots=True)
class BrokenGeneration:
    """A generation whose replica went away after it was accepted: the evidence the edge has of it.

    Attributes:
        completion_tokens: Tokens seen, over all choices.
        break_time: Seconds since the Unix epoch.
    """

    request: GenerationRequest
    accepted: Accepted
    completion_tokens: int
    break_time: float


class SessionLost(Exception):  # noqa: N818 -- it is an event the gateway acts on, never shown to anybody
    """The connection to the replica broke.

    Args:
        written: Whether the request may have reached the replica. False is certain.
    """

    def __init__(self, *, written: bool) -> None:
        super().__init__("the session with the replica was lost")
        self.written = written


class GenerationStream(Protocol):
    """One request at one replica."""

    @property
    def replica(self) -> str:
        """The replica's address."""

    @property
    def written(self) -> bool:
        """Whether the request may have reached the replica. False is certain."""

    async def receive(self) -> Sequence[Event]:
        """All that came since the last call; waits for something to come.

        An empty sequence means that nothing came for the keep-alive time. Raises SessionLost after the last event when the
        connection broke, and NaruError when the request was ended by `fail`.
        """

    async def forward(self, take: Callable[[Sequence[Event]], bool]) -> None:
        """Hands all that comes to `take` at once, in the turn of the loop in which it came, until that returns False.

        No task is woken for it, which is why it costs less than `receive`. Of silence it hears as of no events. Raises what
        `receive` raises, and what `take` raised.
        """

    def on_interrupt(self, interrupted: Callable[[NaruError], None]) -> None:
        """Sets what to call when the stream is cut because nobody reads it."""

    def close(self) -> None:
        """Nobody reads it any more: ends the request at the replica if it is not over. Must be called, once or more."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for by name. `create_time` in seconds since the Unix epoch.

    `root` is the model that another name stands for, or an adapter's own name; empty for the model's own name. `parent` is the
    model that it is an adapter of; empty when it is none.
    """

    name: str
    owned_by: str
    create_time: float
    context_tokens: int
    root: str = ""
    parent: str = ""


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a prompt is to a model; `strings` are empty when nobody asked. `context_tokens`: prompt and output together."""

    token_ids: Sequence[int]
    strings: Sequence[str]
    context_tokens: int
