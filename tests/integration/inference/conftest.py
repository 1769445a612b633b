"""The default model and one vLLM engine with it, for all tests that need a real one."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from inference.default_model import make_ready
from inference.parser_families import choose_parsers
from inference.vllm_engine import VllmEngine
from inference.vllm_settings import VllmEngineConfig
from naru.ids import new_request_id
from naru.logs import get_logger
from tests.support.answering import MODEL

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The folder of the default model, which is made ready when it is not."""
    folder = ROOT / ".naru/models/smollm2-135m-instruct"
    make_ready(folder, lambda line: print(line, file=sys.stderr))
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(default_model: Path) -> AsyncIterator[VllmEngine]:
    """The engine, started once."""
    # In bfloat16, the default where a processor is fast at it, the two likeliest tokens are often equal, and what else is in the
    # batch decides.
    arguments = {"max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20, "dtype": "float32"}
    settings = VllmEngineConfig(str(default_model), MODEL, arguments, choose_parsers(str(default_model), "", ""))
    vllm = VllmEngine(settings, environ=os.environ, new_id=new_request_id, logger=get_logger("test"))
    await vllm.start()
    children = _engine_processes()
    try:
        yield vllm
    finally:
        await vllm.shutdown(5)
        assert children
        assert not set(children) & set(_engine_processes())


def _engine_processes() -> list[int]:
    """This process's children that are processes of the engine."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text()]
