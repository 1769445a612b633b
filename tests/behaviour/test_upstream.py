"""The way that `docs/upstream.md` names: an installation, and one more inference service, whose upstream is that same edge.

So both ends of a request are in the same books: what was claimed by the upstream, and what its engine counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from naru.api.accounting.v1 import usage_event_pb2
from naru.testing.redis_server import free_ports
from tests.support import accounts
from tests.support.platform import MODEL, ROOT, Platform, answers, platform, until

pytestmark = [pytest.mark.behaviour, pytest.mark.timeout(400)]

REPORTED, ESTIMATED = usage_event_pb2.ACCURACY_REPORTED, usage_event_pb2.ACCURACY_ESTIMATED
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me of the ferry."}]


@contextmanager
def upstream_service(naru: Platform, key: str, port: int) -> Iterator[Path]:
    """The service; yields its log. It starts before anything else is up."""
    key_file = naru.state.secrets / "upstream-key"
    key_file.write_text(key + "\n")
    (ops_port,) = free_ports(1)
    environ = naru.environ | {
        "NARU_LOG_LEVEL": "debug",
        "NARU_SERVICE_TOKENS_DIR": str(naru.state.secrets),
        "NARU_AUTHSVC_ADDRESS": f"127.0.0.1:{naru.ports['NARU_AUTHSVC_PORT']}",
        "NARU_ACCOUNTING_ADDRESS": f"127.0.0.1:{naru.ports['NARU_ACCOUNTING_PORT']}",
        "NARU_INFERENCE_JOURNAL_DIR": str(naru.state.data / "journal-upstream"),
        "NARU_INFERENCE_PORT": str(port),
        "NARU_INFERENCE_OPS_PORT": str(ops_port),
        "NARU_INFERENCE_REPLICA_ID": "upstream",
        "NARU_INFERENCE_ENGINE": "upstream",
        "NARU_INFERENCE_UPSTREAM_BASE_URL": f"{naru.url}/v1",
        "NARU_INFERENCE_UPSTREAM_API_KEY_FILE": str(key_file),
        "NARU_INFERENCE_UPSTREAM_MODELS": f"remote={MODEL}",
        "NARU_INFERENCE_UPSTREAM_PROBE_SECONDS": "0.5",
    }
    del environ["NARU_INFERENCE_ADDRESSES"]
    log = naru.state.logs / "upstream.log"
    with log.open("wb") as output:
        service = subprocess.Popen([sys.executable, "-m", "inference"], cwd=ROOT, env=environ, stderr=output)
    try:
        until(lambda: answers(f"http://127.0.0.1:{ops_port}/readyz"), 60, "the service to be ready")
        yield log
    finally:
        service.terminate()
        assert service.wait(timeout=60) == 0


def test_a_local_model_and_an_upstreams_behind_one_edge(tmp_path: Path) -> None:
    """Both are served; what the upstream reports is settled for what its engine counted; a hang-up is an estimate."""
    (port,) = free_ports(1)
    environ = {"NARU_INFERENCE_ENGINE": "simulated", "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "100"}
    with platform(tmp_path / "state", environ) as naru:
        theirs = naru.new_key(description="upstream", tier="unlimited")
        assert naru.stop() == 0
        both = f"127.0.0.1:{naru.ports['NARU_INFERENCE_PORT']},127.0.0.1:{port}"
        naru.environ["NARU_INFERENCE_ADDRESSES"] = both
        with upstream_service(naru, theirs, port) as log:
            until(lambda: "upstream is away" in log.read_text(), 30, "the upstream to be known as away")
            naru.start()
            # Not by the service's log: the edge hears of it a moment later.
            until(lambda: all_is_well(naru), 30, "the upstream to be known as back at the edge")
            ours = naru.new_key(description="ours", tier="unlimited")
            cut_at = ask(naru.client(ours))
            accounts.used(naru, ours)
            claimed, counted = accounts.events(naru, ours), accounts.events(naru, theirs)
            assert not accounts.findings(naru)
            assert naru.stop() == 0
        said = log.read_text()
    assert theirs not in said
    assert "ferry" not in said
    (own,) = [event for event in claimed if event.served_model == MODEL]
    assert own.accuracy == usage_event_pb2.ACCURACY_EXACT
    remote = sorted((event for event in claimed if event.served_model == "remote"), key=tokens)
    exact = sorted(counted, key=tokens)
    assert [event.accuracy for event in remote] == [REPORTED, REPORTED, ESTIMATED]
    assert [event.accuracy for event in exact] == [usage_event_pb2.ACCURACY_EXACT] * 3
    assert [event.usage for event in remote[:2]] == [event.usage for event in exact[:2]]
    assert [tokens(event) for event in exact[:2]] == [9, 11]
    assert cut_at <= tokens(remote[2]) <= 3 * tokens(exact[2])
    assert tokens(exact[2]) < 300


def all_is_well(naru: Platform) -> bool:
    """Whether the edge says that every service and every replica is there."""
    try:
        with urllib.request.urlopen(f"{naru.url}/health", timeout=60) as response:
            return bool(json.load(response)["status"] == "ok")
    except urllib.error.HTTPError:
        return False


def tokens(event: usage_event_pb2.UsageRecord) -> int:
    """What was generated."""
    return event.usage.completion_tokens


def ask(client: openai.OpenAI) -> int:
    """One request of the local model, and three of the upstream's; pieces that came of the last, before it was hung up."""
    client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=5)
    client.chat.completions.create(model="remote", messages=MESSAGES, max_tokens=9)
    for _ in client.chat.completions.create(model="remote", messages=MESSAGES, max_tokens=11, stream=True):
        pass
    long = client.chat.completions.create(
        model="remote", messages=MESSAGES, max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    seen = 0
    for chunk in long:
        seen += bool(chunk.choices and chunk.choices[0].delta.content)
        if seen == 20:
            break
    long.close()
    return seen
