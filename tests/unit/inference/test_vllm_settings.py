"""How vLLM is set up, and what is said when it is not as expected. Imports nothing of vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.vllm_compat import mismatches, per_step_hook_available, renders_inline
from inference.vllm_settings import VllmEngineConfig, cpu_environment, engine_arguments, environment


def arguments(on_cpu: bool, fast: bool = True, **engine_args: object) -> dict[str, object]:
    config = VllmEngineConfig("/models/m", "m", engine_args)
    return engine_arguments(config, on_cpu=on_cpu, bfloat16_is_fast=fast)


def test_a_machine_without_a_gpu_gets_small_defaults() -> None:
    """No compilation, a bounded cache and context, and the number type that its processor is fast in."""
    chosen = arguments(on_cpu=True)
    assert chosen["enforce_eager"] is True
    assert (chosen["kv_cache_memory_bytes"], chosen["max_model_len"], chosen["dtype"]) == (1 << 30, 2048, "bfloat16")
    assert arguments(on_cpu=True, fast=False)["dtype"] == "float32"


def test_a_model_that_makes_vectors_computes_exactly() -> None:
    """In float32, fast or not, and within the context that the model has."""
    config = VllmEngineConfig("/models/m", "m")
    chosen = engine_arguments(config, on_cpu=True, bfloat16_is_fast=True, pools=True, longest=256)
    assert (chosen["dtype"], chosen["max_model_len"]) == ("float32", 256)
    chosen = engine_arguments(config, on_cpu=True, bfloat16_is_fast=True, longest=8192)
    assert (chosen["dtype"], chosen["max_model_len"]) == ("bfloat16", 2048)


def test_a_gpu_keeps_vllm_s_own_defaults() -> None:
    """Nothing about memory, context or precision is decided for it."""
    assert not {"enforce_eager", "kv_cache_memory_bytes", "max_model_len", "dtype"} & set(arguments(on_cpu=False))


def test_the_operator_s_arguments_win() -> None:
    """Any engine argument replaces a default; tracing keeps the statistics that it needs."""
    chosen = arguments(on_cpu=True, dtype="float16", otlp_traces_endpoint="grpc://collector:4317")
    assert chosen["dtype"] == "float16"
    assert chosen["disable_log_stats"] is False
    assert arguments(on_cpu=True)["disable_log_stats"] is True


def test_a_place_for_adapters_stays_empty_without_a_gpu() -> None:
    """One more than may be loaded, as vLLM computes requests without an adapter by the last place; a GPU has no such need."""
    assert "max_loras" not in arguments(on_cpu=True)
    for given, places in (({}, 2), ({"max_loras": 2}, 3), ({"max_loras": 1, "max_cpu_loras": 4}, 5)):
        chosen = arguments(on_cpu=True, enable_lora=True, **given)
        assert chosen["max_loras"] == chosen["max_cpu_loras"] == places
        assert "max_loras" not in set(arguments(on_cpu=False, enable_lora=True, **given)) - set(given)


def test_a_model_in_a_folder_never_asks_a_hub(tmp_path: Path) -> None:
    """The hub is off for a local model and on for one that has to come from there."""
    assert environment(VllmEngineConfig(str(tmp_path), "m"))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(VllmEngineConfig("organisation/model", "m"))
    assert cpu_environment()["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_a_vllm_that_changed_is_told_by_name() -> None:
    """A name that is gone, a method that is gone and a parameter that is gone are each named."""

    class Renderer:
        def __init__(self, model_config: Any, renderer: Any, request_logger: Any, chat_template: Any) -> None:
            """Lacks a parameter."""

        def render_chat(self, request: Any) -> None:
            """As expected."""

        def warmup(self) -> None:
            """As expected."""

    problems = mismatches({"OnlineRenderer": Renderer, "AsyncLLM": None})
    assert "AsyncLLM is not in vllm.v1.engine.async_llm" in problems
    assert "OnlineRenderer.render_completion is gone" in problems
    assert "OnlineRenderer.__init__ has no parameter 'chat_template_content_format'" in problems


def test_a_missing_hook_is_noticed() -> None:
    """The hook counts as there only when every private method has the parameters it is called with."""

    class Processor:
        def assign_request_id(self, request: Any) -> None:
            """As expected."""

    class Engine:
        input_processor = Processor()

        def _run_output_handler(self) -> None:
            """As expected."""

        async def _add_request(self, request: Any, prompt: Any, parent_req: Any, index: Any, queue: Any) -> None:
            """As expected."""

    class Changed(Engine):
        async def _add_request(self, request: Any, queue: Any) -> None:  # type: ignore[override] -- as a release might
            """Takes less."""

    assert per_step_hook_available(Engine())
    assert not per_step_hook_available(Changed())
    assert not per_step_hook_available(object())


def test_a_renderer_without_the_inline_way_is_noticed() -> None:
    class Renderer:
        def render_chat(
            self, conversations: Any, chat_params: Any, tok_params: Any, prompt_extras: Any, skip_mm_cache: Any
        ) -> None:
            """As expected."""

        def render_cmpl(self, prompts: Any, tok_params: Any, prompt_extras: Any, skip_mm_cache: Any) -> None:
            """As expected."""

        def _tokenize_prompt(self, prompt: Any, params: Any) -> None:
            """As expected."""

        def _wants_offsets(self, prompt: Any, params: Any) -> None:
            """As expected."""

        def _build_tokens_prompt(self, token_ids: Any, prompt: Any) -> None:
            """As expected."""

    class Changed(Renderer):
        def render_cmpl(self, prompts: Any) -> None:  # type: ignore[override] -- as a release might
            """Takes less."""

    assert renders_inline(Renderer())
    assert not renders_inline(Changed())
    assert not renders_inline(object())
