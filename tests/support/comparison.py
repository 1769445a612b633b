"""Answers of two servers made comparable: streams put together, what must differ left out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_OF_ITS_OWN = ("id", "created", "system_fingerprint")
"""What no two answers have in common."""
_CALL_ID = "call"
_CLOSE = 0.02
"""How far apart two computations of a log probability may be: the order in which sums are taken is not the same."""


@dataclass
class Choice:
    """What a choice's chunks come to."""

    texts: dict[str, str] = field(default_factory=dict)
    calls: dict[int, dict[str, str]] = field(default_factory=dict)
    logprobs: list[Any] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)


def whole(body: Any) -> Any:
    """An answer in one piece, without what is its own."""
    if isinstance(body, dict):
        found = {name: whole(value) for name, value in body.items() if name not in _OF_ITS_OWN}
        if "function" in body and "id" in body:
            found["id"] = _CALL_ID
        return found
    return [whole(item) for item in body] if isinstance(body, list) else body


def told(text: str) -> dict[str, Any]:
    """What a stream of events tells, however it is cut into chunks."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    choices: dict[int, Choice] = {}
    for chunk in chunks:
        for one in chunk.get("choices", ()):
            _add(choices.setdefault(one["index"], Choice()), one)
    return {
        "done": events[-1:] == ["[DONE]"],
        "objects": sorted({str(chunk.get("object")) for chunk in chunks}),
        "ids": len({chunk.get("id") for chunk in chunks}),
        "errors": [chunk["error"] for chunk in chunks if "error" in chunk],
        "usage": [chunk["usage"] for chunk in chunks if chunk.get("usage")][-1:],
        "choices": {index: vars(choice) for index, choice in sorted(choices.items())},
    }


def _add(choice: Choice, chunk: Mapping[str, Any]) -> None:
    delta = chunk.get("delta", chunk)
    for name in ("role", "content", "reasoning", "refusal", "text"):
        if delta.get(name):
            choice.texts[name] = choice.texts.get(name, "") + delta[name]
    for call in delta.get("tool_calls") or ():
        known = choice.calls.setdefault(call["index"], {"name": "", "arguments": ""})
        known["name"] += call["function"].get("name") or ""
        known["arguments"] += call["function"].get("arguments") or ""
    logprobs = chunk.get("logprobs") or {}
    choice.logprobs += logprobs.get("content") or logprobs.get("token_logprobs") or []
    choice.token_ids += chunk.get("token_ids") or []
    if chunk.get("finish_reason"):
        choice.ends.append((chunk["finish_reason"], chunk.get("stop_reason")))


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Where two answers are not the same, each as a path and both values. A field that is null is as good as none."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted({*ours, *theirs}, key=str)
        return [
            found
            for name in names
            for found in differences(ours.get(name), theirs.get(name), f"{path}.{name}".lstrip("."))
        ]
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        return [
            found
            for index, pair in enumerate(zip(ours, theirs, strict=True))
            for found in differences(*pair, f"{path}[{index}]")
        ]
    if isinstance(ours, float) and isinstance(theirs, float) and abs(ours - theirs) <= _CLOSE:
        return []
    return [] if ours == theirs and type(ours) is type(theirs) else [f"{path}: {ours!r:.200} and not {theirs!r:.200}"]
