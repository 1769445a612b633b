"""Requests for vectors and scores that could end an engine or the process before it."""

from __future__ import annotations

import json
import math
from typing import Any

import httpx

from tests.support.dangerous_inputs import LONG

EMBEDDINGS, SCORE, RERANK = "/v1/embeddings", "/v1/score", "/v1/rerank"
TOKENS = 30_522
"""How many the model knows."""
CONTEXT = 256
_HUGE = (2**31, 2**32, 2**63, 2**70, 10**400)


def _inputs() -> list[Any]:
    deep: Any = "a"
    for _ in range(200):
        deep = [deep]
    ids = (-1, 0, 103, TOKENS - 1, TOKENS, *_HUGE)
    return [
        *("", " ", "\0", "\ud800", "\udfff\ud800", "🙂\u200d" * 100, LONG, "a" * 200_000, "[CLS][SEP][PAD][MASK]"),
        *([], [[]], [""], [[], [1]], ["a", ""], ["a", [1]], ["a", LONG], [None], [True], [[True]], [1.5], [[1.5]]),
        *(None, 1, True, {}, {"text": "a"}, deep, [math.nan], math.nan),
        *([one] for one in ids),
        *([[one]] for one in ids),
        *([7] * size for size in (CONTEXT - 1, CONTEXT, CONTEXT + 1, 5_000)),
        *([[7]] * count for count in (2_048, 2_049)),
        ["a"] * 2_048,
        [0] * CONTEXT,
    ]


def _fields() -> list[dict[str, Any]]:
    wild = (-1, 0, 1, 1.5, "a", "", True, [], {}, None, math.nan, math.inf, *_HUGE)
    cuts = (-2, -1, 0, 1, 2, 3, CONTEXT - 1, CONTEXT, CONTEXT + 1, 1.5, "a", *_HUGE)
    return [
        *({"dimensions": one} for one in (*wild, 64, 383, 384, 385)),
        *({"truncate_prompt_tokens": cut} for cut in cuts),
        *({"truncate_prompt_tokens": cut, "truncation_side": "left"} for cut in cuts),
        *({"truncate_prompt_tokens": cut, "padding": "max_length"} for cut in (0, 1, 5, -1)),
        *({"truncate_prompt_tokens": cut, "add_special_tokens": False} for cut in (0, 1)),
        *({"truncation_side": side} for side in ("left", "right", "up", 1, None)),
        *({"padding": how} for how in ("max_length", "do_not_pad", "longest", True, 1)),
        *({"use_activation": one} for one in (True, False, "x", None, 7)),
        *({"priority": one} for one in (-(2**31), 2**31 - 1, *_HUGE)),
        *({"cache_salt": one} for one in ("", "\0" * 10_000, 1)),
        {"add_special_tokens": False},
        {"task": "classify"},
        {"normalize": False},
        {"request_id": "\0\n" * 100},
        {"mm_processor_kwargs": {"a": []}},
        {"chat_template": "{{ x }}"},
    ]


def _written() -> list[dict[str, Any]]:
    return [
        *({"encoding_format": form} for form in ("float", "base64", "bytes", "x", 1)),
        *({"embed_dtype": kind} for kind in ("float32", "float16", "fp8", 1)),
        *({"endianness": end} for end in ("native", "little", "big", 1)),
        {"messages": [{"role": "user", "content": "Hi"}]},
        {"user": "\0" * 1_000},
        {"input_type": "query"},
    ]


def _texts() -> list[Any]:
    image = {"content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}
    return ["", [], [""], "\ud800", LONG, None, 1, [1], [["a"]], [[1, 2]], image, [image], {"text": "a"}, ["a"] * 2_048]


def pooling_bodies() -> list[tuple[str, dict[str, Any]]]:
    """Paths, and what to send there beside the model."""
    pair = {"queries": "a river", "documents": ["a ferry", LONG]}
    ranked = {"query": "a river", "documents": ["a ferry", "bread"]}
    return [
        *((EMBEDDINGS, {"input": one}) for one in _inputs()),
        *((EMBEDDINGS, {"input": ["a river", LONG]} | fields) for fields in _fields()),
        *((EMBEDDINGS, {"input": [[7] * 5_000]} | fields) for fields in _fields()),
        *((EMBEDDINGS, {"input": "a river"} | fields) for fields in (*_fields(), *_written())),
        *((SCORE, pair | fields) for fields in _fields()),
        *((SCORE, {"queries": one, "documents": ["b"]}) for one in _texts()),
        *((SCORE, {"queries": "a", "documents": one}) for one in _texts()),
        *((SCORE, {first: "a", second: ["b"]}) for first, second in (("text_1", "text_2"), ("data_1", "items"))),
        *((SCORE, {"queries": ["a"] * count, "documents": ["b"] * count}) for count in (1_024, 1_025)),
        *((RERANK, {"query": one, "documents": ["b"]}) for one in _texts()),
        *((RERANK, {"query": "a", "documents": one}) for one in _texts()),
        *((RERANK, ranked | {"top_n": most}) for most in (-1, 0, 1, 3, 1.5, "a", math.nan, *_HUGE)),
        *(
            (RERANK, ranked | fields)
            for fields in ({"max_tokens_per_doc": -1}, {"instruction": "x"}, {"raw_scores": 1})
        ),
        *(("/detokenize", {"tokens": tokens}) for tokens in ([], [-1], [TOKENS], [2**32 - 1], [2**70])),
        *(("/tokenize", {"prompt": prompt}) for prompt in ("", "\ud800", "\0", LONG)),
        ("/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/completions", {"prompt": [7], "max_tokens": 5}),
    ]


async def asked(client: httpx.AsyncClient, path: str, body: bytes) -> tuple[int, str]:
    """The status, and what is wrong with it: it must be an answer, or an error of the caller's that says what it is."""
    shown = f"{path} {body[:200]!r}"
    answer = await client.post(path, content=body)
    try:
        told = _strictly(answer.text)
    except ValueError as error:
        return answer.status_code, f"{answer.status_code} no JSON: {error} {shown}"
    if answer.status_code == 200:
        return 200, ""
    error = told["error"]
    fits = answer.status_code in (400, 413) and error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, "" if fits and error["message"] else f"{answer.status_code} {answer.text[:300]} {shown}"


def _strictly(text: str) -> Any:
    """JSON without NaN and infinities, which Python would read."""

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    return json.loads(text, parse_constant=refuse)
