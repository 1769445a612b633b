"""Taking a step's text from vLLM's engine before it makes objects of it.

For each token vLLM counts, tracks and checks what a plain answer has no use for, and makes two objects of 24 fields. Here further
tokens of such an answer are detokenised by vLLM and handed over as text. All else goes vLLM's way: the first and the last output
of a choice, what has stop strings to look for, log probabilities, token ids, tools, reasoning and echoes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.vllm_compat import Vllm


class StepTexts:
    """Stands before vLLM's loop over the outputs of a step.

    Args:
        vllm: vLLM's names.
        output_processor: Of the engine; gets another `process_outputs` (vllm/v1/engine/output_processor.py:681).
        request_state: vLLM's RequestState, as `vllm_compat.text_hook` found it.
    """

    def __init__(self, vllm: Vllm, output_processor: Any, request_state: Any) -> None:
        self._delta = vllm.RequestOutputKind.DELTA
        self._states: dict[str, Any] = output_processor.request_states
        self._process = output_processor.process_outputs
        self._usual = request_state
        self._telling = telling_text(request_state)
        output_processor.process_outputs = self.process

    def tell(self, engine_id: str) -> None:
        """Has the further text of a request that was just added go to its `Collector`."""
        state: Any = self._states.get(engine_id)
        # Any other class is one that somebody else has changed already; what detokenises nothing has no text.
        usual = type(state) is self._usual and hasattr(state.detokenizer, "stop")
        if usual and state.output_kind == self._delta and state.stream_interval == 1:
            state.__class__ = self._telling

    def process(
        self,
        engine_core_outputs: Sequence[Any],
        engine_core_timestamp: Any = None,
        iteration_stats: Any = None,
        **more: Any,
    ) -> Any:
        """What vLLM's method of this name returns of all outputs but those that are text and nothing else."""
        left = engine_core_outputs
        if iteration_stats is None:
            left = [output for output in engine_core_outputs if not self._took(output)]
        return self._process(left, engine_core_timestamp, iteration_stats, **more)

    def _took(self, output: Any) -> bool:
        state: Any = self._states.get(output.request_id)
        return type(state) is self._telling and bool(state.took_further(output))


def telling_text(request_state: Any) -> Any:
    """A class like vLLM's RequestState, whose further text passes as it is.

    Only for requests that are told step by step (DELTA), each with a `Collector` for its queue.
    """

    class TellingText(request_state):  # type: ignore[misc]  # vLLM is not typed towards us
        def took_further(self, output: Any) -> bool:
            """Takes an output of further tokens; False for one that is vLLM's to take."""
            detokenizer = self.detokenizer
            if output.finish_reason is not None or self.is_prefilling or detokenizer.stop:
                return False
            # What vLLM's `update` does without stop strings, but for the whole text, which nobody asks for: it would be
            # copied for each token.
            text = ""
            for token_id in output.new_token_ids:
                detokenizer.token_ids.append(token_id)
                text += detokenizer.decode_next(token_id)
            self.queue.put_text(text, len(output.new_token_ids), self.num_cached_tokens)
            return True

        def make_request_output(
            self, new_token_ids: Any, pooling_output: Any, finish_reason: Any, *further: Any, **named: Any
        ) -> Any:
            if finish_reason is not None:
                return super().make_request_output(new_token_ids, pooling_output, finish_reason, *further, **named)
            text = self.detokenizer.get_next_output_text(False, True)
            self.queue.put_text(text, len(new_token_ids), self.num_cached_tokens)
            return None

    return TellingText
