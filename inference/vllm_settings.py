"""How the vLLM engine is set up, and the defaults that fit a machine without a GPU. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from inference.parser_families import ParserNames

CPU_CACHE_BYTES = 1 << 30
CPU_CONTEXT_TOKENS = 2048
SPARE_ADAPTERS_ON_CPU = 1
"""Of the places for adapters, how many stay empty where there is no GPU.

vLLM's own operations for such machines look for the adapter of a request that has none at place -1, which is the last one:
whatever is there changes what the base model says, wherever both kinds of requests share a step. So there must be one place
more than there are adapters, which none ever gets.
"""


@dataclass(frozen=True, slots=True)
class VllmEngineConfig:
    """What to serve.

    Attributes:
        model: A model's folder, or its id on the hub.
        served_name: The name that requests ask for.
        engine_args: Any of vLLM's `AsyncEngineArgs`; they win over the defaults of `engine_arguments`.
        parsers: What reads tool calls and reasoning out of the model's answers.
    """

    model: str
    served_name: str
    engine_args: Mapping[str, object] = field(default_factory=dict)
    parsers: ParserNames = field(default_factory=ParserNames)


def engine_arguments(
    config: VllmEngineConfig, *, on_cpu: bool, bfloat16_is_fast: bool, pools: bool = False, longest: int | None = None
) -> dict[str, object]:
    """The arguments of `AsyncEngineArgs`.

    Args:
        config: What to serve.
        on_cpu: Whether there is no GPU.
        bfloat16_is_fast: Whether this machine's processor computes in it.
        pools: Whether the model makes vectors instead of text.
        longest: The longest context that the model can have; None when that is not known.

    Without a GPU: no compilation (it takes minutes), 1 GiB of cache (vLLM would take nearly all memory), a context of
    2,048 tokens where the model can have one, and bfloat16 where the processor computes in it; where it does not, float32
    generates several times as fast for twice the memory. Models that make vectors are small: they compute in float32, as
    exactly as they can. Of adapters there is one place more than may be loaded: see `SPARE_ADAPTERS_ON_CPU`. Everywhere: no
    statistics (they cost time per token; Naru counts itself), and 60 seconds for the engine's process to finish what runs
    when a signal meant for the service reaches it too.
    """
    arguments: dict[str, object] = {
        "model": config.model,
        "served_model_name": config.served_name,
        # vLLM's tracing needs its statistics; without them the first finished request would stop the engine.
        "disable_log_stats": "otlp_traces_endpoint" not in config.engine_args,
        "shutdown_timeout": 60,
    }
    if config.parsers.reasoning:
        # A grammar must not hold while the model thinks.
        arguments["reasoning_parser"] = config.parsers.reasoning
    if on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": CPU_CACHE_BYTES,
            "max_model_len": CPU_CONTEXT_TOKENS if longest is None else min(CPU_CONTEXT_TOKENS, longest),
            "dtype": "bfloat16" if bfloat16_is_fast and not pools else "float32",
        }
    arguments |= config.engine_args
    if on_cpu and arguments.get("enable_lora"):
        most = arguments.get("max_cpu_loras") or arguments.get("max_loras") or 1
        if isinstance(most, int):
            slots = most + SPARE_ADAPTERS_ON_CPU
            arguments |= {"max_loras": slots, "max_cpu_loras": slots}
    return arguments


def environment(config: VllmEngineConfig) -> dict[str, str]:
    """Variables to set before vLLM is imported, where the operator has not set them."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        # A fork of a process that has gRPC objects may hang.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if Path(config.model).is_dir():
        variables["HF_HUB_OFFLINE"] = "1"
    return variables


def cpu_environment() -> dict[str, str]:
    """Variables to set before the engine is built on a machine without a GPU, where the operator has not set them."""
    return {
        # The worker lives in the engine's own process: one process less, and no hop per step.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # Idle threads that spin take the time that the event loop needs.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
