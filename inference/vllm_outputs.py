"""What vLLM's engine puts out, as the outputs the service passes on, counted as they pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from traceback import extract_tb
from typing import Any

import msgspec
from msgspec.structs import replace

from inference.engine import ChoiceOutput, PromptOutput, Sink, TokenCandidate, TokenLogprob
from inference.engine_count import RequestCount
from inference.vllm_parsers import ChoiceParser
from naru.errors import NaruError, Reason, invalid_argument, unavailable
from naru.logs import Logger

_LEAST_LOGPROB = -9999.0
"""What `vllm serve` says for minus infinity, which JSON cannot."""


class OutputOptions(msgspec.Struct, frozen=True):
    """What of an output was asked for.

    Attributes:
        top_logprobs: How many candidates per token; -1 for all that the engine gives; None for no logprobs at all.
        prompt_token_ids: Whether to tell the prompt's token ids.
        prompt_logprobs: Whether to tell how likely the prompt's tokens were; the engine has to know of it.
        grammar: The field that brought what the answer has to keep to; empty when it is free.
    """

    top_logprobs: int | None = None
    token_ids: bool = False
    prompt_token_ids: bool = False
    prompt_logprobs: bool = False
    grammar: str = ""

    @property
    def tells_prompt(self) -> bool:
        """Whether anything of the prompt is told beside an echo."""
        return self.prompt_token_ids or self.prompt_logprobs


@dataclass(frozen=True, slots=True)
class Reading:
    """How one choice is read, where it is more than its text.

    Attributes:
        decode: The text of a token.
        echo: Text of the prompt, which the choice begins with; None for a choice that begins with its own text.
        echo_tokens: Whether logprobs begin with the prompt's too, as its text does.
        generates: Whether what is generated is told at all: a completion of 0 tokens is its prompt only.
        parser: Reads tool calls and reasoning.
    """

    decode: Callable[[int], str]
    echo: str | None = None
    echo_tokens: bool = False
    generates: bool = True
    parser: ChoiceParser | None = None


class Outputs:
    """Takes the outputs of all choices of one request to its sink, each choice's end exactly once.

    Args:
        count: How many choices there are.
        sink: Who wants them. What it raises is logged: vLLM hands out a step's outputs in one loop, and an exception in it
            would end every request of the engine.
        counted: Told what the engine puts out, as it comes.
        readings: How each choice is read; empty for text as it comes.
    """

    def __init__(
        self,
        count: int,
        options: OutputOptions,
        sink: Sink,
        counted: RequestCount,
        logger: Logger,
        *,
        readings: Sequence[Reading] = (),
    ) -> None:
        self._options = options
        self._readings = readings
        self._begun: set[int] = set()
        self._sink = sink
        self._counted = counted
        self._logger = logger
        self._tokens = [0] * count
        self._open = set(range(count))

    @property
    def text_sink(self) -> Callable[[int, str, int, int], None] | None:
        """See `inference.vllm_submit.Outputs`."""
        more = self._readings or self._options.top_logprobs is not None or self._options.token_ids
        return None if more else self._take_text

    def _take_text(self, index: int, text: str, tokens: int, cached_prompt_tokens: int) -> None:
        if index not in self._open:
            return
        self._tokens[index] += tokens
        self._counted.generated(tokens)
        told = ChoiceOutput(index, text, self._tokens[index], cached_prompt_tokens=cached_prompt_tokens)
        try:
            self._sink(told)
        except Exception:  # see the class: it must not reach vLLM's loop
            self._logger.exception("engine_output_not_delivered")

    def take(self, index: int, output: Any) -> None:
        """Takes what the engine put out for a choice: vLLM's RequestOutput with one completion, or an exception."""
        if index not in self._open:
            return
        try:
            if isinstance(output, BaseException):
                self._logger.error("engine_failed", exception=type(output).__name__)
                self._fail(index, unavailable("inference", "The engine failed while generating."))
            else:
                self._pass_on(index, output)
        except Exception:  # see the class: it must not reach vLLM's loop
            self._logger.exception("engine_output_not_delivered")

    def mute(self) -> None:
        """Delivers and counts nothing more: the request was not taken after all, or nobody waits for its end."""
        self._open.clear()

    def _fail(self, index: int, error: NaruError) -> None:
        """Ends the request. What its other choices have generated counts, also where a parser holds it back."""
        others, self._open = self._open - {index}, set()
        for other in others:
            if self._tokens[other]:
                self._sink(ChoiceOutput(other, "", self._tokens[other]))
        self._sink(ChoiceOutput(index, "", self._tokens[index], finish_reason="error", error=error))

    def _pass_on(self, index: int, output: Any) -> None:
        (completion,) = output.outputs
        new_tokens = len(completion.token_ids)
        self._tokens[index] += new_tokens
        self._counted.generated(new_tokens)
        if output.finished:
            self._open.discard(index)
        try:
            read = self._read(index, completion, output)
        except Exception as error:  # noqa: BLE001 -- what a model writes may confuse a parser; only this request ends
            self._fail(index, self._unread(error))
            return
        if output.finished and (read is None or read.error is None):
            # Not before it is read: what fails is settled by an estimate.
            self._counted.ended(index, len(output.prompt_token_ids or ()), output.num_cached_tokens or 0)
        if read is not None:
            self._sink(read)

    def _unread(self, fault: Exception) -> NaruError:
        # Not its text, which may hold what the model wrote.
        where = extract_tb(fault.__traceback__)[-1]
        self._logger.error(
            "engine_output_not_read", exception=type(fault).__name__, where=f"{where.filename}:{where.lineno}"
        )
        return NaruError(Reason.INTERNAL, "The model's answer could not be read.")

    def _no_grammar(self, index: int) -> NaruError | None:
        """What to say where the engine could make no grammar, or one that no text keeps to: it knows by the first token."""
        field = self._options.grammar
        if not field or self._tokens[index] > 1:
            return None
        return invalid_argument(
            field, f"`{field}` holds a schema, pattern or grammar that is too complex, or that no text can keep to."
        )

    def _read(self, index: int, completion: Any, output: Any) -> ChoiceOutput | None:
        """What to tell of an output; None while a parser holds it back."""
        reason = completion.finish_reason or ""
        stop = completion.stop_reason
        options = self._options
        told = ChoiceOutput(
            choice_index=index,
            text=completion.text,
            completion_tokens=self._tokens[index],
            # A repetition that the caller asked to be stopped at is a stop in OpenAI's terms.
            finish_reason="stop" if reason == "repetition" else reason,
            stop_text=stop if isinstance(stop, str) and reason == "stop" else "",
            stop_token_id=stop if isinstance(stop, int) else None,
            logprobs=() if options.top_logprobs is None else _logprobs(completion, options),
            token_ids=tuple(completion.token_ids) if options.token_ids else (),
            cached_prompt_tokens=output.num_cached_tokens or 0,
            error=self._no_grammar(index) if reason == "error" else None,
        )
        if not self._readings:
            return told
        reading = self._readings[index]
        read = told if reading.parser is None else reading.parser.read(told, completion.token_ids)
        if read is None:
            return None
        if index not in self._begun:
            self._begun.add(index)
            return _with_prompt(read, reading, output, options)
        return read if reading.generates else replace(read, text="", logprobs=(), token_ids=())


