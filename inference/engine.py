"""What the inference service asks of an engine. Three keep this promise: vLLM, an upstream, and the simulated one.

An engine works on prepared choices: `prepare` renders and validates a request without touching the engine, `submit` hands
its choices over, and the engine then calls `sink` on the event loop, for every step in which a choice gained something.

What is made for every request or token is a `msgspec.Struct`: a frozen dataclass of as many fields costs several times as much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

import msgspec

from inference.engine_control import Adapter, EngineControl
from naru.usage import Accuracy, Usage


class InputKind(StrEnum):
    """What a request is made of."""

    OPENAI_CHAT = "openai_chat"
    OPENAI_COMPLETION = "openai_completion"
    CHAT = "chat"
    TEXT = "text"
    TOKEN_IDS = "token_ids"  # noqa: S105 -- tokens of a language model, not of access
    OPENAI_EMBEDDINGS = "openai_embeddings"
    SCORE = "score"


POOLING_KINDS = frozenset({InputKind.OPENAI_EMBEDDINGS, InputKind.SCORE})
"""Those that generate nothing: their choices are vectors, or scores of pairs."""


class Sampling(msgspec.Struct, frozen=True):
    """How to generate, for requests that are not OpenAI JSON; None takes the model's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class EngineRequest(msgspec.Struct, frozen=True):
    """One request as it came in. Exactly the fields of its `kind` are set."""

    kind: InputKind
    model: str
    stream: bool
    output_token_cap: int | None = None
    openai_json: bytes = b""
    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""
    token_ids: tuple[int, ...] = ()
    sampling: Sampling = msgspec.field(default_factory=Sampling)
    cache_salt: str = ""
    priority: int = 0

    def capped(self, cap: int | None) -> EngineRequest:
        """With at most so many output tokens per choice; None changes nothing."""
        if cap is None or (self.output_token_cap is not None and self.output_token_cap <= cap):
            return self
        return msgspec.structs.replace(self, output_token_cap=cap)


class PreparedRequest(msgspec.Struct, frozen=True):
    """A rendered, tokenised and validated request; nothing of it is in the engine yet.

    Attributes:
        prompt_tokens: Tokens of all prompts, each counted once.
        choices: Number of choices over all prompts: prompt number times n plus the choice's number is a choice's index.
        payload: What the engine needs to submit it; nobody else looks inside.
        accuracy: How good `prompt_tokens` and the outputs' counts are, so long as no output brings a `usage`.
    """

    prompt_tokens: int
    choices: int
    payload: object
    accuracy: Accuracy = Accuracy.EXACT


class TokenCandidate(msgspec.Struct, frozen=True, gc=False):
    """A token the model could have generated; see `naru.api.inference.v1.TokenCandidate`."""

    token: str
    logprob: float
    token_id: int
    rank: int = 0


class TokenLogprob(msgspec.Struct, frozen=True, gc=False):
    """How likely a token was; see `naru.api.inference.v1.TokenLogprob`."""

    chosen: TokenCandidate
    top: tuple[TokenCandidate, ...] = ()
    unknown: bool = False


