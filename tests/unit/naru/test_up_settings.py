"""What `naru up` tells its services, that of an embedding model included, and the shells that read its `dev.env`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from naru.cli.probes import Edge
from naru.cli.settings import settings_from
from naru.cli.state import StateFolder


def state_in(folder: Path) -> StateFolder:
    state = StateFolder(folder / "state")
    state.prepare()
    return state


def test_there_is_none_unless_it_is_asked_for(tmp_path: Path) -> None:
    """No second process, and no port of its own."""
    settings = settings_from({}, state_in(tmp_path))
    assert (settings.embeddings, settings.embedding_model) == (None, "")
    assert settings.environ["NARU_INFERENCE_ADDRESSES"] == "127.0.0.1:50053"
    assert "NARU_UP_EMBEDDINGS_PORT" not in settings.ports


def test_it_has_its_own_model_and_journal(tmp_path: Path) -> None:
    """What is said of the first process's model is not its own; the rest is, and the edge knows both."""
    model = tmp_path / "minilm"
    model.mkdir()
    environ = {
        "NARU_UP_EMBEDDINGS": str(model),
        "NARU_UP_EMBEDDINGS_PORT": "50070",
        "NARU_INFERENCE_ENGINE": "simulated",
        "NARU_INFERENCE_ENGINE_ARGS": '{"max_model_len": 99}',
        "NARU_INFERENCE_SERVED_MODEL_NAME": "chat",
        "NARU_INFERENCE_SHUTDOWN_GRACE": "7",
    }
    settings = settings_from(environ, state_in(tmp_path))
    assert settings.embeddings is not None
    assert settings.embedding_model == "minilm"
    assert settings.environ["NARU_INFERENCE_ADDRESSES"] == "127.0.0.1:50053,127.0.0.1:50070"
    assert settings.embeddings["NARU_INFERENCE_MODEL"] == str(model)
    assert settings.embeddings["NARU_INFERENCE_PORT"] == "50070"
    assert settings.embeddings["NARU_INFERENCE_SHUTDOWN_GRACE"] == "7"
    own = {"NARU_INFERENCE_ENGINE", "NARU_INFERENCE_ENGINE_ARGS", "NARU_INFERENCE_SERVED_MODEL_NAME"}
    assert not own & set(settings.embeddings)
    for name in ("NARU_INFERENCE_JOURNAL_DIR", "NARU_INFERENCE_REPLICA_ID", "NARU_INFERENCE_OPS_PORT"):
        assert settings.embeddings[name] != settings.environ[name]


def test_a_shell_that_has_read_dev_env_can_start_it_again(tmp_path: Path) -> None:
    """What is for the `naru` command or for people alone is read back, and not passed on."""
    state, admin = state_in(tmp_path), {"NARU_ADMIN_EMAIL": "admin@localhost", "NARU_ADMIN_PASSWORD": "x"}
    lines = {
        "OPENAI_API_KEY": "k",
        "NARU_AUTHSVC_ADDRESS": "127.0.0.1:1",
        "NARU_ACCOUNTING_ADDRESS": "127.0.0.1:3",
        "NARU_INFERENCE_ADDRESSES": "127.0.0.1:2",
    } | admin
    state.write_dev_env(lines)
    assert state.read_dev_env() == lines
    command = ["sh", "-c", f'. "{state.dev_env}"; env']
    shown = subprocess.run(command, env={"PATH": os.environ["PATH"]}, check=True, capture_output=True, text=True).stdout
    passed = dict(line.split("=", 1) for line in shown.splitlines())
    assert {name for name in lines if name in passed} == {"OPENAI_API_KEY"}
    # With other ports than before, which the services are then told.
    environ = settings_from(passed | {"NARU_AUTHSVC_PORT": "50071", "NARU_ACCOUNTING_PORT": "50072"}, state).environ
    addresses = (environ["NARU_AUTHSVC_ADDRESS"], environ["NARU_ACCOUNTING_ADDRESS"])
    assert addresses == ("127.0.0.1:50071", "127.0.0.1:50072")


def test_no_service_hears_of_the_administrator(tmp_path: Path) -> None:
    """Also where a shell has the variables, from a `dev.env` that exported them."""
    environ = {"NARU_ADMIN_EMAIL": "admin@localhost", "NARU_ADMIN_PASSWORD": "x", "NARU_UP_EMBEDDINGS": "minilm"}
    settings = settings_from(environ, state_in(tmp_path))
    assert settings.embeddings is not None
    assert not {"NARU_ADMIN_EMAIL", "NARU_ADMIN_PASSWORD"} & {*settings.environ, *settings.embeddings}


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
        ("::", "http://[::1]:8000"),
        ("fd00::1", "http://[fd00::1]:8000"),
        ("localhost", "http://localhost:8000"),
    ],
)
def test_the_edge_is_asked_where_it_listens(host: str | None, url: str) -> None:
    """At every address, at the one of this machine that is always there."""
    assert Edge({} if host is None else {"NARU_EDGE_HOST": host}, 8000).url == url
