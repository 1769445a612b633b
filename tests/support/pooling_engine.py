"""A real vLLM engine with a model that pools, and the small one that makes vectors."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from inference.embedding_model import make_ready
from inference.vllm_engine import VllmEngine
from inference.vllm_settings import VllmEngineConfig
from naru.ids import new_request_id
from naru.logs import get_logger

MINILM = Path(__file__).parents[2] / ".naru/models/all-minilm-l6-v2"


def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2, which is made ready when it is not."""
    make_ready(MINILM, lambda line: print(line, file=sys.stderr))
    return MINILM


@asynccontextmanager
async def pooling_engine(folder: Path, name: str) -> AsyncIterator[VllmEngine]:
    """The engine of the model in a folder, served by that name."""
    settings = VllmEngineConfig(str(folder), name, {"kv_cache_memory_bytes": 64 << 20})
    engine = VllmEngine(settings, environ=os.environ, new_id=new_request_id, logger=get_logger("test"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.shutdown(5)
