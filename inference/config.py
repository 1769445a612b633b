"""What the inference service can be told."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from inference.adapter_settings import adapter_roots, read_adapters
from inference.engine_control import AdapterBounds
from inference.upstream_settings import UpstreamEngineConfig, check_api_key, check_base_url, read_models
from naru.config import ServiceConfig, setting

Read = TypeVar("Read")
_POSITIVE = (
    "journal_segment_bytes",
    "session_buffer_bytes",
    "session_stall_seconds",
    "queue_seconds",
    "engine_probe_seconds",
    "engine_probe_timeout",
    "upstream_connect_timeout",
    "upstream_first_token_timeout",
    "upstream_total_timeout",
    "upstream_probe_seconds",
    "upstream_context_tokens",
    "upstream_answer_bytes",
    "simulated_tokens_per_second",
    "simulated_slots",
    "simulated_context_tokens",
    "simulated_answer_tokens",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig(ServiceConfig):
    """Configuration of one model replica. Raises ValueError for values that make no sense."""

    SERVICE: ClassVar[str] = "inference"

    port: int = setting(50053, "Port to listen on; 0 takes a free one.")
    session_port: int = setting(
        0, "Port for the sessions of edges, which ask for it at the other port; 0 takes a free one."
    )
    engine: str = setting(
        "vllm", "vllm; upstream for an OpenAI-compatible endpoint elsewhere; simulated for benches and tests."
    )
    model: str = setting(".naru/models/smollm2-135m-instruct", "Directory or hub id of the model.")
    served_model_name: str = setting(
        "", "Name of the model in requests; empty for the name of its directory, or its hub id."
    )
    engine_args: str = setting(
        "{}",
        "JSON object of further arguments of vLLM's AsyncEngineArgs. They may hold an hf_token, so they are never printed.",
        secret=True,
    )
    lora_roots: tuple[str, ...] = setting(
        (), "Absolute folders below which adapters may be, separated by commas; empty for no adapters."
    )
    lora_adapters: tuple[str, ...] = setting(
        (),
        "LoRA adapters to load at the start, as name=path, separated by commas. Asked for as `<model>:<name>`. `enable_lora` in"
        " NARU_INFERENCE_ENGINE_ARGS turns LoRA on; `max_loras`, `max_cpu_loras` and `max_lora_rank` there bound it.",
    )
    tool_call_parser: str = setting(
        "",
        "vLLM's parser of the model's tool calls, such as hermes; none for no tool calls; empty to choose by its name.",
    )
    reasoning_parser: str = setting(
        "", "vLLM's parser of the model's reasoning, such as qwen3; none for plain text; empty to choose by its name."
    )
    replica_id: str = setting("", "Name of this replica in usage events; empty for host name and port.")
    journal_dir: Path = setting(Path(".naru/journal"), "Directory of the journal; each replica needs its own.")
    journal_segment_bytes: int = setting(4 * 1024 * 1024, "Bytes after which the journal begins a new file.")
    session_buffer_bytes: int = setting(
        64 * 1024 * 1024, "Bytes that may wait for a caller before it is cut off, and what it runs is cancelled."
    )
    session_stall_seconds: float = setting(
        30.0, "Seconds a caller may take to read a message before it is cut off, and what it runs is cancelled."
    )
    max_running: int | None = setting(
        None,
        "Choices that the engine works on at the same time; more requests wait, served fairly by workspace. Empty for what "
        "the engine says: vLLM's max_num_seqs.",
    )
    queue_length: int = setting(1024, "Requests that may wait for the engine; more are answered with 503.")
    queue_seconds: float = setting(30.0, "Seconds a request may wait for the engine; then it is answered with 503.")
    tier_weights: str = setting(
        "{}", 'JSON object: how much more of a busy engine requests of a tier get, such as {"pro": 4}; others get 1.'
    )
    auth_stale_max: float = setting(60.0, "Seconds for which known keys still work while authsvc is away.")
    engine_probe_seconds: float = setting(10.0, "Seconds between asking the engine, while it has work, to answer.")
    engine_probe_timeout: float = setting(30.0, "Seconds without an answer after which the engine counts as dead.")
    upstream_base_url: str = setting(
        "", "Upstream engine: URL of the endpoint up to and with its version, such as https://openrouter.ai/api/v1."
    )
    upstream_api_key: str = setting("", "Upstream engine: key of the endpoint; empty for none.", secret=True)
    upstream_models: tuple[str, ...] = setting(
        (), "Upstream engine: models as name=name of the upstream's, or one name for both, separated by commas."
    )
    upstream_connect_timeout: float = setting(5.0, "Upstream engine: seconds for a connection to be made.")
    upstream_connect_retries: int = setting(
        2, "Upstream engine: further tries to make a connection; nothing that was sent is sent again."
    )
    upstream_first_token_timeout: float = setting(
        60.0, "Upstream engine: seconds until the first piece of a stream, and between two pieces."
    )
    upstream_total_timeout: float = setting(600.0, "Upstream engine: seconds for a whole answer.")
    upstream_probe_seconds: float = setting(
        30.0, "Upstream engine: seconds between asking whether the endpoint answers."
    )
    upstream_context_tokens: int = setting(
        8192, "Upstream engine: most tokens of prompt and output together, for models whose endpoint does not say."
    )
    upstream_answer_bytes: int = setting(
        16_777_216,
        "Upstream engine: bytes of an answer that is not streamed, beyond which it is broken off; streams 32 x.",
    )
    simulated_tokens_per_second: float = setting(
        50.0, "Simulated engine: tokens per second of each choice; inf: unpaced."
    )
    simulated_prefill_seconds: float = setting(0.02, "Simulated engine: seconds until a request's first token.")
    simulated_slots: int = setting(1024, "Simulated engine: choices it works on at the same time.")
    simulated_context_tokens: int = setting(8192, "Simulated engine: most tokens of prompt and output together.")
    simulated_answer_tokens: int = setting(64, "Simulated engine: tokens after which an answer ends by itself.")
    simulated_die_after_tokens: int | None = setting(
        None, "Simulated engine: dies after generating so many tokens; empty for never."
    )
    simulated_hang_after_tokens: int | None = setting(
        None, "Simulated engine: stops working after generating so many tokens; empty for never."
    )
    simulated_account: Path | None = setting(
        None, "Simulated engine: file that gets a line of JSON for each choice that begins or ends; empty for none."
    )

    def __post_init__(self) -> None:
        if self.engine not in ("vllm", "upstream", "simulated"):
            raise ValueError(f"NARU_INFERENCE_ENGINE must be vllm, upstream or simulated, not {self.engine!r}")
        if not self.model:
            raise ValueError("NARU_INFERENCE_MODEL must not be empty")
        self.engine_arguments()
        self.weights_by_tier()
        self.adapters()
        self.adapter_roots()
        self.simulated_adapters()
        if not 0 <= self.session_port < 65536:
            raise ValueError(f"NARU_INFERENCE_SESSION_PORT must be from 0 to 65535, not {self.session_port}")
        if self.queue_length < 0:
            raise ValueError("NARU_INFERENCE_QUEUE_LENGTH must be 0 or more")
        if self.max_running is not None and self.max_running < 1:
            raise ValueError("NARU_INFERENCE_MAX_RUNNING must be empty or at least 1")
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"NARU_INFERENCE_{name.upper()} must be more than 0")
        if self.upstream_connect_retries < 0:
            raise ValueError("NARU_INFERENCE_UPSTREAM_CONNECT_RETRIES must be 0 or more")
        if self.engine == "upstream":
            self._check_upstream()

    def engine_arguments(self) -> dict[str, Any]:
        """`engine_args` as a dictionary. Raises ValueError when it is not a JSON object."""
        return _json_object("NARU_INFERENCE_ENGINE_ARGS", self.engine_args)

    def adapters(self) -> dict[str, str]:
        """Paths of `lora_adapters`, by name. Raises ValueError when an entry is no name=path."""
        return _named(lambda: read_adapters(self.lora_adapters), "NARU_INFERENCE_LORA_ADAPTERS")

    def adapter_roots(self) -> tuple[Path, ...]:
        """`lora_roots` as paths. Raises ValueError when one is not absolute."""
        return _named(lambda: adapter_roots(self.lora_roots), "NARU_INFERENCE_LORA_ROOTS")

    def simulated_adapters(self) -> AdapterBounds | None:
        """What the simulated engine takes, by vLLM's arguments and defaults. Raises ValueError for what is no number."""
        arguments = self.engine_arguments()
        most = arguments.get("max_loras", 1)
        bounds = AdapterBounds(arguments.get("max_cpu_loras", most), arguments.get("max_lora_rank", 16))
        if self.engine != "simulated" or not arguments.get("enable_lora"):
            return None
        if not all(type(number) is int and number > 0 for number in (bounds.most, bounds.rank)):
            raise ValueError(
                "NARU_INFERENCE_ENGINE_ARGS must give max_loras, max_cpu_loras and max_lora_rank numbers above 0"
            )
        return bounds

    def weights_by_tier(self) -> dict[str, float]:
        """`tier_weights` as a dictionary. Raises ValueError when it is no JSON object of numbers above 0."""
        weights = _json_object("NARU_INFERENCE_TIER_WEIGHTS", self.tier_weights)
        for tier, weight in weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ValueError(f"NARU_INFERENCE_TIER_WEIGHTS must give {tier!r} a number above 0")
        return weights

    def served_name(self) -> str:
        """The model's name in requests."""
        return self.served_model_name or (Path(self.model).name if Path(self.model).is_dir() else self.model)

    def upstream(self) -> UpstreamEngineConfig:
        """What the upstream engine needs to know."""
        return UpstreamEngineConfig(
            base_url=self.upstream_base_url,
            models=read_models(self.upstream_models),
            api_key=self.upstream_api_key,
            connect_timeout=self.upstream_connect_timeout,
            first_token_timeout=self.upstream_first_token_timeout,
            total_timeout=self.upstream_total_timeout,
            connect_retries=self.upstream_connect_retries,
            probe_seconds=self.upstream_probe_seconds,
            context_tokens=self.upstream_context_tokens,
            answer_bytes=self.upstream_answer_bytes,
        )

    def _check_upstream(self) -> None:
        checks: tuple[tuple[str, Callable[[], object]], ...] = (
            ("BASE_URL", lambda: check_base_url(self.upstream_base_url)),
            ("API_KEY", lambda: check_api_key(self.upstream_api_key)),
            ("MODELS", lambda: read_models(self.upstream_models)),
        )
        for name, check in checks:
            try:
                check()
            except ValueError as error:
                raise ValueError(f"NARU_INFERENCE_UPSTREAM_{name} {error}") from None


def _named(read: Callable[[], Read], variable: str) -> Read:
    try:
        return read()
    except ValueError as error:
        raise ValueError(f"{variable} {error}") from None


def _json_object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} must be a JSON object: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name} must be a JSON object")  # noqa: TRY004 -- a wrong value, to load
    return value
