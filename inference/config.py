"""What the inference service can be told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

from naru.config import ServiceConfig, setting

_POSITIVE = (
    "journal_segment_bytes",
    "session_buffer_bytes",
    "session_stall_seconds",
    "engine_probe_seconds",
    "engine_probe_timeout",
    "simulated_tokens_per_second",
    "simulated_context_tokens",
    "simulated_answer_tokens",
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InferenceConfig(ServiceConfig):
    """Configuration of one model replica. Raises ValueError for values that make no sense."""

    SERVICE: ClassVar[str] = "inference"

    port: int = setting(50053, "Port to listen on; 0 takes a free one.")
    engine: str = setting("vllm", "vllm, or simulated for benches and tests.")
    model: str = setting(".naru/models/smollm2-135m-instruct", "Directory or hub id of the model.")
    served_model_name: str = setting(
        "", "Name of the model in requests; empty for the name of its directory, or its hub id."
    )
    engine_args: str = setting(
        "{}",
        "JSON object of further arguments of vLLM's AsyncEngineArgs. They may hold an hf_token, so they are never printed.",
        secret=True,
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
    auth_stale_max: float = setting(60.0, "Seconds for which known keys still work while authsvc is away.")
    engine_probe_seconds: float = setting(10.0, "Seconds between asking the engine, while it has work, to answer.")
    engine_probe_timeout: float = setting(30.0, "Seconds without an answer after which the engine counts as dead.")
    simulated_tokens_per_second: float = setting(50.0, "Simulated engine: tokens per second of each choice.")
    simulated_prefill_seconds: float = setting(0.02, "Simulated engine: seconds until a request's first token.")
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
        if self.engine not in ("vllm", "simulated"):
            raise ValueError(f"NARU_INFERENCE_ENGINE must be vllm or simulated, not {self.engine!r}")
        if not self.model:
            raise ValueError("NARU_INFERENCE_MODEL must not be empty")
        self.engine_arguments()
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"NARU_INFERENCE_{name.upper()} must be more than 0")

    def engine_arguments(self) -> dict[str, Any]:
        """`engine_args` as a dictionary. Raises ValueError when it is not a JSON object."""
        try:
            arguments = json.loads(self.engine_args)
        except json.JSONDecodeError as error:
            raise ValueError(f"NARU_INFERENCE_ENGINE_ARGS must be a JSON object: {error}") from error
        if not isinstance(arguments, dict):
            raise ValueError("NARU_INFERENCE_ENGINE_ARGS must be a JSON object")  # noqa: TRY004 -- a wrong value, to load
        return arguments

    def served_name(self) -> str:
        """The model's name in requests."""
        return self.served_model_name or (Path(self.model).name if Path(self.model).is_dir() else self.model)
