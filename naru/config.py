"""Configuration: one frozen dataclass per service, from `NARU_*` variables or a TOML file; unknown names are errors."""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

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
        "Directory of the files service-token-<name> by which services know each other.",
        shared=True,
    )
    reflection: bool = setting(False, "Whether gRPC reflection answers callers that have a credential.", shared=True)
    authsvc_address: str = setting("127.0.0.1:50051", "host:port of authsvc.", shared=True)
    accounting_address: str = setting("127.0.0.1:50052", "host:port of accounting.", shared=True)
    inference_addresses: tuple[str, ...] = setting(
        ("127.0.0.1:50053",), "host:port of each inference replica, separated by commas.", shared=True
    )


Config = TypeVar("Config", bound=ServiceConfig)


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
        values[name] = _convert(hints[name], raw, f"{path}: {name}")
    by_variable = {variable(config_class, field): name for name, field in fields.items()}
    others = tuple(f"NARU_{service.upper()}_" for service in SERVICES if service != config_class.SERVICE)
    by_file_variable = {f"{name}_FILE": name for name, field in by_variable.items() if fields[field].metadata["secret"]}
    for name, raw_text in environ.items():
        if name in by_file_variable:
            plain = by_file_variable[name]
            if plain in environ:
                raise ConfigError(f"{plain} and {name} are both set; set one")
            values[by_variable[plain]] = _convert(hints[by_variable[plain]], _secret(name, raw_text), name)
        elif name in by_variable:
            values[by_variable[name]] = _convert(hints[by_variable[name]], raw_text, name)
        elif name.startswith("NARU_") and not name.startswith(others):
            known = ", ".join(sorted(by_variable))
            raise ConfigError(f"{name} is not a setting of {config_class.SERVICE}; known are {known}")
    try:
        return config_class(**values)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _secret(name: str, path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"{name}: cannot read {path}: {error.strerror}") from error


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
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    values: dict[str, Any] = {}
    for table, shared in (("naru", True), (config_class.SERVICE, False)):
        for name, value in document.pop(table, {}).items():
            if name not in fields or fields[name].metadata["shared"] is not shared:
                raise ConfigError(f"{path}: [{table}] has no setting {name!r}")
            values[name] = value
    unknown = set(document) - set(SERVICES)
    if unknown:
        raise ConfigError(f"{path}: unknown tables {', '.join(sorted(unknown))}")
    return values


def _convert(kind: Any, raw: Any, where: str) -> Any:
    """`raw`, text from a variable or a TOML value, as the field's type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if raw == "" else _convert(inner, raw, where)
    if origin is tuple:
        parts = [part.strip() for part in raw.split(",")] if isinstance(raw, str) else list(raw)
        return tuple(_convert(arguments[0], part, where) for part in parts if part != "")
    try:
        if kind is bool:
            return _boolean(raw)
        if kind is Path:
            return Path(raw).expanduser()
        if isinstance(raw, bool):
            raise ValueError("a boolean")  # noqa: TRY004 -- all wrong values take the same way out
        return kind(raw)
    except (TypeError, ValueError) as error:
        name = getattr(kind, "__name__", str(kind))
        raise ConfigError(f"{where} must be of type {name}, not {raw!r}") from error


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
