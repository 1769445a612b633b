"""The part of the OpenAPI document about embeddings, rerank and score."""

from __future__ import annotations

from edge.openapi_parts import Schema, field, generating_operation, object_schema, reference

_MODEL = "all-minilm-l6-v2"
_BILLED = "Each text counts once, as prompt tokens; nothing is generated."


def pooling_paths() -> dict[str, Schema]:
    """Operations by path."""
    return {
        "/v1/embeddings": _operation(
            "Make vectors of texts, by a model that does.",
            "EmbeddingRequest",
            "EmbeddingList",
            {"model": _MODEL, "input": ["The ferry crosses the river.", "Bread is baked at dawn."]},
        ),
        "/v1/rerank": _operation(
            "Sort documents by how well they fit a query.",
            "RerankRequest",
            "Ranking",
            {"model": _MODEL, "query": "How to cross a river?", "documents": ["Take the ferry.", "Bake bread."]},
        ),
        "/v1/score": _operation(
            "Say how alike texts are: the cosine of the angle between their vectors, or what a cross-encoder makes of both.",
            "ScoreRequest",
            "ScoreList",
            {"model": _MODEL, "queries": "How to cross a river?", "documents": ["Take the ferry.", "Bake bread."]},
        ),
    }


def pooling_schemas() -> dict[str, Schema]:
    """Schemas by name."""
    model = field("string", "The model, as /v1/models lists it.")
    texts = {"type": ["string", "array"], "items": {"type": "string"}}
    cut = field(
        "integer", "Keep so many tokens of each text; -1 for as many as fit. Else a text that is too long is a 400."
    )
    cost = object_schema({"include": field("boolean", "Tell the usage with its cost.")})
    common = {"model": model, "truncate_prompt_tokens": cut, "usage": cost}
    head = {"id": field("string", "Id of the answer."), "model": field("string", "The model that answered.")}
    listed = head | {
        "object": {"const": "list"},
        "created": field("integer", "Seconds since the Unix epoch."),
        "usage": reference("PoolingUsage"),
    }
    embedding = {
        "index": field("integer", "Which input."),
        "object": {"const": "embedding"},
        "embedding": {"type": ["array", "string"], "description": "Numbers, or base64 of little-endian 32-bit floats."},
    }
    return {
        "EmbeddingRequest": object_schema(
            common
            | {
                "input": {"type": ["string", "array"], "description": "Texts or token ids, one or at most 2,048."},
                "encoding_format": {"enum": ["float", "base64"], "default": "float"},
                "dimensions": field("integer", "Length of the vectors; only of models trained for it.", minimum=1),
                "user": field("string", "Taken, without effect."),
            },
            ("model", "input"),
            extra=True,
        ),
        "RerankRequest": object_schema(
            common
            | {
                "query": field("string", "What to look for."),
                "documents": {"type": ["string", "array"], "description": "Texts, or objects with a `text`."},
                "top_n": field("integer", "How many to tell; 0 for all.", minimum=0, default=0),
                "return_documents": field("boolean", "Whether to repeat them.", default=True),
            },
            ("model", "query", "documents"),
            extra=True,
        ),
        "ScoreRequest": object_schema(
            common
            | {
                "queries": texts | {"description": "One, or as many as there are documents. Also `text_1`, `data_1`."},
                "documents": texts | {"description": "What to compare. Also `items`, `text_2`, `data_2`."},
            },
            ("model",),
            extra=True,
        ),
        "EmbeddingList": object_schema(listed | {"data": _array(embedding)}),
        "Ranking": object_schema(head | {"results": _array(_RESULT), "usage": reference("PoolingUsage")}),
        "ScoreList": object_schema(listed | {"data": _array(_SCORE)}),
        "PoolingUsage": object_schema(
            {
                "prompt_tokens": {"type": "integer"},
                "total_tokens": {"type": "integer"},
                "cost": field("number", "In units of the currency; when asked for by `usage.include`."),
            }
        ),
    }


_RESULT = {
    "index": field("integer", "Which document."),
    "relevance_score": field("number", "How well it fits."),
    "document": object_schema({"text": {"type": "string"}, "multi_modal": {"type": "null"}}),
}
_SCORE = {
    "index": field("integer", "Which document."),
    "object": {"const": "score"},
    "score": field("number", "From -1 to 1."),
}


def _operation(description: str, request: str, answer: str, example: Schema) -> Schema:
    return {"post": generating_operation(f"{description} {_BILLED}", request, answer, example, streams=False)}


def _array(properties: dict[str, Schema]) -> Schema:
    return {"type": "array", "items": object_schema(properties)}
