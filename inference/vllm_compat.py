"""The only place that imports vLLM, and the check that what it finds has the shape the rest was written for.

vLLM moves its modules with nearly every release. Everything of it that Naru uses is listed here once; a name that is gone or
lost a parameter stops the start with a sentence that says which one, instead of failing at some request.
"""

from __future__ import annotations

import importlib
import inspect
from dataclasses import dataclass, fields
from typing import Any

_Shape = dict[str, tuple[str, ...]]

HOOK = {
    "_add_request": ("request", "prompt", "parent_req", "index", "queue"),
    "_run_output_handler": (),
}
"""The private methods of AsyncLLM by which a step's outputs come without a task per request."""


TEXT_HOOK = {
    "__init__": ("detokenizer", "output_kind", "stream_interval", "queue"),
    "make_request_output": ("new_token_ids", "pooling_output", "finish_reason"),
}
"""The methods of vLLM's RequestState between which a step's text can be taken before objects are made of it."""

_DETOKENIZER: _Shape = {
    "decode_next": ("next_token_id",),
    "get_next_output_text": ("finished", "delta"),
}
_STEP: _Shape = {"process_outputs": ("engine_core_outputs", "engine_core_timestamp", "iteration_stats")}


class VllmMismatchError(Exception):
    """The installed vLLM is not one that this Naru can work with; the text names what is different."""


@dataclass(frozen=True, slots=True)
class Vllm:
    """vLLM's names, as the rest of the service uses them. vLLM is not typed towards us."""

    version: str
    AsyncEngineArgs: Any
    AsyncLLM: Any
    UsageContext: Any
    SamplingParams: Any
    PoolingParams: Any
    LoRARequest: Any
    RequestOutputKind: Any
    OnlineRenderer: Any
    ChatCompletionRequest: Any
    CompletionRequest: Any
    TokenizeChatRequest: Any
    TokenizeCompletionRequest: Any
    DetokenizeRequest: Any
    EmbeddingCompletionRequest: Any
    TokensPrompt: Any
    ErrorResponse: Any
    current_platform: Any
    tokens_input: Any
    extract_prompt_len: Any
    extract_prompt_components: Any
    get_max_tokens: Any
    make_tool_call_id: Any
    freeze_gc_heap: Any
    GracefulHTTPError: Any
    VLLMClientError: Any
    VLLMValidationError: Any
    EngineDeadError: Any


@dataclass(frozen=True, slots=True)
class VllmScoring:
    """Names that only models that read pairs of texts need."""

    CrossEncoderIOProcessor: Any
    ChatTemplateConfig: Any
    ScoreQueriesDocumentsRequest: Any


_PROTOCOLS = "vllm.entrypoints.openai"
_SCORING = "vllm.entrypoints.pooling.scoring"
_TOKENIZE = "vllm.entrypoints.serve.tokenize.protocol"
_PLACES: dict[str, tuple[str, ...]] = {
    "AsyncEngineArgs": ("vllm",),
    "AsyncLLM": ("vllm.v1.engine.async_llm",),
    "UsageContext": ("vllm.usage.usage_lib",),
    "SamplingParams": ("vllm",),
    "PoolingParams": ("vllm",),
    "LoRARequest": ("vllm.lora.request",),
    "RequestOutputKind": ("vllm.sampling_params",),
    "OnlineRenderer": ("vllm.renderers.online_renderer",),
    "ChatCompletionRequest": (f"{_PROTOCOLS}.chat_completion.protocol",),
    "CompletionRequest": (f"{_PROTOCOLS}.completion.protocol",),
    "TokenizeChatRequest": (_TOKENIZE,),
    "TokenizeCompletionRequest": (_TOKENIZE,),
    "DetokenizeRequest": (_TOKENIZE,),
    "EmbeddingCompletionRequest": ("vllm.entrypoints.pooling.embed.protocol",),
    "TokensPrompt": ("vllm.inputs",),
    "ErrorResponse": ("vllm.entrypoints.serve.engine.protocol",),
    "current_platform": ("vllm.platforms",),
    "tokens_input": ("vllm.inputs", "vllm.inputs.engine"),
    "extract_prompt_len": ("vllm.renderers.inputs.preprocess",),
    "extract_prompt_components": ("vllm.renderers.inputs.preprocess",),
    "get_max_tokens": ("vllm.entrypoints.serve.utils.api_utils",),
    "make_tool_call_id": ("vllm.renderers.chat_utils", "vllm.entrypoints.chat_utils"),
    "freeze_gc_heap": ("vllm.utils.gc_utils",),
    "GracefulHTTPError": ("vllm.exceptions",),
    "VLLMClientError": ("vllm.exceptions",),
    "VLLMValidationError": ("vllm.exceptions",),
    "EngineDeadError": ("vllm.v1.engine.exceptions",),
    "CrossEncoderIOProcessor": (f"{_SCORING}.io_processor",),
    "ChatTemplateConfig": ("vllm.renderers.chat_utils",),
    "ScoreQueriesDocumentsRequest": (f"{_SCORING}.protocol",),
}

