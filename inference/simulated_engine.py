"""An engine that loads nothing and generates at a set rate: for measuring what is around an engine, and for breaking it.

It is deterministic, it says of itself that it is simulated, and it is never chosen by default.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from inference.engine import (
    ChoiceOutput,
    EngineCounters,
    EngineHandle,
    EngineRequest,
    PreparedRequest,
    ServedModel,
    Sink,
    Tokens,
)
from inference.engine_control import AdapterBounds
from inference.engine_count import EngineCount, RequestCount
from inference.openai_body import asked_max_tokens, choices_per_prompt, is_chat, not_supported, read_body, too_long
from inference.simulated_account import SimulatedAccount
from inference.simulated_control import SimulatedControl
from inference.simulated_logprobs import logprob, top_logprobs
from inference.simulated_text import Answer, answer_up_to_stop, first_words, message_text, pieces, text_of, token_id
from naru.errors import unavailable
from naru.logs import Logger

_COMPLETION_TOKENS = 16
_SHORTEST_STEP = 0.001
_UNSUPPORTED = (
    "tools",
    "response_format",
    "structured_outputs",
    "echo",
    "prompt_logprobs",
    "suffix",
    "use_beam_search",
)


@dataclass(frozen=True, slots=True)
class SimulatedEngineConfig:
    """How it behaves.

    Attributes:
        served_name: The name that requests ask for.
        tokens_per_second: Per choice, however many there are; infinity for a token in each turn of the loop.
        prefill_seconds: From having a slot to the first token.
        slots: Choices that are worked on at the same time; more wait in the order in which they came.
        load_seconds: How long `start` takes.
        context_tokens: Most tokens of prompt and output together.
        answer_tokens: Where an answer ends by itself, unless `ignore_eos` is asked for.
        die_after_tokens: It dies after generating so many tokens over all requests; None for never.
        hang_after_tokens: It generates no more and does not answer after so many; None for never.
        adapters: What adapters it takes; None for none. The text of an answer is another one with each.
        account: File that gets a line for each choice that begins or ends; None for none.
    """

    served_name: str = "simulated"
    tokens_per_second: float = 50.0
    prefill_seconds: float = 0.02
    slots: int = 1024
    load_seconds: float = 0.0
    context_tokens: int = 8192
    answer_tokens: int = 64
    die_after_tokens: int | None = None
    hang_after_tokens: int | None = None
    account: Path | None = None
    adapters: AdapterBounds | None = None


@dataclass(frozen=True, slots=True)
class SimulatedPayload:
    """What `submit` needs of a prepared request; `prompts` is the tokens of each."""

    answers: tuple[Answer, ...]
    prompts: tuple[int, ...]
    stream: bool
    top_logprobs: int | None
    token_ids: bool
    user: str


@dataclass(slots=True)
class Running:
    """A choice in the engine: how much of its answer was generated, and how much of that was told.

    `begin` is when its first token comes; None while it has no slot.
    """

    index: int
    answer: Answer
    payload: SimulatedPayload
    sink: Sink
    count: RequestCount
    begin: float | None = None
    generated: int = 0
    told: int = 0
    told_text: int = 0


@dataclass(slots=True)
class SimulatedHandle:
    """A submitted request."""

    engine: SimulatedEngine
    choices: list[Running] = field(default_factory=list)

    async def taken(self) -> None:
        """See `EngineHandle.taken`. At once."""

    async def cancel(self) -> None:
        """See `EngineHandle.cancel`."""
        self.engine.abort(self.choices)

    def abandon(self) -> None:
        """See `EngineHandle.abandon`."""
        self.engine.forget(self.choices)


class SimulatedEngine:
    """Keeps the promise of `inference.engine.Engine` without a model; see the module.

    Args:
        config: How it behaves.
        logger: Where it reports.
    """

    def __init__(self, config: SimulatedEngineConfig, logger: Logger) -> None:
        self._config = config
        self._logger = logger
        unpaced = math.isinf(config.tokens_per_second)
        self._step_seconds = 0.0 if unpaced else max(_SHORTEST_STEP, 1 / config.tokens_per_second)
        self._tokens_per_step = 1 if unpaced else max(1, round(config.tokens_per_second * self._step_seconds))
        self._running: dict[int, Running] = {}
        self._work = asyncio.Event()
        self._stepper: asyncio.Task[None] | None = None
        self._models: tuple[ServedModel, ...] = ()
        self._control: SimulatedControl | None = None
        self._dead = False
        self._count = EngineCount()
        self._generated = 0
        self._account = SimulatedAccount(config.account)

    async def start(self) -> None:
        """See `Engine.start`."""
        await asyncio.sleep(self._config.load_seconds)
        base = ServedModel(self._config.served_name, "simulated", self._config.context_tokens, create_time=time.time())
        self._models, self._control = (base,), SimulatedControl(self._config.adapters, base)
        self._stepper = asyncio.get_running_loop().create_task(self._step_forever())

    async def prepare(self, request: EngineRequest) -> PreparedRequest:
        """See `Engine.prepare`."""
        self._require_alive()
        body = read_body(request)
        for name in _UNSUPPORTED:
            if body.get(name):
                raise not_supported(name, f"The simulated engine does not support `{name}`.")
        chat = is_chat(request)
        prompts = [body["messages"]] if chat else _prompts(body["prompt"])
        answers: list[Answer] = []
        lengths = tuple(_count(prompt) for prompt in prompts)
        for prompt, length in zip(prompts, lengths, strict=True):
            for number in range(choices_per_prompt(body)):
                cap = request.output_token_cap
                seed = f"{body.get('seed')}\n{number}" + (f"\n{request.model}" if self._adapted(request) else "")
                answers.append(self._answer(body, chat, prompt, prompt_tokens=length, seed=seed, cap=cap))
        payload = SimulatedPayload(
            answers=tuple(answers),
            prompts=lengths,
            stream=request.stream,
            top_logprobs=top_logprobs(body, chat),
            token_ids=bool(body.get("return_token_ids")),
            user=str(body.get("user") or ""),
        )
        return PreparedRequest(prompt_tokens=sum(lengths), choices=len(answers), payload=payload)

    async def submit(self, prepared: PreparedRequest, sink: Sink) -> EngineHandle:
        """See `Engine.submit`."""
        self._require_alive()
        payload = prepared.payload
        if not isinstance(payload, SimulatedPayload):
            raise TypeError("The request was prepared by another engine.")
        now = asyncio.get_running_loop().time()
        handle = SimulatedHandle(self)
        count = self._count.begin(len(payload.answers), len(payload.answers) // len(payload.prompts))
        for index, answer in enumerate(payload.answers):
            choice = Running(index, answer, payload, sink, count)
            if len(self._running) < self._config.slots:
                choice.begin = now + self._config.prefill_seconds
            handle.choices.append(choice)
            self._running[id(choice)] = choice
            self._account.began(payload.user, index)
        self._work.set()
        return handle

    async def tokenize(self, request: EngineRequest, *, strings: bool) -> Tokens:
        """See `Engine.tokenize`."""
        self._require_alive()
        body = read_body(request)
        texts = pieces(body["messages" if is_chat(request) else "prompt"])
        return Tokens([token_id(text) for text in texts], texts if strings else None)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Engine.detokenize`. Knows the words it answers in, and no other tokens."""
        self._require_alive()
        return text_of(token_ids)

    def models(self) -> tuple[ServedModel, ...]:
        """See `Engine.models`. Empty before `start`."""
        return self._models + (() if self._control is None else self._control.adapters())

    def control(self) -> SimulatedControl | None:
        """See `Engine.control`. None before `start`."""
        return self._control

    def counters(self) -> EngineCounters:
        """See `Engine.counters`."""
        return self._count.ended

    def slots(self) -> int:
        """See `Engine.slots`."""
        return self._config.slots

    def unfinished_requests(self) -> int:
        """See `Engine.unfinished_requests`."""
        return len(self._running)

    def healthy(self) -> bool:
        """See `Engine.healthy`. False before `start` and after `shutdown` too."""
        return self._stepper is not None and not self._dead

    def available(self) -> bool:
        """See `Engine.available`. It needs nothing."""
        return True

    async def responsive(self, timeout: float) -> bool:
        """See `Engine.responsive`."""
        if self._hangs():
            await asyncio.sleep(timeout)
            return False
        return self.healthy()

    async def shutdown(self, timeout: float) -> None:
        """See `Engine.shutdown`. What still runs ends with an error. Takes no time."""
        stepper, self._stepper = self._stepper, None
        if stepper is not None:
            stepper.cancel()
            await asyncio.wait([stepper])
        self._die()
        self._account.close()

    def abort(self, choices: list[Running]) -> None:
        """Ends those of the choices that still run. A hung engine does nothing."""
        if self._hangs():
            return
        for choice in choices:
            if self._running.pop(id(choice), None) is not None:
                self._end(choice, "abort")

    def forget(self, choices: list[Running]) -> None:
        """Ends those of the choices that still run, without a word. A hung engine too."""
        for choice in choices:
            self._running.pop(id(choice), None)

    def _require_alive(self) -> None:
        if not self.healthy():
            raise unavailable("inference", "The engine is not running.")

    def _hangs(self) -> bool:
        limit = self._config.hang_after_tokens
        return limit is not None and self._generated >= limit

    def _adapted(self, request: EngineRequest) -> bool:
        return self._control is not None and self._control.adapts(request.model)

    def _answer(
        self, body: dict[str, Any], chat: bool, prompt: Any, *, prompt_tokens: int, seed: str, cap: int | None
    ) -> Answer:
        context = self._config.context_tokens
        asked = asked_max_tokens(body, chat)
        room = context - prompt_tokens
        if room < 1 or (asked is not None and asked[1] > room):
            raise too_long("messages" if chat else "prompt", prompt_tokens, context, asked[1] if asked else None)
        limit = asked[1] if asked is not None else (room if chat else _COMPLETION_TOKENS)
        limit = min(limit, room) if cap is None else min(limit, room, cap)
        natural = limit + 1 if body.get("ignore_eos") else self._config.answer_tokens
        text = message_text(prompt[-1]) if chat else str(prompt)
        tokens = first_words(f"{text}\n{seed}", min(limit, natural))
        return answer_up_to_stop(tokens, _stops(body), "stop" if natural <= limit else "length")

    async def _step_forever(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not self._dead:
            await self._work.wait()
            if self._control is not None:
                await self._control.wait_going()
            # Of a step that comes late no more than its own length is made up for: the rate is the most an engine does.
            due = max(due + self._step_seconds, loop.time())
            await asyncio.sleep(max(due - loop.time(), 0))
            self._step(loop.time())
            if not self._running:
                self._work.clear()

    def _step(self, now: float) -> None:
        for choice in tuple(islice(self._running.values(), self._config.slots)):
            if choice.begin is None:
                choice.begin = now + self._config.prefill_seconds
            if choice.begin > now or id(choice) not in self._running:
                continue
            if self._hangs():
                return
            self._advance(choice)
            limit = self._config.die_after_tokens
            if limit is not None and self._generated >= limit:
                self._die()
                return

    def _advance(self, choice: Running) -> None:
        size = len(choice.answer.tokens)
        gained = min(self._tokens_per_step, size - choice.generated)
        choice.generated += gained
        self._generated += gained
        choice.count.generated(gained)
        if choice.generated == size:
            del self._running[id(choice)]
            self._end(choice, choice.answer.finish_reason)
        elif choice.payload.stream:
            self._tell(choice, "")

    def _end(self, choice: Running, finish_reason: str) -> None:
        self._tell(choice, finish_reason)
        # In this order: what is noted as ended has been metered, also when the process is killed in between.
        self._account.ended(choice.payload.user, choice.index, choice.generated)

    def _tell(self, choice: Running, finish_reason: str) -> None:
        answer, payload = choice.answer, choice.payload
        new = answer.tokens[choice.told : choice.generated]
        # Nearly always one.
        piece = new[0][1] if len(new) == 1 else "".join([text for _, text in new])
        text = piece[: max(0, answer.text_length - choice.told_text)]
        choice.told = choice.generated
        if finish_reason:
            per_prompt = len(payload.answers) // len(payload.prompts)
            choice.count.ended(choice.index, payload.prompts[choice.index // per_prompt], 0)
        choice.told_text += len(piece)
        top = payload.top_logprobs
        output = ChoiceOutput(
            choice_index=choice.index,
            text=text,
            completion_tokens=choice.generated,
            finish_reason=finish_reason,
            stop_text=answer.stop_text if finish_reason == "stop" else "",
            logprobs=() if top is None else tuple([logprob(token, top) for token in new]),
            token_ids=tuple([token for token, _ in new]) if payload.token_ids else (),
        )
        self._deliver(choice.sink, output)

    def _deliver(self, sink: Sink, output: ChoiceOutput) -> None:
        try:
            sink(output)
        except Exception:  # one request's sink must not end the engine
            self._logger.exception("engine_output_not_delivered")

    def _die(self) -> None:
        self._dead = True
        told: set[int] = set()
        for choice in tuple(self._running.values()):
            if id(choice.payload) not in told:
                told.add(id(choice.payload))
                error = unavailable("inference", "The engine failed while generating.")
                output = ChoiceOutput(choice.index, "", choice.generated, finish_reason="error", error=error)
                self._deliver(choice.sink, output)
        self._running.clear()


def _prompts(prompt: Any) -> list[Any]:
    return list(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else [prompt]


def _count(prompt: Any) -> int:
    return len(prompt) if isinstance(prompt, list) and isinstance(prompt[0], int) else len(pieces(prompt))


def _stops(body: dict[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or ()
    return (stop,) if isinstance(stop, str) else tuple(text for text in stop if text)
