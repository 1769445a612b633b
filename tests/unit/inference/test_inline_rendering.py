"""Which requests are rendered on the event loop."""

from __future__ import annotations

from typing import Any

import pytest

from inference.engine import InputKind
from inference.vllm_inline_renderer import is_short
from tests.support.heard import openai_request

CHAT, COMPLETION = InputKind.OPENAI_CHAT, InputKind.OPENAI_COMPLETION


def said(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": None}, {"role": "user", "content": content}]}


@pytest.mark.parametrize(
    ("kind", "body", "short"),
    [
        (CHAT, said("Hello"), True),
        (COMPLETION, {"prompt": "Hello"}, True),
        (CHAT, said("Hello" * 1_000), False),
        (COMPLETION, {"prompt": "Hello" * 1_000}, False),
        (CHAT, said([{"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}]), False),
        (CHAT, said("Hello") | {"chat_template_kwargs": {"times": 10**9}}, False),
    ],
    ids=["chat", "completion", "long chat", "long completion", "image", "a template's own arguments"],
)
def test_only_what_is_quickly_done_is_done_at_once(kind: InputKind, body: dict[str, Any], short: bool) -> None:
    assert is_short(openai_request(kind, **body), body) is short