_SHAPES: dict[str, _Shape] = {
    "AsyncEngineArgs": {"create_model_config": ()},
    "AsyncLLM": {
        "from_engine_args": ("engine_args", "usage_context"),
        "generate": ("prompt", "sampling_params", "request_id", "priority", "lora_request"),
        "encode": ("prompt", "pooling_params", "request_id", "priority", "lora_request"),
        "abort": ("request_id", "internal"),
        "shutdown": ("timeout",),
        "is_paused": (),
        "pause_generation": ("mode", "clear_cache"),
        "resume_generation": (),
        "reset_prefix_cache": (),
        "sleep": ("level", "mode"),
        "wake_up": (),
        "add_lora": ("lora_request",),
        "remove_lora": ("lora_id",),
        "check_admission": ("n",),
        "get_num_unfinished_requests": (),
        "get_supported_tasks": (),
        "errored": (),
    },
    "OnlineRenderer": {
        "__init__": (
            "model_config",
            "renderer",
            "request_logger",
            "chat_template",
            "chat_template_content_format",
            "enable_auto_tools",
            "tool_parser",
            "reasoning_parser",
        ),
        "effective_chat_template_kwargs": ("request",),
        "render_chat": ("request",),
        "render_completion": ("request",),
        "preprocess_chat": ("request", "messages", "default_template", "default_template_kwargs", "tool_dicts"),
        "preprocess_completion": ("request", "prompt_input", "prompt_embeds"),
        "warmup": (),
    },
    "ChatCompletionRequest": {
        "model_validate": (),
        "to_sampling_params": ("max_tokens", "default_sampling_params"),
        "resolve_reasoning_ended": ("parser", "prompt_token_ids"),
    },
    "CompletionRequest": {"model_validate": (), "to_sampling_params": ("max_tokens", "default_sampling_params")},
    "EmbeddingCompletionRequest": {"model_validate": (), "to_pooling_params": ()},
    "tokens_input": {"": ("prompt_token_ids",)},
    "extract_prompt_len": {"": ("model_config", "prompt")},
    "extract_prompt_components": {"": ("model_config", "prompt")},
    "get_max_tokens": {
        "": ("max_model_len", "max_tokens", "input_length", "default_sampling_params", "override_max_tokens")
    },
    "current_platform": {"is_cpu": (), "is_sleep_mode_available": ()},
    "CrossEncoderIOProcessor": {"render": ("render_params",), "get_score_prompt": ("data_1", "data_2")},
    "ScoreQueriesDocumentsRequest": {
        "model_validate": (),
        "build_tok_params": ("model_config",),
        "to_pooling_params": ("task",),
    },
}


def load() -> Vllm:
    """Imports vLLM, which takes seconds, and checks it.

    Raises:
        VllmMismatchError: It is not installed, or not as expected.
    """
    try:
        version = str(getattr(importlib.import_module("vllm"), "__version__", "of unknown version"))
    except ImportError as error:
        raise VllmMismatchError(f"vLLM cannot be imported: {error}") from error
    return Vllm(version=version, **_names(Vllm, version))