def _with_prompt(first: ChoiceOutput, reading: Reading, output: Any, options: OutputOptions) -> ChoiceOutput:
    """The first output of a choice, with what was asked about its prompt."""
    if not reading.generates:
        first = replace(first, text="", logprobs=(), token_ids=())
    if reading.echo is not None:
        first = replace(first, text=reading.echo + first.text)
    steps = output.prompt_logprobs
    if reading.echo_tokens and options.top_logprobs is not None and steps is not None:
        echoed = _prompt_logprobs(output, reading, options)
        first = replace(first, logprobs=echoed + first.logprobs)
    if not (options.prompt_token_ids or (options.prompt_logprobs and steps is not None)):
        return first
    prompt = PromptOutput(
        token_ids=tuple(output.prompt_token_ids) if options.prompt_token_ids else (),
        # As many as the engine gives: how many was asked of it.
        logprobs=_prompt_logprobs(output, reading, replace(options, top_logprobs=-1))
        if options.prompt_logprobs
        else (),
    )
    return replace(first, prompt=prompt)


def _prompt_logprobs(output: Any, reading: Reading, options: OutputOptions) -> tuple[TokenLogprob, ...]:
    said = []
    for token_id, step in zip(output.prompt_token_ids, output.prompt_logprobs, strict=False):
        if step is None:
            said.append(TokenLogprob(TokenCandidate(reading.decode(token_id), 0.0, token_id), unknown=True))
        else:
            said.append(_token_logprob(token_id, step, options))
    return tuple(said)


def _logprobs(completion: Any, options: OutputOptions) -> tuple[TokenLogprob, ...]:
    steps = completion.logprobs or ()
    return tuple(
        _token_logprob(token_id, step or {}, options)
        for token_id, step in zip(completion.token_ids, steps, strict=False)
    )


def _token_logprob(token_id: int, step: Mapping[int, Any], options: OutputOptions) -> TokenLogprob:
    chosen = _candidate(token_id, step.get(token_id))
    if options.top_logprobs == 0:
        return TokenLogprob(chosen)
    likeliest: Sequence[tuple[int, Any]] = sorted(step.items(), key=lambda entry: -entry[1].logprob)
    if options.top_logprobs is not None and options.top_logprobs > 0:
        likeliest = likeliest[: options.top_logprobs]
    return TokenLogprob(chosen, tuple(_candidate(number, entry) for number, entry in likeliest))


def _candidate(token_id: int, entry: Any) -> TokenCandidate:
    text = getattr(entry, "decoded_token", None) or ""
    logprob = _LEAST_LOGPROB if entry is None else max(entry.logprob, _LEAST_LOGPROB)
    return TokenCandidate(text, logprob, token_id, getattr(entry, "rank", None) or 0)
