"""What vLLM's engine puts out, as the outputs the service passes on, counted as they pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference.engine import ChoiceOutput, Sink, TokenCandidate, TokenLogprob
from inference.engine_count import RequestCount
from naru.errors import unavailable
from naru.logs import Logger

_LEAST_LOGPROB = -9999.0
"""What `vllm serve` says for minus infinity, which JSON cannot."""


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What of an output was asked for.

    Attributes:
        top_logprobs: How many candidates per token; -1 for all that the engine gives; None for no logprobs at all.
        tokens_as_ids: Whether a candidate's text is "token_id:<id>", which unlike its text is never ambiguous.
    """

    top_logprobs: int | None = None
    token_ids: bool = False
    tokens_as_ids: bool = False


class Outputs:
    """Takes the outputs of all choices of one request to its sink, each choice's end exactly once.

    Args:
        count: How many choices there are.
        sink: Who wants them. What it raises is logged: vLLM hands out a step's outputs in one loop, and an exception in it
            would end every request of the engine.
        counted: Told what the engine puts out, as it comes.
    """

    def __init__(
        self,
        count: int,
        options: OutputOptions,
        sink: Sink,
        counted: RequestCount,
        logger: Logger,
    ) -> None:
        self._options = options
        self._sink = sink
        self._counted = counted
        self._logger = logger
        self._tokens = [0] * count
        self._open = set(range(count))

    def take(self, index: int, output: Any) -> None:
        """Takes what the engine put out for a choice: vLLM's RequestOutput with one completion, or an exception."""
        if index not in self._open:
            return
        try:
            if isinstance(output, BaseException):
                self._fail(index, output)
            else:
                self._pass_on(index, output)
        except Exception:  # see the class: it must not reach vLLM's loop
            self._logger.exception("engine_output_not_delivered")

    def mute(self) -> None:
        """Delivers and counts nothing more: the request was not taken after all, or nobody waits for its end."""
        self._open.clear()

    def _fail(self, index: int, failure: BaseException) -> None:
        self._open.clear()
        self._logger.error("engine_failed", exception=type(failure).__name__)
        error = unavailable("inference", "The engine failed while generating.")
        self._sink(ChoiceOutput(index, "", self._tokens[index], finish_reason="error", error=error))

    def _pass_on(self, index: int, output: Any) -> None:
        (completion,) = output.outputs
        new_tokens = len(completion.token_ids)
        self._tokens[index] += new_tokens
        self._counted.generated(new_tokens)
        if output.finished:
            self._open.discard(index)
            self._counted.ended(index, len(output.prompt_token_ids or ()), output.num_cached_tokens or 0)
        reason = completion.finish_reason or ""
        stop = completion.stop_reason
        options = self._options
        self._sink(
            ChoiceOutput(
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
            )
        )


def _logprobs(completion: Any, options: OutputOptions) -> tuple[TokenLogprob, ...]:
    steps = completion.logprobs or ()
    return tuple(
        _token_logprob(token_id, step or {}, options)
        for token_id, step in zip(completion.token_ids, steps, strict=False)
    )


def _token_logprob(token_id: int, step: dict[int, Any], options: OutputOptions) -> TokenLogprob:
    chosen = _candidate(token_id, step.get(token_id), options)
    if options.top_logprobs == 0:
        return TokenLogprob(chosen)
    likeliest: Sequence[tuple[int, Any]] = sorted(step.items(), key=lambda entry: -entry[1].logprob)
    if options.top_logprobs is not None and options.top_logprobs > 0:
        likeliest = likeliest[: options.top_logprobs]
    return TokenLogprob(chosen, tuple(_candidate(number, entry, options) for number, entry in likeliest))


def _candidate(token_id: int, entry: Any, options: OutputOptions) -> TokenCandidate:
    text = f"token_id:{token_id}" if options.tokens_as_ids else (getattr(entry, "decoded_token", None) or "")
    logprob = _LEAST_LOGPROB if entry is None else max(entry.logprob, _LEAST_LOGPROB)
    return TokenCandidate(text, logprob, token_id)
