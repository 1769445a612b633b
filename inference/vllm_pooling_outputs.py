"""What vLLM's engine puts out for a model that makes vectors or scores, as outputs the service passes on, and counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from inference.engine import ChoiceOutput, Sink
from inference.engine_count import RequestCount
from naru.errors import unavailable
from naru.logs import Logger

_LEAST_NORM = 1e-12
"""What a vector of zeros is divided by."""


class PoolingOutputs:
    """Takes what all inputs of one request became to its sink: as it is, or vectors as scores once all are there.

    Args:
        inputs: How many there are.
        pairs: Which of them are compared; empty where the outputs themselves are wanted.
        scores: Whether an output is a score.
        sink: Who wants them. What it raises is logged, as `inference.vllm_outputs.Outputs` does and for the same reason.
        counted: Told what the engine has worked on, as it ends.
    """

    def __init__(
        self,
        inputs: int,
        pairs: Sequence[tuple[int, int]],
        sink: Sink,
        counted: RequestCount,
        logger: Logger,
        *,
        scores: bool = False,
    ) -> None:
        self._pairs = pairs
        self._scores = scores
        self._sink = sink
        self._counted = counted
        self._logger = logger
        self._open = set(range(inputs))
        self._vectors: dict[int, Any] = {}
        self._cached = 0

    @property
    def text_sink(self) -> None:
        """See `inference.vllm_submit.Outputs`: there is no text."""

    def take(self, index: int, output: Any) -> None:
        """Takes what the engine put out for an input: vLLM's PoolingRequestOutput, or an exception."""
        if index not in self._open:
            return
        try:
            failure = output if isinstance(output, BaseException) else output.error
            if failure is not None:
                self._fail(index, failure)
            else:
                self._pass_on(index, output)
        except Exception:  # it must not reach vLLM's loop over the outputs of a step
            self._logger.exception("engine_output_not_delivered")

    def mute(self) -> None:
        """Delivers and counts nothing more: the request was not taken after all, or nobody waits for its end."""
        self._open.clear()

    def _fail(self, index: int, failure: object) -> None:
        self._logger.error("engine_failed", exception=type(failure).__name__)
        self._open.clear()
        error = unavailable("inference", "The engine failed while making embeddings or scores.")
        self._sink(ChoiceOutput(0 if self._pairs else index, "", 0, finish_reason="error", error=error))

    def _pass_on(self, index: int, output: Any) -> None:
        vector = output.outputs.data.float().numpy()
        if vector.size and not math.isfinite(abs(vector).max()):
            # JSON has no such numbers, and whoever compares such vectors gets nonsense without a word.
            self._fail(index, ArithmeticError())
            return
        self._open.discard(index)
        cached = output.num_cached_tokens or 0
        self._counted.ended(index, len(output.prompt_token_ids), cached)
        # What was aborted ends with a vector of nothing.
        reason = "stop" if vector.size else "abort"
        if self._scores:
            score = float(vector.reshape(-1)[0]) if vector.size else None
            self._sink(ChoiceOutput(index, "", 0, finish_reason=reason, score=score, cached_prompt_tokens=cached))
            return
        if not self._pairs:
            # Little-endian on every machine.
            written = vector.astype("<f4").tobytes()
            self._sink(ChoiceOutput(index, "", 0, finish_reason=reason, embedding=written, cached_prompt_tokens=cached))
            return
        self._cached += cached
        if vector.size:
            self._vectors[index] = vector / max(float(vector @ vector) ** 0.5, _LEAST_NORM)
        if not self._open:
            self._tell_scores()

    def _tell_scores(self) -> None:
        for number, (query, document) in enumerate(self._pairs):
            complete = query in self._vectors and document in self._vectors
            self._sink(
                ChoiceOutput(
                    number,
                    "",
                    0,
                    finish_reason="stop" if complete else "abort",
                    score=float(self._vectors[query] @ self._vectors[document]) if complete else None,
                    # Inputs are cached, not pairs of them, so all of it is told once.
                    cached_prompt_tokens=0 if number else self._cached,
                )
            )
