"""The compose files and Dockerfiles name only what the code knows."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from naru.config import ServiceConfig, variable
from naru.identity import ServiceName, ServiceTokens

ROOT = Path(__file__).parents[2]
SERVICES = ("edge", "authsvc", "accounting", "inference")
FILES = ("docker-compose.yml", "docker-compose.cpu.yml", "docker-compose.gpu.yml")
UPSTREAM = "docker-compose.upstream.yml"


def compose(name: str) -> dict[str, Any]:
    """A compose file as data."""
    return yaml.safe_load((ROOT / name).read_text())  # type: ignore[no-any-return] # it is a mapping


def config_class(service: str) -> type[ServiceConfig]:
    """The configuration class of a service."""
    module = importlib.import_module(f"{service}.config")
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, ServiceConfig) and value is not ServiceConfig
    ]
    assert len(found) == 1
    return found[0]


def variables(service: str) -> set[str]:
    """Every environment variable that a service knows, `_FILE` forms included."""
    kind = config_class(service)
    names = {variable(kind, field) for field in dataclasses.fields(kind)}
    secrets = {variable(kind, field) for field in dataclasses.fields(kind) if field.metadata["secret"]}
    return names | {f"{name}_FILE" for name in secrets}


def owner(name: str) -> str:
    """The service whose code a compose service runs."""
    return "inference" if name in ("model", "upstream") else name.removesuffix("-migrate")


@pytest.mark.parametrize("name", [*FILES, UPSTREAM])
def test_every_variable_is_known(name: str) -> None:
    """A misspelt variable would be a service that does not start."""
    for service, definition in compose(name)["services"].items():
        for key in definition.get("environment", {}):
            if key.startswith("NARU_"):
                assert key in variables(owner(service)), f"{name}: {service}: {key}"


@pytest.mark.parametrize("service", SERVICES)
def test_dockerfiles_name_known_variables_and_ports(service: str) -> None:
    """What a Dockerfile sets is known, and what it exposes and probes is what it sets."""
    text = (ROOT / service / "Dockerfile").read_text()
    prefix = f"NARU_{service.upper()}_"
    settings = dict(re.findall(rf"({prefix}\w+)=(\S+)", text))
    assert set(settings) <= variables(service)
    exposed = re.search(r"^EXPOSE (\d+) (\d+)$", text, re.MULTILINE)
    assert exposed is not None
    assert exposed.groups() == (settings[f"{prefix}PORT"], settings[f"{prefix}OPS_PORT"])
    assert f"127.0.0.1:{settings[f'{prefix}OPS_PORT']}/readyz" in text
    assert re.search(r"^USER naru$", text, re.MULTILINE)
    assert f'CMD ["python", "-m", "{service}"]' in text


def test_services_find_each_other_where_they_listen() -> None:
    """host:port of every address is a compose service and its port."""
    services = compose("docker-compose.yml")["services"]
    for definition in services.values():
        for key, value in definition.get("environment", {}).items():
            if re.fullmatch(r"NARU_(AUTHSVC|ACCOUNTING)_ADDRESS|NARU_INFERENCE_ADDRESSES", key):
                host, _, port = value.partition(":")
                assert host in services
                assert f"NARU_{host.upper()}_PORT={port}" in (ROOT / host / "Dockerfile").read_text()


def test_an_upstream_is_one_more_replica() -> None:
    """The edge is told of both, where they listen; the new one has what every replica has, and a journal of its own."""
    first, added = compose("docker-compose.yml"), compose(UPSTREAM)
    inference, upstream = first["services"]["inference"], added["services"]["upstream"]
    (told,) = added["services"]["edge"]["environment"].values()
    assert told.split(",") == [first["services"]["edge"]["environment"]["NARU_INFERENCE_ADDRESSES"], "upstream:50053"]
    for key in ("NARU_SERVICE_TOKENS_DIR", "NARU_AUTHSVC_ADDRESS", "NARU_ACCOUNTING_ADDRESS"):
        assert upstream["environment"][key] == inference["environment"][key]
    assert "upstream-journal:/journal" in upstream["volumes"]
    assert list(added["volumes"]) == ["upstream-journal"]
    assert not upstream.get("ports")


def test_only_the_edge_is_published() -> None:
    """Everything is closed unless named."""
    published = {name for name, d in compose("docker-compose.yml")["services"].items() if d.get("ports")}
    assert published == {"edge"}


def test_every_volume_is_declared_and_used() -> None:
    """No volume is misspelt, none is left over; host paths exist."""
    document, used = compose("docker-compose.yml"), set()
    for definition in document["services"].values():
        for mount in definition.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).exists(), source
            else:
                used.add(source)
    assert used == set(document["volumes"])


def test_secrets_go_only_to_who_needs_them() -> None:
    """Each service mounts its own volume of secrets; the script knows every service's token."""
    script = (ROOT / "deploy/secrets.sh").read_text()
    for service in ServiceName:
        assert service.value in script
    for name, definition in compose("docker-compose.yml")["services"].items():
        mounts = [m.split(":")[0] for m in definition.get("volumes", []) if m.startswith("secrets")]
        if name != "secrets":
            assert len(mounts) <= 1
            assert all(mount == f"secrets-{owner(name)}" for mount in mounts)


