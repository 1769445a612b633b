"""What vLLM's engine is given of a request: its choices, each an engine request of its own."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import Any

from inference.vllm_outputs import OutputOptions, Reading

_SEEDS = 2**64


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """One choice, ready to be submitted as an engine request of its own.

    Attributes:
        prompt: vLLM's rendered engine input.
        params: vLLM's SamplingParams with n = 1.
        core_request: The validated EngineCoreRequest.
    """

    index: int
    prompt: Any
    params: Any
    core_request: Any


@dataclass(frozen=True, slots=True)
class EnginePayload:
    """What `submit` needs of a prepared request.

    Attributes:
        prompts: How many there are; each has as many choices as the others.
        readings: One per choice, or none for text as it comes.
    """

    choices: tuple[EngineChoice, ...]
    options: OutputOptions
    priority: int
    prompts: int
    readings: tuple[Reading, ...] = ()


def fan_out(first: int, count: int, prompt: Any, core_request: Any) -> list[EngineChoice]:
    """`count` requests of one choice each; a seeded one gets seed, seed + 1, ... as vLLM's own children do."""
    choices = []
    for number in range(count):
        request, params = core_request, core_request.sampling_params
        if number > 0:
            request = copy.copy(core_request)
            if params.seed is not None:
                params = copy.copy(params)
                # Beyond 64 bits it would end the engine.
                params.seed = (params.seed + number + _SEEDS // 2) % _SEEDS - _SEEDS // 2
                request.sampling_params = params
        choices.append(EngineChoice(first + number, prompt, params, request))
    return choices


def set_cache_salt(prompt: Any, tenant: str, client: str | None) -> None:
    """Keeps tenants from finding each other's prompts in the prefix cache; a client's salt only separates further."""
    if tenant and client:
        prompt["cache_salt"] = hashlib.sha256(f"{len(tenant)}:{tenant}{client}".encode()).hexdigest()
    elif tenant or client:
        prompt["cache_salt"] = tenant or client
