"""POST /v1/responses."""

from __future__ import annotations

from edge.generation import Endpoint
from edge.responses.answers import ResponseAnswer, ResponseStream, answer_id
from edge.responses.requests import parse_responses
from edge.routes.generating import Shape

RESPONSES = Shape(Endpoint.RESPONSES, parse_responses, answer_id, ResponseStream, ResponseAnswer)
