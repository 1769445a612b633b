"""POST /v1/chat/completions."""

from __future__ import annotations

from edge.generation import Endpoint
from edge.openai.chat import ChatAnswer, ChatStream, answer_id
from edge.openai.requests import parse_chat
from edge.routes.generating import Shape

CHAT = Shape(Endpoint.CHAT_COMPLETIONS, parse_chat, answer_id, ChatStream, ChatAnswer)
