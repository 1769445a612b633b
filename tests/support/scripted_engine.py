"""An engine that says what a test tells it to, when the test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from inference.engine import (
    ChoiceOutput,
    EngineCounters,
    EngineRequest,
    PreparedRequest,
    ServedModel,
    Sink,
    Tokens,
)
from inference.engine_control import EngineControl
from naru.errors import NaruError


@dataclass(slots=True)
class Submitted:
    """A request in the engine. `emit` speaks for one choice, as one engine step would."""

    request: EngineRequest
    sink: Sink
    choices: int
    confirm_cancel: bool
    cancelled: bool = False
    counts: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    abandoned: bool = False

    async def taken(self) -> None:
        """At once."""

    def abandon(self) -> None:
        """Nobody waits for its end."""
        self.abandoned = True

    def emit(self, text: str, *, choice: int = 0, tokens: int = 1, finish_reason: str = "", cached: int = 0) -> None:
        """One choice gains `tokens` tokens."""
        self.counts[choice] = self.counts.get(choice, 0) + tokens
        if finish_reason:
            self.ended.add(choice)
        self.sink(
            ChoiceOutput(
                choice_index=choice,
                text=text,
                completion_tokens=self.counts[choice],
                finish_reason=finish_reason,
                cached_prompt_tokens=cached,
            )
        )

    def fail(self, error: Exception) -> None:
        """The engine fails the whole request."""
        self.sink(ChoiceOutput(choice_index=0, text="", completion_tokens=self.counts.get(0, 0), error=error))

    async def cancel(self) -> None:
        """Ends the open choices as the real engine does, one more token included that was being worked on."""
        self.cancelled = True
        if self.confirm_cancel:
            for choice in sorted(set(range(self.choices)) - self.ended):
                self.emit("", choice=choice, tokens=1 if choice in self.counts else 0, finish_reason="abort")


class ScriptedEngine:
    """Keeps the promise of `inference.engine.Engine` on a test's word.

    Args:
        prompt_tokens: What every prompt has.
        models: What it serves.
    """

    def __init__(self, prompt_tokens: int = 7, models: tuple[str, ...] = ("small",)) -> None:
        self.prompt_tokens = prompt_tokens
        self.prepared: list[EngineRequest] = []
        self.submitted: list[Submitted] = []
        self.prepare_gate = asyncio.Event()
        self.submit_gate = asyncio.Event()
        self.prepare_gate.set()
        self.submit_gate.set()
        self.refuse_prepare: Exception | None = None
        self.refuse_submit: NaruError | None = None
        self.confirm_cancel = True
        self.slot_count = 64
        self.alive = True
        self.answers = True
        self._models = models
        self.controlled: EngineControl | None = None

    async def start(self) -> None:
        """Has nothing to load."""

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """Waits for `prepare_gate`."""
        self.prepared.append(request)
        await self.prepare_gate.wait()
        if self.refuse_prepare is not None:
            raise self.refuse_prepare
        return PreparedRequest(prompt_tokens=self.prompt_tokens, choices=request.sampling.n, payload=request)

    async def submit(self, prepared: PreparedRequest, sink: Sink) -> Submitted:
        """Waits for `submit_gate`."""
        request = prepared.payload
        assert isinstance(request, EngineRequest)
        await self.submit_gate.wait()
        if self.refuse_submit is not None:
            raise self.refuse_submit
        submitted = Submitted(request, sink, prepared.choices, self.confirm_cancel)
        self.submitted.append(submitted)
        return submitted

    async def tokenize(self, request: EngineRequest, *, strings: bool) -> Tokens:
        """As many tokens as every prompt has."""
        self.prepared.append(request)
        await self.prepare_gate.wait()
        if self.refuse_prepare is not None:
            raise self.refuse_prepare
        ids = range(self.prompt_tokens)
        return Tokens(ids, [f"<{one}>" for one in ids] if strings else None)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """The ids as they are."""
        return " ".join(map(str, token_ids))

    def models(self) -> tuple[ServedModel, ...]:
        """As the constructor was told."""
        return tuple(ServedModel(name, "test", 2048, 1_700_000_000.0) for name in self._models)

    def control(self) -> EngineControl | None:
        """As `controlled` says."""
        return self.controlled

    def counters(self) -> EngineCounters:
        """What it was told to say, of what ended."""
        ended = [one for one in self.submitted if len(one.ended) == one.choices and not one.abandoned]
        generated = sum(sum(one.counts.values()) for one in ended)
        return EngineCounters(len(ended), self.prompt_tokens * len(ended), 0, generated)

    def slots(self) -> int:
        """As `slot_count` says."""
        return self.slot_count

    def unfinished_requests(self) -> int:
        """Open choices."""
        return sum(submitted.choices - len(submitted.ended) for submitted in self.submitted)

    def healthy(self) -> bool:
        """As `alive` says."""
        return self.alive

    def available(self) -> bool:
        """Always."""
        return True

    async def responsive(self, timeout: float) -> bool:
        """As `answers` says."""
        return self.answers

    async def shutdown(self, timeout: float) -> None:
        """Has nothing to end."""
