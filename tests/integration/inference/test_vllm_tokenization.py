"""Tokens as vLLM tells them: the same that it generates from, and the same as the model's own tokenizer says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from inference.engine import EngineRequest, InputKind
from inference.vllm_engine import VllmEngine
from naru.errors import NaruError, Reason
from tests.support.heard import openai_request

MESSAGES = [{"role": "user", "content": "What is the capital of 대한민국?"}]
TEXT = "The ferry's landing, 나루 🙂"

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="session"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def text_request(text: str = TEXT, **body: Any) -> EngineRequest:
    fields = json.dumps({"prompt": text, **body}).encode()
    return EngineRequest(kind=InputKind.OPENAI_COMPLETION, model="", stream=False, openai_json=fields)


def chat_request(**body: Any) -> EngineRequest:
    return openai_request(InputKind.OPENAI_CHAT, messages=MESSAGES, **body)


async def test_a_text_has_the_tokenizers_tokens_and_comes_back(engine: VllmEngine, default_model: Path) -> None:
    """Ids and their texts are those of the model's tokenizer.json, and the ids make the text again."""
    own = Tokenizer.from_file(str(default_model / "tokenizer.json")).encode(TEXT)
    tokens = await engine.tokenize(text_request(), strings=True)
    assert list(tokens.token_ids) == own.ids
    assert list(tokens.strings or ()) == own.tokens
    assert await engine.detokenize(tokens.token_ids) == TEXT
    assert await engine.detokenize([]) == ""


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"add_generation_prompt": False},
        {"messages": [*MESSAGES, {"role": "assistant", "content": "It is"}], "continue_final_message": True}
        | {"add_generation_prompt": False},
    ],
)
async def test_a_conversation_has_the_tokens_it_is_billed_for(engine: VllmEngine, fields: dict[str, Any]) -> None:
    """The count is what a generation from the same messages is billed, however the template is asked to end."""
    request = openai_request(InputKind.OPENAI_CHAT, **{"messages": MESSAGES, **fields})
    tokens = await engine.tokenize(request, strings=False)
    assert len(tokens.token_ids) == (await engine.prepare(request)).prompt_tokens
    assert tokens.strings is None
    assert (await engine.detokenize(tokens.token_ids)).startswith("<|im_start|>")


async def test_more_than_the_context_can_be_counted(engine: VllmEngine) -> None:
    """Whoever cuts a document into pieces first asks how long it is."""
    tokens = await engine.tokenize(text_request("river " * 5000), strings=False)
    assert len(tokens.token_ids) >= 5000


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (text_request(""), "prompt"),
        (chat_request(chat_template="{{ 1 }}"), "chat_template"),
        (chat_request(continue_final_message=True, add_generation_prompt=True), None),
        (text_request(add_special_tokens="maybe"), "add_special_tokens"),
    ],
)
async def test_what_cannot_be_told(engine: VllmEngine, request_: EngineRequest, field: str | None) -> None:
    """Each is the caller's fault, and names the field."""
    with pytest.raises(NaruError) as caught:
        await engine.tokenize(request_, strings=False)
    assert caught.value.reason in (Reason.INVALID_ARGUMENT, Reason.NOT_SUPPORTED)
    if field is not None:
        assert caught.value.metadata["field"] == field


async def test_ids_that_there_are_not(engine: VllmEngine) -> None:
    """An id beyond the vocabulary is refused; it would crash the tokenizer."""
    with pytest.raises(NaruError) as caught:
        await engine.detokenize([0, 4_000_000_000])
    assert caught.value.metadata == {"field": "tokens"}
