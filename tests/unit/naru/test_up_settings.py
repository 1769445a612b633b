"""What `naru up` tells the inference process of an embedding model."""

from __future__ import annotations

from pathlib import Path

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