class PromptOutput(msgspec.Struct, frozen=True, gc=False):
    """What a request asked to be told of its prompt."""

    token_ids: Sequence[int] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class ToolCallDelta(msgspec.Struct, frozen=True, gc=False):
    """A piece of a call of one of the caller's tools; see `naru.api.inference.v1.ToolCallDelta`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


class ChoiceOutput(msgspec.Struct, frozen=True, gc=False):
    """What one choice gained in one engine step.

    Attributes:
        choice_index: Which choice.
        text: New text, may be empty.
        completion_tokens: Tokens generated for this choice so far.
        finish_reason: "stop", "length", "tool_calls", "abort" or "error"; empty while it goes on.
        cached_prompt_tokens: Prompt tokens that came from the prefix cache, so far as known.
        reasoning: New text of what the model thought; comes before `text`.
        tool_calls: New pieces of tool calls; come after `text`.
        reasoning_tokens: Tokens of this choice that were reasoning; told with its end.
        prompt: What was asked about the prompt; told once, with the first output.
        error: Set when the engine failed; then nothing more comes for any choice of the request.
        embedding: The vector of an input, in little-endian 32-bit floats; empty where none was asked for.
        score: How alike a pair is, where that was asked for.
        usage: What the engine says that the whole request used, where it only repeats a claim; comes with the last output.
    """

    choice_index: int
    text: str
    completion_tokens: int
    finish_reason: str = ""
    stop_text: str = ""
    stop_token_id: int | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    token_ids: Sequence[int] = ()
    cached_prompt_tokens: int = 0
    error: Exception | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    reasoning_tokens: int = 0
    prompt: PromptOutput | None = None
    embedding: bytes = b""
    score: float | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """What a prompt is to the model; `strings` are the tokens as its tokenizer writes them, None when nobody asked."""

    token_ids: Sequence[int]
    strings: Sequence[str] | None = None


Sink = Callable[[ChoiceOutput], None]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that can be asked for by name; `parent` is the model that it is an adapter of, empty when it is none."""

    name: str
    owned_by: str
    context_tokens: int
    create_time: float
    parent: str = ""


def adapter_as_model(base: ServedModel, adapter: Adapter) -> ServedModel:
    """An adapter of `base` among the models that can be asked for."""
    return replace(base, name=adapter.model, create_time=adapter.load_time, parent=base.name)


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """What the engine itself counted since it started, warm-up excluded; see `inference.engine_count`.

    Only of requests of which every choice has ended, which does not include what the engine failed at: of these nobody
    knows the exact figures. A request is counted just before its sink hears the last of it.
    """

    requests: int = 0
    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: EngineCounters) -> EngineCounters:
        return EngineCounters(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_prompt_tokens + other.cached_prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


class EngineHandle(Protocol):
    """A submitted request."""

    async def taken(self) -> None:
        """Waits until the engine works on it, or it was cancelled; most engines do at once.

        Raises NaruError when the engine takes it not after all; the sink hears nothing then.
        """

    async def cancel(self) -> None:
        """Stops all choices. The sink then gets a last output with `finish_reason="abort"` for each open choice."""

    def abandon(self) -> None:
        """Nobody waits for the end any more: the sink hears nothing more of it, and it is not counted when it comes."""


class Engine(Protocol):
    """An inference engine in this process."""

    async def start(self) -> None:
        """Loads the model and runs one warm-up request. Blocks the loop while it loads. Raises on failure."""

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Renders, tokenises and validates. Raises NaruError naming the field that is wrong."""

    async def submit(self, prepared: PreparedRequest, sink: Sink) -> EngineHandle:
        """Hands the choices to the engine. Raises NaruError when it takes none; `sink` hears nothing after that."""

    async def tokenize(self, request: EngineRequest, *, strings: bool) -> Tokens:
        """The tokens of the request's prompt, however many. Raises NaruError naming the field that is wrong."""

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The text of tokens. Raises NaruError when one of them is none of the model's."""

    def models(self) -> tuple[ServedModel, ...]:
        """What it serves; the first is the base model, adapters come last."""

    def control(self) -> EngineControl | None:
        """What it can be told beside requests; None when it can be told nothing."""

    def counters(self) -> EngineCounters:
        """What it has counted so far."""

    def slots(self) -> int:
        """How many choices it works on at the same time; more wait inside it, in the order in which they came."""

    def unfinished_requests(self) -> int:
        """Choices in the engine, running and waiting."""

    def healthy(self) -> bool:
        """False once it has died; it never comes back in this process."""

    def available(self) -> bool:
        """False while what it works with is away, such as an upstream; it comes back by itself."""

    async def responsive(self, timeout: float) -> bool:
        """Whether the engine answers within `timeout` seconds; a hung engine does not."""

    async def shutdown(self, timeout: float) -> None:
        """Ends the engine and its processes within about `timeout` seconds."""
