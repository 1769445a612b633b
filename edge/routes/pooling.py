"""POST /v1/embeddings, /v1/rerank and /v1/score."""

from __future__ import annotations

from edge.generation import Endpoint
from edge.openai.embeddings import EmbeddingsAnswer, answer_id, parse_embeddings
from edge.openai.scoring import RerankAnswer, ScoreAnswer, parse_rerank, parse_score, rerank_id, score_id
from edge.routes.generating import Shape

EMBEDDINGS = Shape(Endpoint.EMBEDDINGS, parse_embeddings, answer_id, None, EmbeddingsAnswer)
RERANK = Shape(Endpoint.RERANK, parse_rerank, rerank_id, None, RerankAnswer)
SCORE = Shape(Endpoint.SCORE, parse_score, score_id, None, ScoreAnswer)
