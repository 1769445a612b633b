"""Rendering short requests at once.

vLLM renders a conversation and tokenises it in threads, so that long ones hold nobody up. For a short one the two ways there
and back take several times as long as the work, and make everybody's tokens wait for the interpreter's lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inference.engine import EngineRequest

_SHORT_BODY = 2 * 1024
"""Bytes of JSON up to which rendering and tokenising take well below a millisecond."""


class InlineRenderer:
    """vLLM's renderer, which here does on the event loop what it is asked for.

    Args:
        renderer: Of the engine.
    """

    def __init__(self, renderer: Any) -> None:
        self._renderer = renderer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._renderer, name)

    async def render_chat_async(self, *arguments: Any, **options: Any) -> Any:
        """What the renderer's method of this name returns."""
        return self._renderer.render_chat(*arguments, **options)

    async def render_cmpl_async(self, *arguments: Any, **options: Any) -> Any:
        """What the renderer's method of this name returns."""
        return self._renderer.render_cmpl(*arguments, **options)


def is_short(request: EngineRequest, body: Mapping[str, Any]) -> bool:
    """Whether it may be rendered on the event loop: OpenAI's JSON, of a few words, nothing of it to be fetched or decoded."""
    if not 0 < len(request.openai_json) <= _SHORT_BODY or body.get("chat_template_kwargs"):
        return False
    return all(isinstance(message.get("content"), str | None) for message in body.get("messages", ()))
