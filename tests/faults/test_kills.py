"""Real processes of a real installation, killed and restarted: each request has one outcome, nothing is left behind."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import grpc
import openai
import pytest

from naru import api_key
from tests.support.platform import MODEL, Platform, alive, children, command_line, descendants, platform, until

pytestmark = [pytest.mark.faults, pytest.mark.timeout(400)]

STORY = [{"role": "user", "content": "Tell me a very long story about a ferry."}]


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation with the real engine."""
    with platform(tmp_path_factory.mktemp("naru") / "state") as running:
        yield running


def begin_stream(naru: Platform, key: str) -> tuple[openai.Stream[object], int]:
    """Starts a long stream and reads five chunks with text."""
    stream = naru.client(key).chat.completions.create(model=MODEL, messages=STORY, max_tokens=1900, stream=True)
    for _ in range(6):
        next(stream)
    return stream, 5


def rest_fails(stream: openai.Stream[object]) -> None:
    """The stream ends with an error event, neither silently nor as if it were complete."""
    with pytest.raises(openai.APIError):
        for _ in stream:
            pass


def engine_processes(naru: Platform) -> list[int]:
    """What runs below the inference service."""
    return [process_id for service in naru.service_ids("inference") for process_id in descendants(service)]


def answers(naru: Platform) -> bool:
    """Whether a chat works."""
    try:
        naru.client(timeout=20.0).chat.completions.create(model=MODEL, messages=STORY, max_tokens=1)
    except openai.APIError:
        return False
    return True


def one_outcome(naru: Platform, key: str, seconds: float) -> tuple[int, int, int]:
    """The key's usage, once there is one settled request; it stays one."""
    key_id = api_key.parse(key).key_id
    until(lambda: naru.usage(key_id)[0] == 1, seconds, "one settled outcome")
    time.sleep(3)
    assert naru.usage(key_id)[0] == 1
    return naru.usage(key_id)


def test_killing_inference_mid_stream(naru: Platform) -> None:
    """Kill -9 of the service: error event, restart without leftovers, one outcome once the lease has ended."""
    key = naru.new_key(description="kill inference", tier="standard")
    stream, seen = begin_stream(naru, key)
    (service,) = naru.service_ids("inference")
    engine = engine_processes(naru)
    assert engine
    os.kill(service, signal.SIGKILL)
    rest_fails(stream)
    with pytest.raises(openai.InternalServerError) as down:
        naru.client(key).chat.completions.create(model=MODEL, messages=STORY, max_tokens=1)
    assert down.value.status_code == 503
    assert down.value.response.headers["retry-after"]
    until(lambda: not any(alive(process_id) for process_id in engine), 30, "the engine to be gone")
    until(lambda: answers(naru), 120, "inference to be back")
    assert naru.service_ids("inference") != [service]
    _, prompt_tokens, completion_tokens = one_outcome(naru, key, 150)
    assert prompt_tokens > 0
    assert completion_tokens >= seen


def test_killing_the_engine_core_mid_stream(naru: Platform) -> None:
    """Kill -9 of EngineCore: error event, the service ends by itself, is restarted, and the request has one outcome."""
    key = naru.new_key(description="kill core", tier="standard")
    stream, seen = begin_stream(naru, key)
    (service,) = naru.service_ids("inference")
    cores = [p for p in children(service) if "resource_tracker" not in " ".join(command_line(p))]
    assert cores
    os.kill(max(cores, key=resident), signal.SIGKILL)
    rest_fails(stream)
    until(lambda: service not in naru.service_ids("inference"), 30, "the service to end")
    until(lambda: answers(naru), 120, "inference to be back")
    _, _, completion_tokens = one_outcome(naru, key, 150)
    assert completion_tokens >= seen


def resident(process_id: int) -> int:
    """Resident memory in pages: the engine core is the largest of the service's children."""
    with open(f"/proc/{process_id}/statm") as file:
        return int(file.read().split()[1])


@pytest.mark.parametrize("service", ["authsvc", "accounting", "edge"])
def test_restarting_a_service_under_load_loses_no_usage(naru: Platform, service: str) -> None:
    """Whatever a client got an answer for is settled, exactly, although the service was killed meanwhile."""
    key = naru.new_key(description=f"restart {service}", tier="unlimited")
    client, stop, answered = naru.client(key, timeout=30.0), threading.Event(), []

    def load() -> None:
        while not stop.is_set():
            try:
                usage = client.chat.completions.create(model=MODEL, messages=STORY, max_tokens=12).usage
            except openai.APIError:
                time.sleep(0.1)
            else:
                assert usage is not None
                answered.append((usage.prompt_tokens, usage.completion_tokens))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(answered) >= 8, 60, "some answers before")
        (victim,) = naru.service_ids(service)
        os.kill(victim, signal.SIGKILL)
        before = len(answered)
        until(lambda: len(answered) >= before + 12, 90, "some answers after")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    key_id = api_key.parse(key).key_id
    requests, completion_tokens = len(answered), sum(tokens for _, tokens in answered)

    def settled_all() -> bool:
        try:
            return naru.usage(key_id)[2] >= completion_tokens
        except grpc.RpcError as error:
            # Known keys go on at the edge while authsvc is away; accounting still has to find it again.
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise
            return False

    # What was in flight when a service died is settled too, as far as it was generated, though nobody got the answer.
    until(settled_all, 30, "all answers to be settled")
    settled = naru.usage(key_id)
    assert requests <= settled[0] <= requests + len(threads)
    assert settled[1] == settled[0] * answered[0][0]
    assert completion_tokens <= settled[2] <= completion_tokens + 12 * len(threads)


def test_limits_survive_a_kill_of_redis(naru: Platform) -> None:
    """The append-only file holds what was taken; requests go on as soon as Redis is back."""
    client = naru.client(naru.new_key(description="kill redis", tier="free"))

    def remaining() -> int:
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=STORY, max_tokens=1)
        return int(raw.headers["x-ratelimit-remaining-requests"])

    assert [remaining() for _ in range(4)] == [9, 8, 7, 6]
    time.sleep(1.5)  # written to disk every second
    (redis,) = naru.redis_ids()
    os.kill(redis, signal.SIGKILL)
    until(lambda: answers(naru), 30, "requests to be admitted again")
    assert remaining() == 5


def test_what_runs_is_what_should_run(naru: Platform) -> None:
    """The supervisor's processes are exactly Redis and the four services."""
    lines = [" ".join(command_line(process_id)) for process_id in children(naru.process.pid)]
    assert sorted(line.split("-m ")[1].strip() for line in lines if "-m " in line) == [
        "accounting",
        "authsvc",
        "edge",
        "inference",
    ]
    assert len([line for line in lines if "redis-server" in line]) == 1


def test_redis_is_started_again_however_often_it_dies(naru: Platform) -> None:
    """Three deaths of a Redis that worked are three restarts; nobody gives up on it."""
    for _ in range(3):
        until(lambda: naru.redis_ids() != [], 30, "Redis to run")
        (process_id,) = naru.redis_ids()
        os.kill(process_id, signal.SIGKILL)
        until(lambda: process_id not in naru.redis_ids(), 30, "Redis to be gone")  # noqa: B023 -- called at once
    until(lambda: answers(naru), 60, "chats to be answered")
