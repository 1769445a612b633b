"""POST /v1/messages."""

from __future__ import annotations

from edge.anthropic.answers import MessageAnswer, MessageStream, answer_id
from edge.anthropic.requests import parse_messages
from edge.generation import Endpoint
from edge.routes.generating import Shape

MESSAGES = Shape(Endpoint.MESSAGES, parse_messages, answer_id, MessageStream, MessageAnswer)
