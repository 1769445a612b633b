"""The same requests to Naru and to `vllm serve`, with the same model and greedy sampling: the same answers, field by field."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.comparison import differences, told, whole
from tests.support.platform import MODEL, ROOT, Platform, platform
from tests.support.request_kinds import Kind, kinds
from tests.support.vllm_serve import vllm_serve

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(600)]

CACHE_BYTES, CONTEXT_TOKENS = 256 << 20, 2048
ENGINE = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": CONTEXT_TOKENS,
    "kv_cache_memory_bytes": CACHE_BYTES,
}
ARGUMENTS = [
    "--enforce-eager",
    *("--dtype", "float32"),
    *("--max-model-len", str(CONTEXT_TOKENS)),
    *("--kv-cache-memory-bytes", str(CACHE_BYTES)),
    *("--chat-template", str(ROOT / "inference/default_chat_template.jinja")),
    *("--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"),
]
INTENDED = {
    # docs/compatibility.md, "Compared with vllm serve", has the reasons.
    r"usage.*\.completion_tokens_details": "",
    r"usage.*\.(created_cache_tokens|multimodal_tokens)": "",
    r"tool_calls\[\d+\]\.function\.arguments": "tool_choice (named|required)$",
    r"message\.content": "tool_choice (named|required)$",
    r"(message|texts)\.role": "no generation prompt$",
    r"logprobs\.text_offset": "as token ids$",
    r"choices\[0\]\.prompt_logprobs": "echo with logprobs$",
    r"error\.param: 'messages' and not 'input_tokens'": "",
    r"error\.param: '(\w+)' and not 'body\.\1'": "",
    r"error\.param: 'top_logprobs' and not 'logprobs'": "",
    r"error\.param: '\w+' and not None": "",
    r"error\.(type|code|message)": "",
}
"""Where Naru is different on purpose, each with the kinds of requests where it may be; empty: all of them."""
REFUSED = {"chat/completions: a role unknown"}
"""What `vllm serve` answers and Naru refuses."""


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Platform, str]]:
    """Naru, and the address of `vllm serve`."""
    folder: Path = tmp_path_factory.mktemp("naru")
    with (
        vllm_serve(folder / "vllm.out", ARGUMENTS) as theirs,
        platform(folder / "state", {"NARU_INFERENCE_ENGINE_ARGS": json.dumps(ENGINE)}) as ours,
    ):
        yield ours, theirs.url


def answer(url: str, key: str, kind: Kind) -> tuple[int, Any]:
    """Status and what was said, made comparable."""
    request = urllib.request.Request(
        url + kind.path,
        json.dumps({"model": MODEL, **kind.body}).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            text = response.read().decode()
            return response.status, told(text) if kind.streamed else whole(json.loads(text))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def unintended(kind: Kind, found: list[str]) -> list[str]:
    """The differences that nobody meant."""

    def meant(difference: str) -> bool:
        return any(
            re.search(pattern, difference) and re.search(where, kind.name) for pattern, where in INTENDED.items()
        )

    return [difference for difference in found if not meant(difference)]


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.name)
def test_the_same_answer(peers: tuple[Platform, str], kind: Kind) -> None:
    """Status, shape and values are those of `vllm serve`, but for what is different on purpose."""
    naru, theirs = peers
    (our_status, our_answer), (their_status, their_answer) = (
        answer(naru.url, naru.api_key, kind),
        answer(theirs, "none", kind),
    )
    if kind.name in REFUSED:
        assert (our_status, their_status) == (400, 200)
        return
    assert our_status == their_status, (our_answer, their_answer)
    assert unintended(kind, differences(our_answer, their_answer)) == []
