"""What one generation uses, as its engine tells it."""

from __future__ import annotations

from inference.admission import choices_of_each_prompt
from inference.engine import ChoiceOutput, EngineRequest, PreparedRequest
from naru.usage import Accuracy, Usage


class Meter:
    """Counts; without arguments, for a request that was not prepared yet.

    Args:
        prompt_tokens: Of all prompts.
        choices: Over all prompts.
        choices_per_prompt: Of each.
        accuracy: How good the engine's own figures are.
    """

    def __init__(
        self,
        prompt_tokens: int = 0,
        choices: int = 0,
        choices_per_prompt: int = 1,
        accuracy: Accuracy = Accuracy.EXACT,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self._choices_per_prompt = choices_per_prompt
        self._accuracy = accuracy
        self._completion = [0] * choices
        self._cached = [0] * choices
        self._reasoning = 0
        self._reported: Usage | None = None

    @classmethod
    def of(cls, prepared: PreparedRequest, request: EngineRequest) -> Meter:
        """For a request that was prepared."""
        per_prompt = choices_of_each_prompt(request) if prepared.choices > 1 else 1
        return cls(prepared.prompt_tokens, prepared.choices, per_prompt, prepared.accuracy)

    @property
    def choices(self) -> int:
        """Over all prompts."""
        return len(self._completion)

    def take(self, output: ChoiceOutput) -> int:
        """Takes what a choice gained; how many tokens it is. What a failure says of them may be less than is known."""
        index = output.choice_index
        if output.usage is not None:
            self._reported = output.usage
        if output.error is not None:
            self._completion[index] = max(self._completion[index], output.completion_tokens)
            return 0
        gained = output.completion_tokens - self._completion[index]
        self._completion[index] = output.completion_tokens
        if output.cached_prompt_tokens:
            self._cached[index] = output.cached_prompt_tokens
        self._reasoning += output.reasoning_tokens
        return gained

    def accuracy(self, *, counted: bool) -> Accuracy:
        """How good `usage` is; `counted` when the engine has told the end of every choice."""
        if counted and self._accuracy is Accuracy.EXACT:
            return Accuracy.EXACT
        return Accuracy.ESTIMATED if self._reported is None else Accuracy.REPORTED

    def usage(self) -> Usage:
        """What was used so far; what was reported of the whole request, where that was."""
        if self._reported is not None:
            return self._reported
        # Later choices of a prompt find in the cache what its first choice has just computed: only the first one counts.
        cached = sum(self._cached[:: self._choices_per_prompt])
        return Usage(
            prompt_tokens=self.prompt_tokens,
            completion_tokens=sum(self._completion),
            cached_prompt_tokens=min(cached, self.prompt_tokens),
            reasoning_tokens=self._reasoning,
        )