def load_scoring(version: str) -> VllmScoring:
    """Imports what models that read pairs of texts need. Raises VllmMismatchError."""
    return VllmScoring(**_names(VllmScoring, version))


def _names(kind: type[Vllm | VllmScoring], version: str) -> dict[str, Any]:
    wanted = [entry.name for entry in fields(kind) if entry.name in _PLACES]
    names = {name: _find(name, _PLACES[name]) for name in wanted}
    problems = mismatches(names)
    if problems:
        raise VllmMismatchError(f"vLLM {version} is not as expected: {'; '.join(problems)}.")
    return names


def _find(name: str, places: tuple[str, ...]) -> Any:
    for place in places:
        try:
            return getattr(importlib.import_module(place), name)
        except (ImportError, AttributeError):
            continue
    return None


def mismatches(names: dict[str, Any]) -> list[str]:
    """What is missing among `names`, or lacks a method or parameter that Naru uses."""
    problems = [f"{name} is not in {' or '.join(_PLACES[name])}" for name in names if names[name] is None]
    for name, methods in _SHAPES.items():
        if names.get(name) is not None:
            problems += _misshapen(names[name], name, methods)
    return problems


def _misshapen(owner: Any, title: str, methods: _Shape) -> list[str]:
    problems = []
    for method, wanted in methods.items():
        member = getattr(owner, method, None) if method else owner
        where = f"{title}.{method}" if method else title
        if member is None:
            problems.append(f"{where} is gone")
        elif wanted:
            missing = [name for name in wanted if name not in inspect.signature(member).parameters]
            problems += [f"{where} has no parameter {name!r}" for name in missing]
    return problems


def bfloat16_is_fast() -> bool:
    """Whether this machine's processor computes in bfloat16 rather than by way of something slower."""
    supported = getattr(importlib.import_module("torch").ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return bool(supported is not None and supported())


def most_bad_word_tokens() -> int:
    """How many tokens all `bad_words` of a request may have, as its operator's environment told vLLM, or 1024."""
    return int(getattr(importlib.import_module("vllm.envs"), "VLLM_MAX_BAD_WORDS_TOTAL_TOKENS", 1024))


def per_step_hook_available(engine: Any) -> bool:
    """Whether outputs can be taken per step, by methods of vLLM that are not public and may go with any release."""
    processor = getattr(engine, "input_processor", None)
    missing = _misshapen(engine, "AsyncLLM", HOOK)
    missing += _misshapen(processor, "InputProcessor", {"assign_request_id": ("request",)})
    return not missing


def text_hook(engine: Any) -> Any:
    """The class of what vLLM keeps of a request, when text can be taken from it by `TEXT_HOOK`; else None."""
    processor = getattr(engine, "output_processor", None)
    if not isinstance(getattr(processor, "request_states", None), dict):
        return None
    kept = _find("RequestState", ("vllm.v1.engine.output_processor",))
    detokenizer = _find("BaseIncrementalDetokenizer", ("vllm.v1.engine.detokenizer",))
    missing = _misshapen(kept, "RequestState", TEXT_HOOK)
    missing += _misshapen(detokenizer, "BaseIncrementalDetokenizer", _DETOKENIZER)
    missing += _misshapen(processor, "OutputProcessor", _STEP)
    return None if missing else kept


def renders_inline(renderer: Any) -> bool:
    """Whether an engine's renderer can work without leaving the event loop, by methods that `OnlineRenderer` does not use."""
    methods = {
        "render_chat": ("conversations", "chat_params", "tok_params", "prompt_extras", "skip_mm_cache"),
        "render_cmpl": ("prompts", "tok_params", "prompt_extras", "skip_mm_cache"),
        "_tokenize_prompt": ("prompt", "params"),
        "_wants_offsets": ("prompt", "params"),
        "_build_tokens_prompt": ("token_ids", "prompt"),
    }
    return not _misshapen(renderer, "BaseRenderer", methods)
