"""Requests and answers of /v1/rerank and /v1/score, as vLLM's server has them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from edge.generation import Delta
from edge.openai.answers import AnswerOptions
from edge.openai.embeddings import check_count, pooling_request, pooling_usage
from edge.openai.requests import OpenAiRequest, UsageOptions, check_model_name, decode, fields_of
from naru.errors import invalid_argument
from naru.usage import Usage


class _Document(msgspec.Struct):
    text: str


class _Rerank(msgspec.Struct):
    model: str | None = None
    query: str | msgspec.UnsetType = msgspec.UNSET
    documents: str | list[str | _Document] | msgspec.UnsetType = msgspec.UNSET
    top_n: int | None = None
    return_documents: bool | None = None
    usage: UsageOptions | None = None


_Texts = str | list[str] | msgspec.UnsetType


class _Score(msgspec.Struct):
    model: str | None = None
    queries: _Texts = msgspec.UNSET
    documents: _Texts = msgspec.UNSET
    items: _Texts = msgspec.UNSET
    data_1: _Texts = msgspec.UNSET
    data_2: _Texts = msgspec.UNSET
    text_1: _Texts = msgspec.UNSET
    text_2: _Texts = msgspec.UNSET
    usage: UsageOptions | None = None


_RERANK = msgspec.json.Decoder(_Rerank)
_SCORE = msgspec.json.Decoder(_Score)
_NAMES = (("queries", "documents"), ("queries", "items"), ("data_1", "data_2"), ("text_1", "text_2"))
"""What vLLM's server takes the two sides of a score by."""
_OWN_FIELDS = frozenset({"model", "query", "top_n", "return_documents", "usage", "user"}.union(*_NAMES))
"""What is the edge's to understand; the rest goes on to the engine."""


def parse_rerank(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/rerank. Never streams. Raises NaruError INVALID_ARGUMENT naming the field."""
    request = decode(_RERANK, body)
    model = check_model_name(request.model)
    query = _texts("query", request.query)
    given = request.documents
    if isinstance(given, list):
        documents = _texts("documents", [one.text if isinstance(one, _Document) else one for one in given])
    else:
        documents = _texts("documents", given)
    check_count("documents", len(query) + len(documents))
    if request.top_n is not None and request.top_n < 0:
        raise invalid_argument("top_n", "Invalid value for 'top_n': expected an integer of at least 0.")
    return pooling_request(
        model,
        _translated(body, query, documents),
        [*query, *documents],
        choices=len(documents),
        include_cost=bool(request.usage and request.usage.include),
        documents=documents if request.return_documents is not False else None,
        top_n=request.top_n or len(documents),
    )


def parse_score(body: bytes, *, stream: bool | None = None) -> OpenAiRequest:
    """Reads a body of /v1/score. Never streams. Raises NaruError INVALID_ARGUMENT naming the field."""
    request = decode(_SCORE, body)
    model = check_model_name(request.model)
    given = [names for names in _NAMES if any(getattr(request, name) is not msgspec.UNSET for name in names)]
    first, second = next(
        (names for names in given if all(getattr(request, name) is not msgspec.UNSET for name in names)),
        given[0] if given else _NAMES[0],
    )
    queries, documents = _texts(first, getattr(request, first)), _texts(second, getattr(request, second))
    if len(queries) not in (1, len(documents)):
        raise invalid_argument(first, f"Invalid '{first}': expected one text, or as many as '{second}' has.")
    check_count(second, len(queries) + len(documents))
    return pooling_request(
        model,
        _translated(body, queries, documents),
        [*queries, *documents],
        choices=len(documents),
        include_cost=bool(request.usage and request.usage.include),
    )


def _texts(field: str, given: _Texts) -> list[str]:
    if isinstance(given, msgspec.UnsetType):
        raise invalid_argument(field, f"Missing required parameter: '{field}'.")
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(texts):
        raise invalid_argument(field, f"Invalid '{field}': it must not be empty, nor hold anything empty.")
    return texts


def _translated(body: bytes, queries: Sequence[str], documents: Sequence[str]) -> bytes:
    """The body as inference knows it, with the fields that are not the edge's own as they were written."""
    rest = {name: value for name, value in fields_of(body).items() if name not in _OWN_FIELDS}
    return msgspec.json.encode({**rest, "queries": queries, "documents": documents})


class _Scores:
    """Collects the scores of pairs."""

    def __init__(self, options: AnswerOptions) -> None:
        self._options = options
        self._scores = [0.0] * options.choices

    def add(self, deltas: Iterable[Delta]) -> None:
        """Takes what one step brought."""
        for delta in deltas:
            self._scores[delta.choice_index] = delta.score or 0.0


class ScoreAnswer(_Scores):
    """The answer of /v1/score."""

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The scores, in the order of the documents."""
        options = self._options
        return msgspec.json.encode(
            {
                "id": options.answer_id,
                "object": "list",
                "created": options.created,
                "model": options.model,
                "data": [
                    {"index": index, "object": "score", "score": score} for index, score in enumerate(self._scores)
                ],
                "usage": pooling_usage(usage, cost),
            }
        )


class RerankAnswer(_Scores):
    """The answer of /v1/rerank."""

    def render(self, usage: Usage, cost: int | None = None) -> bytes:
        """The documents that fit the query best, best first."""
        options = self._options
        ranked = sorted(enumerate(self._scores), key=lambda entry: -entry[1])[: options.repeated["top_n"]]
        return msgspec.json.encode(
            {
                "id": options.answer_id,
                "model": options.model,
                "results": [self._result(index, score) for index, score in ranked],
                "usage": pooling_usage(usage, cost),
            }
        )

    def _result(self, index: int, score: float) -> dict[str, Any]:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        documents = self._options.repeated["documents"]
        if documents is not None:
            result["document"] = {"text": documents[index], "multi_modal": None}
        return result


def score_id(event_id: str) -> str:
    """The id of the answer to the request of this event."""
    return "score-" + event_id.replace("-", "")


def rerank_id(event_id: str) -> str:
    """As `score_id`."""
    return "rerank-" + event_id.replace("-", "")
