"""Builds the images, brings the compose file up, uses it, breaks it, takes it down: `make compose-test`.

Needs a Docker engine and docker-compose (1.29 or later) or `docker compose`, and the environment of `make test`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import openai

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "narucomposetest"
PORT = os.environ.get("NARU_EDGE_PORT", "18080")
MODEL = "smollm2-135m-instruct"
LONG_LIVED = ("postgres", "redis", "authsvc", "accounting", "inference", "edge")
ONE_SHOT = ("secrets", "authsvc-migrate", "accounting-migrate", "model")
FILES = ["-f", "docker-compose.yml", "-f", "docker-compose.cpu.yml"]
PROGRAM = ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


def compose(*arguments: str, capture: bool = False) -> str:
    """Runs docker-compose; returns its output when captured."""
    command = [*PROGRAM, "-p", PROJECT, *FILES, *arguments]
    environ = {**os.environ, "NARU_EDGE_PORT": PORT}
    done = subprocess.run(
        command, cwd=ROOT, env=environ, check=True, text=True, stdout=subprocess.PIPE if capture else None
    )
    return done.stdout or ""


def inspect(service: str, template: str) -> str:
    """One fact about a service's container; empty when there is none."""
    container = compose("ps", "-q", service, capture=True).strip()
    if not container:
        return ""
    command = ["docker", "inspect", "-f", template, container]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout.strip()


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits; raises AssertionError with the containers' state when it takes too long."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            compose("ps")
            compose("logs", "--tail", "30")
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.5)
    say(f"{what}: {time.monotonic() - started:.1f} s")


def healthy() -> bool:
    """Whether every long-lived service is."""
    return all(inspect(service, "{{.State.Health.Status}}") == "healthy" for service in LONG_LIVED)


def answers(key: str) -> bool:
    """Whether a chat is answered by the model."""
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{PORT}/v1", api_key=key, max_retries=0, timeout=60)
    try:
        answer = client.chat.completions.create(
            model=MODEL,
            temperature=0,
            max_tokens=16,
            messages=[{"role": "user", "content": "What is the capital of Japan?"}],
        )
    except openai.APIError:
        return False
    return "Tokyo" in (answer.choices[0].message.content or "")


def usage(key: str) -> str:
    """What `naru usage` shows inside the installation."""
    environ = ["-e", f"OPENAI_API_KEY={key}", "-e", "NARU_ACCOUNTING_ADDRESS=accounting:50052", "-e", "COLUMNS=160"]
    return compose("run", "--rm", "-T", *environ, "authsvc", "naru", "usage", capture=True)


def may_open(user: str, database: str) -> bool:
    """Whether a user of PostgreSQL may connect to a database, beside their password."""
    try:
        compose("exec", "-T", "postgres", "psql", "-U", user, "-d", database, "-c", "SELECT 1", capture=True)
    except subprocess.CalledProcessError:
        return False
    return True


def main() -> int:
    """Returns 0 when everything held."""
    try:
        say("building")
        # What a run that was cut off left behind would be taken for ours.
        compose("down", "--volumes", "--timeout", "20")
        compose("build")
        compose("up", "-d")
        until(healthy, 600, "all services healthy")
        for service in ONE_SHOT:
            assert inspect(service, "{{.State.ExitCode}}") == "0", service
        for service in ("authsvc", "accounting", "inference", "edge"):
            assert inspect(service, "{{.Config.User}}") == "naru", service
        assert not may_open("authsvc", "accounting"), "a database is its service's alone"
        assert may_open("authsvc", "authsvc")
        key = compose("run", "--rm", "-T", "authsvc", "naru", "bootstrap", capture=True).strip()
        assert key.startswith("sk-naru-")
        until(lambda: answers(key), 30, "a chat answered by vLLM in its container")
        until(lambda: MODEL in usage(key), 10, "its usage is settled")
        before = usage(key)
        say(before)
        compose("down")
        compose("up", "-d")
        until(healthy, 300, "all healthy again after down and up")
        assert usage(key) == before, "usage must survive down and up"
        until(lambda: answers(key), 30, "the key still works")
        for service in ("edge", "authsvc", "accounting", "inference", "redis", "postgres"):
            kill(service, key)
    finally:
        compose("down", "--volumes", "--timeout", "20")
    say("everything held")
    return 0


def kill(service: str, key: str) -> None:
    """Kills a service twice: its process, which the restart policy mends, and by `docker kill`, which asks for `up` again."""
    process = inspect(service, "{{.State.Pid}}")
    subprocess.run(["kill", "-9", process], check=True)
    until(
        lambda: inspect(service, "{{.State.Pid}}") not in ("0", process) and answers(key),
        240,
        f"{service}: back after kill -9",
    )
    compose("kill", service)
    compose("up", "-d")
    until(lambda: healthy() and answers(key), 240, f"{service}: back after docker kill and up")


def say(text: str) -> None:
    """Tells what is going on."""
    print(f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
