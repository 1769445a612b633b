"""Adapters and control with vLLM itself and the default model, from HTTP to the engine."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support.adapters import LORA, write_adapter
from tests.support.edge_and_replicas import Installation, edge_and_replicas
from tests.support.generation_bench import eventually

MODEL = "small"
# Longer than a block of the prefix cache.
PROMPT = "Once upon a time there was a ferry at a landing. " * 12 + "The capital of France is"

pytestmark = [
    pytest.mark.behaviour,
    pytest.mark.asyncio(loop_scope="module"),
    # The first test waits for the engine to load, on whatever machine this is.
    pytest.mark.timeout(300),
    # vLLM and what it imports use what their own dependencies have deprecated.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def make_adapter(folder: Path, model: Path, seed: int, *, rank: int = 4, wider: int = 0) -> Path:
    """A LoRA adapter with random weights, large enough to change what the model says; or of a model that is wider."""
    import torch
    from safetensors.torch import save

    shape = json.loads((model / "config.json").read_text())
    hidden, random = shape["hidden_size"] + wider, torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(shape["num_hidden_layers"]):
        for module in ("q_proj", "o_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, hidden, generator=random) * 0.1
            tensors[f"{key}.lora_B.weight"] = torch.randn(hidden, rank, generator=random) * 0.1
    return write_adapter(folder, rank=rank, weights=save(tensors), target_modules=["q_proj", "o_proj"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def installation(
    default_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Installation, Path]]:
    """An edge before one replica with vLLM, and the folder of its adapters: `a`, `b`, `c`, and others that do not fit."""
    folder = tmp_path_factory.mktemp("adapters")
    adapters = folder / "adapters"
    for seed, name in enumerate(("a", "b", "c"), 1):
        make_adapter(adapters / name, default_model, seed)
    make_adapter(adapters / "large", default_model, 4, rank=16)
    make_adapter(adapters / "wide", default_model, 5, wider=64)
    write_adapter(adapters / "damaged")
    arguments = {**LORA, "max_model_len": 1024, "kv_cache_memory_bytes": 256 << 20, "dtype": "float32"}
    fields = {
        "engine": "vllm",
        "model": str(default_model),
        "served_model_name": MODEL,
        "engine_args": json.dumps(arguments),
    }
    async with edge_and_replicas(folder, fields) as up:
        yield up, adapters


async def complete(up: Installation, model: str, **fields: Any) -> dict[str, Any]:
    """The answer to a greedy completion."""
    body = {"model": model, "prompt": PROMPT, "temperature": 0, "max_tokens": 12, **fields}
    status, answer = await up.ask("POST", "/v1/completions", body, key=up.user)
    assert status == 200, answer
    return dict(answer)


async def text(up: Installation, model: str, **fields: Any) -> str:
    """The text alone."""
    return str((await complete(up, model, **fields))["choices"][0]["text"])


async def load(up: Installation, name: str, path: str) -> tuple[int, Any]:
    """Loads an adapter and waits until it can be asked for."""
    status, answer = await up.ask("POST", f"/api/replicas/{up.addresses[0]}/adapters", {"name": name, "path": path})
    async with asyncio.timeout(20):
        while status == 200 and f"{MODEL}:{name}" not in await up.models():
            await asyncio.sleep(0.01)
    return status, answer


async def tell(up: Installation, what: str) -> tuple[int, Any]:
    """Tells the replica something."""
    return await up.ask("POST", f"/api/replicas/{up.addresses[0]}/{what}")


async def busy(up: Installation, requests: int) -> None:
    """Waits until the replica has so many requests."""
    async with asyncio.timeout(20):
        while (await up.ask("GET", f"/api/replicas/{up.addresses[0]}"))[1]["requests"] != requests:
            await asyncio.sleep(0.01)


async def test_adapters_change_what_the_model_says(installation: tuple[Installation, Path]) -> None:
    """Each adapter says something else, alone as side by side, and changes nothing of what the model itself says meanwhile."""
    up, _ = installation
    plain = await text(up, MODEL)
    assert (await load(up, "a", "a"))[0] == 200
    assert (await load(up, "b", "b"))[0] == 200
    alone = [await text(up, model) for model in (MODEL, f"{MODEL}:a", f"{MODEL}:b")]
    assert alone[0] == plain
    assert len(set(alone)) == 3
    together = await asyncio.gather(*(text(up, model) for model in (MODEL, f"{MODEL}:a", f"{MODEL}:b") * 2))
    assert list(together) == alone * 2
    await eventually(lambda: len(up.accounting.events) == 10)
    served = [event.served_model for event in up.accounting.events]
    assert {model: served.count(model) for model in served} == {MODEL: 4, f"{MODEL}:a": 3, f"{MODEL}:b": 3}


async def test_another_adapter_by_the_same_name_and_path_is_another_one(
    installation: tuple[Installation, Path], default_model: Path
) -> None:
    """Nothing that the engine has cached of a prompt with the first one is taken for the second."""
    up, adapters = installation
    first = await text(up, f"{MODEL}:a")
    again = await complete(up, f"{MODEL}:a")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert again["choices"][0]["text"] == first
    assert (await up.ask("DELETE", f"/api/replicas/{up.addresses[0]}/adapters/a"))[0] == 200
    shutil.rmtree(adapters / "a")
    make_adapter(adapters / "a", default_model, 11)
    assert (await load(up, "a", "a"))[0] == 200
    other = await complete(up, f"{MODEL}:a")
    assert (other["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) == 0
    assert other["choices"][0]["text"] != first
    # Its files are not needed any more, so that nobody can end the engine by removing them.
    shutil.rmtree(adapters / "a")
    assert await text(up, f"{MODEL}:a") == other["choices"][0]["text"]


@pytest.mark.parametrize(("path", "said"), [("large", "at most 8"), ("damaged", "cannot use the adapter")])
async def test_what_the_engine_cannot_use_is_refused(
    installation: tuple[Installation, Path], path: str, said: str
) -> None:
    """A rank above the bound, and weights that are none; the engine goes on as before."""
    up, _ = installation
    await up.ask("DELETE", f"/api/replicas/{up.addresses[0]}/adapters/b")
    plain = await text(up, MODEL)
    status, answer = await load(up, "other", path)
    assert (status, answer["error"]["param"]) == (400, "path")
    assert said in answer["error"]["message"]
    assert await text(up, MODEL) == plain


async def test_an_adapter_of_another_model_takes_no_place(installation: tuple[Installation, Path]) -> None:
    """One is refused; then as many as there is room for say the same beside each other, and beside the model, as alone."""
    up, _ = installation
    for name in ("a", "b"):
        await up.ask("DELETE", f"/api/replicas/{up.addresses[0]}/adapters/{name}")
    assert (await load(up, "b", "b"))[0] == 200
    status, answer = await load(up, "other", "wide")
    assert (status, answer["error"]["param"]) == (400, "path")
    assert (await load(up, "c", "c"))[0] == 200
    models = (MODEL, f"{MODEL}:b", f"{MODEL}:c")
    alone = [await text(up, model) for model in models]
    assert await asyncio.gather(*(text(up, model) for model in models * 2)) == alone * 2


async def test_pause_holds_up_and_resume_goes_on(installation: tuple[Installation, Path]) -> None:
    """What was held up says what it would have said; one whose client goes away meanwhile is over."""
    up, _ = installation
    long = {"max_tokens": 150, "ignore_eos": True}
    whole = await text(up, MODEL, **long)
    requests = [asyncio.create_task(text(up, MODEL, **long)) for _ in range(2)]
    await busy(up, 2)
    _, paused = await tell(up, "pause")
    assert (paused["state"], paused["requests"]) == ("paused", 2)
    done, _ = await asyncio.wait(requests, timeout=3)
    assert not done
    requests[1].cancel()
    await asyncio.wait([requests[1]])
    await busy(up, 1)
    assert (await tell(up, "resume"))[0] == 200
    assert await requests[0] == whole


async def test_the_prefix_cache_is_forgotten_and_a_processor_does_not_sleep(
    installation: tuple[Installation, Path],
) -> None:
    """After it nothing of a prompt is cached; sleep is refused with the reason."""
    up, _ = installation
    await complete(up, MODEL)
    assert (await complete(up, MODEL))["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert (await tell(up, "reset-prefix-cache"))[0] == 200
    assert ((await complete(up, MODEL))["usage"]["prompt_tokens_details"] or {}).get("cached_tokens", 0) == 0
    for what in ("sleep", "wake"):
        status, answer = await tell(up, what)
        assert status == 400
        assert "no accelerator" in answer["error"]["message"]
    assert await text(up, MODEL)
