"""Configuration: defaults, variables, files, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from naru.config import ConfigError, ServiceConfig, describe, load, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(ServiceConfig):
    SERVICE: ClassVar[str] = "edge"
    limit: int = setting(5, "A number.")
    ratio: float | None = setting(None, "A ratio.")
    names: tuple[str, ...] = setting((), "Names.")
    password: str = setting("", "A secret.", secret=True)


def test_defaults_are_usable() -> None:
    """Nothing has to be set."""
    config = load(Example, {})
    assert (config.limit, config.ratio, config.names, config.host) == (5, None, (), "127.0.0.1")


def test_variables_win_over_the_file(tmp_path: Path) -> None:
    """Both can set a field; the variable decides."""
    path = tmp_path / "naru.toml"
    path.write_text('[naru]\nlog_level = "debug"\n[edge]\nlimit = 7\nnames = ["a", "b"]\n[authsvc]\nanything = 1\n')
    config = load(Example, {"NARU_EDGE_LIMIT": "9", "NARU_EDGE_RATIO": "0.5", "PATH": "/bin"}, path)
    assert (config.limit, config.ratio, config.names, config.log_level) == (9, 0.5, ("a", "b"), "debug")


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"NARU_EDGE_LIMITS": "1"}, "NARU_EDGE_LIMITS"),
        ({"NARU_LIMIT": "1"}, "NARU_LIMIT"),
        ({"NARU_EDGE_LIMIT": "many"}, "NARU_EDGE_LIMIT"),
        ({"NARU_REFLECTION": "perhaps"}, "NARU_REFLECTION"),
        ({"NARU_LOG_LEVEL": "verbose"}, "NARU_LOG_LEVEL must be one of debug"),
        ({"NARU_CPUS": "x"}, "NARU_CPUS must be numbers of CPUs"),
        ({"NARU_EDGE_PORT": "70000"}, "NARU_EDGE_PORT must be from 0 to 65535"),
        ({"NARU_EDGE_OPS_PORT": "-1"}, "NARU_EDGE_OPS_PORT"),
        ({"NARU_EDGE_SHUTDOWN_GRACE": "nan"}, "NARU_EDGE_SHUTDOWN_GRACE"),
        ({"NARU_LEASE_SECONDS": "0"}, "NARU_LEASE_SECONDS"),
        ({"NARU_LEASE_SECONDS": "nan"}, "NARU_LEASE_SECONDS"),
    ],
)
def test_what_is_unknown_or_wrong_is_named(environ: dict[str, str], named: str) -> None:
    """An error names the variable."""
    with pytest.raises(ConfigError, match=named):
        load(Example, environ)


def test_other_services_variables_are_their_business() -> None:
    """One environment can configure all services."""
    assert load(Example, {"NARU_AUTHSVC_PORT": "x", "NARU_UP_REDIS_PORT": "1"}).limit == 5


def test_the_administrator_is_no_setting() -> None:
    """A shell that has read an earlier `dev.env` passes the administrator's address and password on."""
    assert load(Example, {"NARU_ADMIN_EMAIL": "admin@localhost", "NARU_ADMIN_PASSWORD": "x"}).limit == 5


@pytest.mark.parametrize(
    "text",
    [
        "[edge]\nnope = 1",
        "[naru]\nlimit = 1",
        "[edge]\nlog_level = 'x'",
        "[other]\n",
        "x",
        "edge = 1",
        "[edge]\nnames = 5",
        "[edge]\nhost = ['a']",
        "[edge]\nlimit = 5.9",
    ],
)
def test_a_file_is_checked_too(tmp_path: Path, text: str) -> None:
    """Unknown fields and tables, values of another type, and broken TOML, are refused."""
    path = tmp_path / "naru.toml"
    path.write_text(text)
    with pytest.raises(ConfigError):
        load(Example, {}, path)


def test_a_secret_can_come_from_a_file(tmp_path: Path) -> None:
    """`..._FILE` names a file; both at once, or a file that is missing or no text, is an error."""
    path = tmp_path / "password"
    path.write_text("hunter2\n")
    assert load(Example, {"NARU_EDGE_PASSWORD_FILE": str(path)}).password == "hunter2"
    with pytest.raises(ConfigError, match="both set"):
        load(Example, {"NARU_EDGE_PASSWORD_FILE": str(path), "NARU_EDGE_PASSWORD": "x"})
    with pytest.raises(ConfigError, match="NARU_EDGE_PASSWORD_FILE"):
        load(Example, {"NARU_EDGE_PASSWORD_FILE": str(tmp_path / "missing")})
    path.write_bytes(b"\xff\xfehunter2")
    with pytest.raises(ConfigError, match="is not text") as raised:
        load(Example, {"NARU_EDGE_PASSWORD_FILE": str(path)})
    assert "hunter2" not in str(raised.value)


def test_secrets_are_not_shown(tmp_path: Path) -> None:
    """The description that goes to the log hides them, and so do errors."""
    path = tmp_path / "naru.toml"
    path.write_text('[edge]\npassword = ["hunter2"]\n')
    with pytest.raises(ConfigError, match="password must be of type str") as raised:
        load(Example, {}, path)
    assert "hunter2" not in str(raised.value)
    shown = describe(load(Example, {"NARU_EDGE_PASSWORD": "hunter2"}))
    assert shown["NARU_EDGE_PASSWORD"] == "***"
    assert "hunter2" not in str(shown)
