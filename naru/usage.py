"""What the engine worked for a request, and what is known of that."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request, as `naru.api.common.v1.Usage` documents them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_prompt_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


class Evidence(IntEnum):
    """How good a report is; its rank. Better evidence replaces worse, equal or worse changes nothing."""

    NONE = 0
    ACCEPTED = 1
    DELIVERED = 2
    FINAL = 3


class Accuracy(StrEnum):
    """How exact figures are."""

    EXACT = "exact"
    REPORTED = "reported"
    ESTIMATED = "estimated"


class Outcome(StrEnum):
    """How a request ended."""

    COMPLETED = "completed"
    ABORTED = "aborted"
    FAILED = "failed"
