"""What an engine counts itself, so that what is billed can be compared with it.

An engine counts what it puts out, token by token, and the prompts that it says it worked on. It never sees a usage event;
the event is made by `inference.generation`, of the figures that each output carries and of what was tokenised. The two meet
in accounting alone.
"""

from __future__ import annotations

from inference.engine import EngineCounters


class EngineCount:
    """The figures of one run of an engine. Begin counting after the warm-up."""

    def __init__(self) -> None:
        self._ended = EngineCounters()

    @property
    def ended(self) -> EngineCounters:
        """The figures of all requests that have ended."""
        return self._ended

    def begin(self, choices: int, per_prompt: int) -> RequestCount:
        """Counts one request: so many choices, of which each prompt has `per_prompt` in a row."""
        return RequestCount(self, choices, per_prompt)

    def add(self, request: EngineCounters) -> None:
        """Adds a request that has ended."""
        self._ended = self._ended + request


class RequestCount:
    """The figures of one request while it runs."""

    __slots__ = ("_cached", "_completion", "_count", "_open", "_per_prompt", "_prompt")

    def __init__(self, count: EngineCount, choices: int, per_prompt: int) -> None:
        self._count = count
        self._open = choices
        self._per_prompt = per_prompt
        self._prompt = self._cached = self._completion = 0

    def generated(self, tokens: int) -> None:
        """A choice gained tokens."""
        self._completion += tokens

    def ended(self, choice: int, prompt_tokens: int, cached_tokens: int) -> None:
        """A choice ended, having worked on so many prompt tokens, some of them cached. Call once for each choice.

        The choices of a prompt share it, and later ones find in the cache what the first has just computed.
        """
        if choice % self._per_prompt == 0:
            self._prompt += prompt_tokens
            self._cached += cached_tokens
        self._open -= 1
        if self._open == 0:
            self._count.add(EngineCounters(1, self._prompt, min(self._cached, self._prompt), self._completion))
