"""What `naru up` runs where: the ports, and the environment of the services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from naru.cli.state import StateFolder
from naru.config import ADMIN_EMAIL, ADMIN_PASSWORD
from naru.placement import beside_an_engine

DEFAULT_PORTS = {
    "NARU_EDGE_PORT": 8000,
    "NARU_EDGE_OPS_PORT": 50060,
    "NARU_AUTHSVC_PORT": 50051,
    "NARU_AUTHSVC_OPS_PORT": 50061,
    "NARU_ACCOUNTING_PORT": 50052,
    "NARU_ACCOUNTING_OPS_PORT": 50062,
    "NARU_INFERENCE_PORT": 50053,
    "NARU_INFERENCE_OPS_PORT": 50063,
    "NARU_UP_REDIS_PORT": 50064,
}
EMBEDDING_PORTS = {
    "NARU_UP_EMBEDDINGS_PORT": 50054,
    "NARU_UP_EMBEDDINGS_OPS_PORT": 50065,
}
"""Of the second inference process, where there is one."""
OWN_VARIABLES = ("NARU_UP_STATE", "NARU_UP_REDIS_PORT", "NARU_UP_ENGINE", "NARU_UP_EMBEDDINGS", *EMBEDDING_PORTS)
_OF_THE_FIRST = (
    "ENGINE",
    "ENGINE_ARGS",
    "ENGINE_ARGS_FILE",
    "JOURNAL_DIR",
    "LORA_ADAPTERS",
    "LORA_ROOTS",
    "MODEL",
    "OPS_PORT",
    "PORT",
    "REASONING_PARSER",
    "REPLICA_ID",
    "SERVED_MODEL_NAME",
    "TOOL_CALL_PARSER",
)
"""Settings of inference that are about one process and its model."""


class UpError(Exception):
    """`naru up` cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What runs where.

    Attributes:
        ports: By variable name, `NARU_EDGE_PORT` and friends.
        environ: For every service.
        embeddings: For the inference process with the embedding model; None: there is none.
    """

    state: StateFolder
    ports: Mapping[str, int]
    environ: Mapping[str, str]
    embeddings: Mapping[str, str] | None = None

    @property
    def embedding_model(self) -> str:
        """What requests call the embedding model by; empty where there is none."""
        model = self.embeddings["NARU_INFERENCE_MODEL"] if self.embeddings is not None else ""
        return Path(model).name if Path(model).is_dir() else model


def settings_from(environ: Mapping[str, str], state: StateFolder) -> Settings:
    """Works out the services' environment; what the caller has set wins. Raises UpError for what is wrong or unknown."""
    for name in environ:
        if name.startswith("NARU_UP_") and name not in OWN_VARIABLES:
            raise UpError(f"{name} is not a setting of `naru up`; known are {', '.join(OWN_VARIABLES)}")
    model = environ.get("NARU_UP_EMBEDDINGS", "")
    ports: dict[str, int] = {}
    for name, default in (DEFAULT_PORTS | (EMBEDDING_PORTS if model else {})).items():
        try:
            ports[name] = int(environ.get(name, default))
        except ValueError as error:
            raise UpError(f"{name} must be a port number, not {environ[name]!r}") from error
        if not 0 < ports[name] < 65536:
            raise UpError(f"{name} must be a port number from 1 to 65535, not {ports[name]}")
        same = next(other for other, port in ports.items() if port == ports[name])
        if same != name:
            raise UpError(f"{same} and {name} are both {ports[name]}; each needs a port of its own")
    data, secrets = state.data.resolve(), state.secrets.resolve()
    # In a file, as the address of Redis is: everybody of this user can read a process's environment.
    state.secret("outcome-key")
    replicas = [ports["NARU_INFERENCE_PORT"], *([ports["NARU_UP_EMBEDDINGS_PORT"]] if model else [])]
    defaults = {
        **{name: str(port) for name, port in ports.items()},
        "NARU_SERVICE_TOKENS_DIR": str(secrets),
        "NARU_REFLECTION": "true",
        "NARU_AUTHSVC_ADDRESS": f"127.0.0.1:{ports['NARU_AUTHSVC_PORT']}",
        "NARU_ACCOUNTING_ADDRESS": f"127.0.0.1:{ports['NARU_ACCOUNTING_PORT']}",
        "NARU_INFERENCE_ADDRESSES": ",".join(f"127.0.0.1:{port}" for port in replicas),
        "NARU_AUTHSVC_DATABASE_URL": f"sqlite+aiosqlite:///{data}/authsvc.db",
        "NARU_AUTHSVC_PEPPER_FILES": f"1:{secrets}/pepper",
        "NARU_ACCOUNTING_DATABASE_URL": f"sqlite+aiosqlite:///{data}/accounting.db",
        "NARU_ACCOUNTING_REDIS_URL_FILE": f"{secrets}/redis-url",
        "NARU_ACCOUNTING_OUTCOME_KEY_FILE": f"{secrets}/outcome-key",
        "NARU_INFERENCE_JOURNAL_DIR": f"{data}/journal",
        "NARU_INFERENCE_REPLICA_ID": "local",
    }
    # Two engines would have to share what the services leave.
    if environ.get("NARU_INFERENCE_ENGINE", "vllm") == "vllm" and not model and (others := beside_an_engine()):
        defaults["NARU_CPUS"] = others
    # A default beside the caller's own, in a file or not, would be a second value for one setting.
    chosen = {name.removesuffix("_FILE") for name in environ}
    defaults = {name: value for name, value in defaults.items() if name.removesuffix("_FILE") not in chosen}
    services = {"PYTHONUNBUFFERED": "1", **defaults, **environ}
    for name in (ADMIN_EMAIL, ADMIN_PASSWORD):
        services.pop(name, None)
    return Settings(state, ports, services, _embeddings(services, model, ports, data) if model else None)


def _embeddings(services: Mapping[str, str], model: str, ports: Mapping[str, int], data: Path) -> dict[str, str]:
    """The environment of the inference process with the embedding model: what is not about the first one's is the same."""
    dropped = {f"NARU_INFERENCE_{name}" for name in _OF_THE_FIRST}
    return {name: value for name, value in services.items() if name not in dropped} | {
        "NARU_INFERENCE_MODEL": model,
        "NARU_INFERENCE_PORT": str(ports["NARU_UP_EMBEDDINGS_PORT"]),
        "NARU_INFERENCE_OPS_PORT": str(ports["NARU_UP_EMBEDDINGS_OPS_PORT"]),
        "NARU_INFERENCE_JOURNAL_DIR": f"{data}/journal-embeddings",
        "NARU_INFERENCE_REPLICA_ID": "local-embeddings",
    }
