"""POST /v1/completions."""

from __future__ import annotations

from edge.generation import Endpoint
from edge.openai.completions import CompletionAnswer, CompletionStream, answer_id
from edge.openai.requests import parse_completion
from edge.routes.generating import Shape

COMPLETIONS = Shape(Endpoint.COMPLETIONS, parse_completion, answer_id, CompletionStream, CompletionAnswer)
