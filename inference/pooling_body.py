"""Reading a request for vectors or scores: what is checked before any engine looks at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference.engine import EngineRequest, InputKind
from inference.openai_body import decode_object, is_text, is_token_ids, not_supported
from naru.errors import NaruError, invalid_argument

MOST_INPUTS = 2048
"""As many as OpenAI takes in one request for embeddings."""
_LARGEST_TOKEN_ID = 2**32 - 1
_TEXT_ONLY = "is not supported; only texts and token ids are."
_REFUSED = {
    "messages": "is not supported; send texts or token ids as `input`.",
    "chat_template": _TEXT_ONLY,
    "chat_template_kwargs": _TEXT_ONLY,
    "mm_processor_kwargs": _TEXT_ONLY,
    "instruction": "is not supported; write it into the queries.",
    "max_tokens_per_query": "is not supported; cut the queries, or use `truncate_prompt_tokens`.",
    "max_tokens_per_doc": "is not supported; cut the documents, or use `truncate_prompt_tokens`.",
}


@dataclass(frozen=True, slots=True)
class PoolingBody:
    """What a request asks to make vectors of.

    Attributes:
        inputs: Texts, or token ids of texts; of a score the queries first.
        queries: How many of them are queries; 0 for embeddings, which pair nothing.
        fields: The whole body.
    """

    inputs: tuple[str | Sequence[int], ...]
    queries: int
    fields: Mapping[str, Any]

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Which inputs are compared with which, one pair per document; none for embeddings."""
        documents = len(self.inputs) - self.queries if self.queries else 0
        return tuple((0 if self.queries == 1 else number, self.queries + number) for number in range(documents))


def read_pooling_body(request: EngineRequest) -> PoolingBody:
    """What the request asks to make vectors of.

    Raises NaruError INVALID_ARGUMENT or NOT_SUPPORTED, naming the field.
    """
    body = decode_object(request.openai_json)
    for field, why in _REFUSED.items():
        if body.get(field):
            raise not_supported(field, f"`{field}` {why}")
    if request.kind is InputKind.OPENAI_EMBEDDINGS:
        return PoolingBody(_inputs(body), 0, body)
    queries, documents = _texts(body, "queries"), _texts(body, "documents")
    if len(queries) not in (1, len(documents)):
        raise invalid_argument("queries", "`queries` must be one text, or as many as `documents` are.")
    _check_count("documents", len(queries) + len(documents))
    return PoolingBody((*queries, *documents), len(queries), body)


def _inputs(body: Mapping[str, Any]) -> tuple[str | Sequence[int], ...]:
    given = body.get("input")
    if is_text(given) or is_token_ids(given):
        given = [given]
    if not isinstance(given, list) or not given:
        raise _wrong_input()
    _check_count("input", len(given))
    if not (all(map(is_text, given)) or all(map(is_token_ids, given))):
        raise _wrong_input()
    if any(max(one) > _LARGEST_TOKEN_ID for one in given if isinstance(one, list)):
        raise invalid_argument("input", "`input` holds what is no token of the model.")
    return tuple(given)


def _texts(body: Mapping[str, Any], field: str) -> tuple[str, ...]:
    given = body.get(field)
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(map(is_text, texts)):
        raise invalid_argument(field, f"`{field}` must be a text or a list of texts; not empty.")
    return tuple(texts)


def _check_count(field: str, count: int) -> None:
    if count > MOST_INPUTS:
        raise invalid_argument(field, f"`{field}` makes {count} inputs; at most {MOST_INPUTS} are allowed.")


def _wrong_input() -> NaruError:
    return invalid_argument(
        "input", "`input` must be a string, a list of strings, a list of token ids or a list of those; not empty."
    )