def test_no_service_can_call_as_another_one(tmp_path: Path) -> None:
    """Each has its own token, and knows its callers by digests; authsvc has the operator's, with which it is bootstrapped."""
    for _ in range(2):
        # As an earlier version left it.
        (tmp_path / "inference").mkdir(exist_ok=True)
        (tmp_path / "inference/service-token-operator").write_text("t" * 64)
        subprocess.run(["sh", ROOT / "deploy/secrets.sh", tmp_path], check=True)
    every = ServiceTokens.read(tmp_path / "all")
    for service, own, callers in (
        ("edge", "edge", set()),
        ("authsvc", "operator", {"edge", "accounting", "inference"}),
        ("accounting", "accounting", {"edge", "inference", "operator"}),
        ("inference", "inference", {"edge", "operator"}),
    ):
        tokens = [path.name for path in (tmp_path / service).glob("service-token-*") if not path.suffix]
        assert tokens == [f"service-token-{own}"]
        known = ServiceTokens.read(tmp_path / service)
        assert {str(name) for name in ServiceName if known.who(every.of(name))} == callers | {own}


def test_each_database_has_a_user_of_its_own(tmp_path: Path) -> None:
    """Whose password only PostgreSQL knows beside it. A URL that an earlier version gave stays: its database has one user."""
    (tmp_path / "accounting").mkdir()
    (tmp_path / "accounting/database-url").write_text("as it was")
    subprocess.run(["sh", ROOT / "deploy/secrets.sh", tmp_path], check=True)
    password = (tmp_path / "postgres/authsvc-password").read_text().strip()
    url = f"postgresql+asyncpg://authsvc:{password}@postgres:5432/authsvc"
    assert (tmp_path / "authsvc/database-url").read_text().strip() == url
    assert (tmp_path / "accounting/database-url").read_text() == "as it was"
    assert password not in (tmp_path / "postgres/accounting-password").read_text()


@pytest.mark.parametrize("name", FILES[1:])
def test_overrides_only_touch_services_that_exist(name: str) -> None:
    """An override of a service that is not there would start a second one."""
    assert set(compose(name)["services"]) <= set(compose("docker-compose.yml")["services"])


def test_every_documented_port_of_up_is_a_setting() -> None:
    """`NARU_EDGE_PORT` and friends, as `naru up` uses them, exist in the services' configuration."""
    from naru.cli.settings import DEFAULT_PORTS

    for name in DEFAULT_PORTS:
        service = name.split("_")[1].lower()
        if service in SERVICES:
            assert name in variables(service)
