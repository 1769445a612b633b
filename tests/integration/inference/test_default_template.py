"""The default model's chat template: its own for conversations without tools, and one that knows tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inference.default_model import chat_template

pytestmark = [pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]

ITS_OWN = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)
SYSTEM = {"role": "system", "content": "Be brief. "}
USER = {"role": "user", "content": "Hi\n"}
ASSISTANT = {"role": "assistant", "content": " Yes"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "f", "arguments": {"a": 1}}}


@pytest.fixture(scope="module")
def tokenizer(default_model: Path) -> Any:
    """The model's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(default_model))


def rendered(tokenizer: Any, messages: list[dict[str, Any]], template: str, **more: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, chat_template=template, **more))


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize(
    "messages",
    [[USER], [SYSTEM, USER], [USER, ASSISTANT, USER], [SYSTEM, USER, ASSISTANT], [SYSTEM], [ASSISTANT, SYSTEM]],
)
def test_without_tools_it_is_its_own(tokenizer: Any, messages: list[dict[str, Any]], prompted: bool) -> None:
    """Every character of a conversation without tools is what the model was trained on."""
    own = rendered(tokenizer, messages, ITS_OWN, add_generation_prompt=prompted)
    assert rendered(tokenizer, messages, chat_template(), add_generation_prompt=prompted) == own


def test_tools_are_listed_called_and_answered(tokenizer: Any) -> None:
    """Tools come after the system's text, calls as Hermes writes them, answers together as a user's."""
    messages = [SYSTEM, USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}]
    messages += [{"role": "tool", "content": "18"}, {"role": "tool", "content": "19"}, USER]
    text = rendered(tokenizer, messages, chat_template(), tools=[TOOL], add_generation_prompt=True)
    listed = '<tools>\n{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}\n</tools>'
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert text.startswith("<|im_start|>system\nBe brief. \n\n# Tools\n")
    assert listed in text
    assert f"<|im_start|>assistant\n{call}\n{call}<|im_end|>\n" in text
    answered = "<tool_response>\n18\n</tool_response>\n<tool_response>\n19\n</tool_response>"
    assert f"<|im_start|>user\n{answered}<|im_end|>\n<|im_start|>user\nHi\n<|im_end|>\n<|im_start|>assistant\n" in text
    assert text.count("<|im_start|>system") == 1
