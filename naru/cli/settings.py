"""What `naru up` runs where: the ports, and the environment of the services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from naru.cli.state import StateFolder, write_private

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
OWN_VARIABLES = ("NARU_UP_STATE", "NARU_UP_REDIS_PORT", "NARU_UP_ENGINE")


class UpError(Exception):
    """`naru up` cannot go on; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What runs where.

    Attributes:
        ports: By variable name, `NARU_EDGE_PORT` and friends.
        environ: For every service.
    """

    state: StateFolder
    ports: Mapping[str, int]
    environ: Mapping[str, str]


def settings_from(environ: Mapping[str, str], state: StateFolder) -> Settings:
    """Works out the services' environment; what the caller has set wins. Raises UpError for what is wrong or unknown."""
    for name in environ:
        if name.startswith("NARU_UP_") and name not in OWN_VARIABLES:
            raise UpError(f"{name} is not a setting of `naru up`; known are {', '.join(OWN_VARIABLES)}")
    ports: dict[str, int] = {}
    for name, default in DEFAULT_PORTS.items():
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
    # In files, where only the service that needs one reads it: everybody of this user can read a process's environment.
    redis_url = f"redis://:{state.secret('redis-password')}@127.0.0.1:{ports['NARU_UP_REDIS_PORT']}/0"
    write_private(secrets / "redis-url", redis_url + "\n")
    state.secret("outcome-key")
    defaults = {
        **{name: str(port) for name, port in ports.items()},
        "NARU_SERVICE_TOKENS_DIR": str(secrets),
        "NARU_REFLECTION": "true",
        "NARU_AUTHSVC_ADDRESS": f"127.0.0.1:{ports['NARU_AUTHSVC_PORT']}",
        "NARU_ACCOUNTING_ADDRESS": f"127.0.0.1:{ports['NARU_ACCOUNTING_PORT']}",
        "NARU_INFERENCE_ADDRESSES": f"127.0.0.1:{ports['NARU_INFERENCE_PORT']}",
        "NARU_AUTHSVC_DATABASE_URL": f"sqlite+aiosqlite:///{data}/authsvc.db",
        "NARU_AUTHSVC_PEPPER_FILES": f"1:{secrets}/pepper",
        "NARU_ACCOUNTING_DATABASE_URL": f"sqlite+aiosqlite:///{data}/accounting.db",
        "NARU_ACCOUNTING_REDIS_URL_FILE": f"{secrets}/redis-url",
        "NARU_ACCOUNTING_OUTCOME_KEY_FILE": f"{secrets}/outcome-key",
        "NARU_INFERENCE_JOURNAL_DIR": f"{data}/journal",
        "NARU_INFERENCE_REPLICA_ID": "local",
    }
    # A default beside the caller's own, in a file or not, would be a second value for one setting.
    chosen = {name.removesuffix("_FILE") for name in environ}
    defaults = {name: value for name, value in defaults.items() if name.removesuffix("_FILE") not in chosen}
    return Settings(state, ports, {"PYTHONUNBUFFERED": "1", **defaults, **environ})
