"""Configuration: one frozen dataclass per service, from `NARU_*` variables or a TOML file; unknown names are errors."""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from naru.balancing import target_of
from naru.placement import cpus_from

FINISH, END = "finish", "end"
"""What becomes of requests that run when their credential stops working."""
ADMIN_EMAIL, ADMIN_PASSWORD = "NARU_ADMIN_EMAIL", "NARU_ADMIN_PASSWORD"
"""What `naru up` writes down of the first administrator: no settings; a shell that has read it may pass them on."""
SERVICES = ("edge", "authsvc", "accounting", "inference", "up")
"""Prefixes of variables that belong to one process; the others ignore them."""


class ConfigError(Exception):
    """The configuration is wrong; the message names the variable and what is allowed."""


def setting(default: Any, documentation: str, *, secret: bool = False, shared: bool = False) -> Any:
    """Declares a field of a configuration class.

    Args:
        default: Used when nothing is set; every field has a usable one.
        documentation: A sentence with the unit.
        secret: Shown as *** wherever the configuration is printed.
        shared: The variable is `NARU_<FIELD>` for every service, instead of `NARU_<SERVICE>_<FIELD>`.
    """
    return dataclasses.field(
        default=default, metadata={"documentation": documentation, "secret": secret, "shared": shared}
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """What every service can be told."""

    SERVICE: ClassVar[str]

    host: str = setting("127.0.0.1", "Address to listen on.")
    port: int = setting(0, "Port to listen on; 0 takes a free one.")
    ops_host: str = setting("127.0.0.1", "Address of the ops listener.")
    ops_port: int = setting(0, "Port of /metrics, /healthz and /readyz; 0 takes a free one.")
    shutdown_grace: float = setting(30.0, "Seconds that running requests get to end when the service stops.")
    log_level: str = setting("info", "debug, info, warning or error.", shared=True)
    service_tokens_dir: Path = setting(
        Path(".naru/secrets"),
        "Directory of the files service-token-<name> by which services know each other; of those that only call this one "
        "service-token-<name>.sha256 is enough, the token's SHA-256 in hexadecimal.",
        shared=True,
    )
    cpus: str = setting(
        "",
        "CPUs that the service's own threads run on once it serves, as in 1-3,5; empty: all it may. vLLM's engine may run on all,"
        " and its first thread, which every step waits for, on the others alone.",
        shared=True,
    )
    reflection: bool = setting(False, "Whether gRPC reflection answers callers that have a credential.", shared=True)
    authsvc_address: str = setting(
        "127.0.0.1:50051",
        "host:port of authsvc; of several replicas a name that has all their addresses, or ip:port of each, separated by"
        " commas.",
        shared=True,
    )
    accounting_address: str = setting("127.0.0.1:50052", "host:port of accounting.", shared=True)
    inference_addresses: tuple[str, ...] = setting(
        ("127.0.0.1:50053",), "host:port of each inference replica, separated by commas.", shared=True
    )
    revoked_requests: str = setting(
        FINISH,
        "What becomes of requests that run when their key or token is revoked or blocked: finish (they go on) or end (they"
        " end with an error, and what was generated is billed).",
        shared=True,
    )
    lease_seconds: float = setting(
        60.0,
        "Seconds that a reservation lives without being renewed, the same for all services; whoever runs a request renews it"
        " every third of that.",
        shared=True,
    )


Config = TypeVar("Config", bound=ServiceConfig)
_LOG_LEVELS = ("debug", "info", "warning", "error")


def variable(config_class: type[ServiceConfig], field: dataclasses.Field[Any]) -> str:
    """The name of the environment variable that sets `field`."""
    prefix = "NARU_" if field.metadata["shared"] else f"NARU_{config_class.SERVICE.upper()}_"
    return prefix + field.name.upper()


def load(config_class: type[Config], environ: Mapping[str, str], path: Path | None = None) -> Config:
    """Reads the configuration; variables win over the file. Raises ConfigError.

    The file has a table for each service, and shared fields in the table `naru`. A secret can also be named by a file that
    holds it: `NARU_..._FILE`.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    hints = typing.get_type_hints(config_class)
    values: dict[str, Any] = {}
    for name, raw in _from_file(config_class, fields, path).items():
        values[name] = _value(fields[name], hints[name], raw, f"{path}: {name}")
    by_variable = {variable(config_class, field): name for name, field in fields.items()}
    # Beside what is said to the others, what is said to the tests and to people.
    services = (f"NARU_{service.upper()}_" for service in SERVICES if service != config_class.SERVICE)
    others = ("NARU_TEST_", ADMIN_EMAIL, ADMIN_PASSWORD, *services)
    by_file_variable = {f"{name}_FILE": name for name, field in by_variable.items() if fields[field].metadata["secret"]}
    for name, raw_text in environ.items():
        if name in by_file_variable:
            plain = by_file_variable[name]
            if plain in environ:
                raise ConfigError(f"{plain} and {name} are both set; set one")
            field = by_variable[plain]
            values[field] = _value(fields[field], hints[field], _secret(name, raw_text), name)
        elif name in by_variable:
            field = by_variable[name]
            values[field] = _value(fields[field], hints[field], raw_text, name)
        elif name.startswith("NARU_") and not name.startswith(others):
            known = ", ".join(sorted(by_variable))
            raise ConfigError(f"{name} is not a setting of {config_class.SERVICE}; known are {known}")
    try:
        config = config_class(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    _check(config)
    return config


def _check(config: ServiceConfig) -> None:
    """What holds for every service; each checks its own fields itself. Raises ConfigError."""
    prefix = f"NARU_{config.SERVICE.upper()}_"
    if config.log_level not in _LOG_LEVELS:
        raise ConfigError(f"NARU_LOG_LEVEL must be one of {', '.join(_LOG_LEVELS)}, not {config.log_level!r}")
    for name, port in (("PORT", config.port), ("OPS_PORT", config.ops_port)):
        if not 0 <= port < 65536:
            raise ConfigError(f"{prefix}{name} must be from 0 to 65535, not {port}")
    try:
        _ = cpus_from(config.cpus)
    except ValueError as error:
        raise ConfigError(f"NARU_CPUS {error}") from error
    if config.revoked_requests not in (FINISH, END):
        raise ConfigError(f"NARU_REVOKED_REQUESTS must be {FINISH} or {END}, not {config.revoked_requests!r}")
    try:
        target_of(config.authsvc_address)
    except ValueError as error:
        raise ConfigError(f"NARU_AUTHSVC_ADDRESS: {error}") from error
    if not 0 < config.lease_seconds < math.inf:
        raise ConfigError(f"NARU_LEASE_SECONDS must be more than 0 seconds, not {config.lease_seconds}")
    if not 0 <= config.shutdown_grace < math.inf:
        raise ConfigError(f"{prefix}SHUTDOWN_GRACE must be 0 or more seconds, not {config.shutdown_grace}")


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError:
        # The cause would show the bytes.
        raise ConfigError(f"{name}: {path} is not text") from None


def describe(config: ServiceConfig) -> dict[str, str]:
    """The configuration by variable name, for the log at start; secrets as ***."""
    return {
        variable(type(config), field): "***" if field.metadata["secret"] else str(getattr(config, field.name))
        for field in dataclasses.fields(config)
    }


def _from_file(
    config_class: type[ServiceConfig], fields: Mapping[str, dataclasses.Field[Any]], path: Path | None
) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        document = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:  # broken TOML, or no text at all
        raise ConfigError(f"cannot read {path}: {error}") from error
    values: dict[str, Any] = {}
    for table, shared in (("naru", True), (config_class.SERVICE, False)):
        content = document.pop(table, {})
        if not isinstance(content, dict):
            raise ConfigError(f"{path}: {table} must be a table")
        for name, value in content.items():
            if name not in fields or fields[name].metadata["shared"] is not shared:
                raise ConfigError(f"{path}: [{table}] has no setting {name!r}")
            values[name] = value
    unknown = set(document) - set(SERVICES)
    if unknown:
        raise ConfigError(f"{path}: unknown tables {', '.join(sorted(unknown))}")
    return values


def _value(field: dataclasses.Field[Any], kind: Any, raw: Any, where: str) -> Any:
    """`raw` as the field's type. Raises ConfigError, which does not show a secret."""
    try:
        return _convert(kind, raw)
    except (TypeError, ValueError) as error:
        name = kind.__name__ if isinstance(kind, type) else str(kind)
        shown = "***" if field.metadata["secret"] else repr(raw)
        raise ConfigError(f"{where} must be of type {name}, not {shown}") from error


def _convert(kind: Any, raw: Any) -> Any:
    """`raw`, text from a variable or a TOML value, as `kind`. Raises TypeError or ValueError."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if raw == "" else _convert(inner, raw)
    if origin is tuple:
        parts = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else list(raw)
        return tuple(_convert(arguments[0], part) for part in parts if part != "")
    if kind is bool:
        return _boolean(raw)
    if kind is Path:
        return Path(raw).expanduser()
    if isinstance(raw, bool | list | dict) or (kind is int and isinstance(raw, float)):
        raise TypeError("a TOML value of another type")
    return kind(raw)


def _boolean(raw: Any) -> bool:
    if isinstance(raw, bool):
        return raw
    match str(raw).lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
        case _:
            raise ValueError("not a boolean")
