"""Streams of one token in 10 ms each, which nobody is busy with: what a token costs, and how many are late."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

from bench.cpu import Meter
from bench.streaming.contestants import Contestant
from bench.streaming.wrk import Load, load

PACE = 0.01
"""Seconds between the tokens of a stream."""
TOKENS = 200
"""Of each stream; clients ask again at its end."""
DUE = "tokens/s, of those due"
FAILED = "failed"
_STREAM_SECONDS = 60
_PATH = "/v1/chat/completions"


def ask(contestant: Contestant, tokens: int, *, stream: bool, connections: int, seconds: int) -> Load:
    """Asks for answers of so many tokens, again and again. Raises RuntimeError when wrk does not run to its end."""
    body = contestant.body(tokens, stream=stream)
    return load(contestant.url + _PATH, contestant.key, body, connections=connections, seconds=seconds)


def token_bytes(contestant: Contestant) -> float:
    """Bytes on the wire for each token of a stream, its head and its end included. Raises OSError when it is not answered.

    Takes as long as a stream does.
    """
    where = urlsplit(contestant.url)
    body = json.dumps(contestant.body(TOKENS, stream=True)).encode()
    head = (
        f"POST {_PATH} HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {contestant.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    read = 0
    with socket.create_connection((where.hostname, where.port), timeout=_STREAM_SECONDS) as connection:
        connection.sendall(head.encode() + body)
        while received := connection.recv(1 << 16):
            read += len(received)
    return read / TOKENS


def paced(contestant: Contestant, streams: int, seconds: int, bytes_of_a_token: float) -> dict[str, float]:
    """Microseconds of CPU for each token: of the process that clients talk to, of those beside it, of the engine.

    Beside them the share of the tokens due that clients had read by the end, by their bytes: what an engine generates for clients
    that are gone does not count. And how many requests failed.

    Raises:
        RuntimeError: wrk did not run to its end, or no token was generated.
    """
    meter = Meter({**contestant.pids, "engine": contestant.engine})
    before = contestant.generated()
    seen = ask(contestant, TOKENS, stream=True, connections=streams, seconds=seconds)
    tokens = contestant.generated() - before
    if not tokens:
        raise RuntimeError(f"{contestant.name} generated nothing for {streams} streams: {seen}")
    front, *beside, engine = (taken / tokens * 1e6 for taken in meter.taken().values())
    return {
        "front end, µs a token": front,
        **({"services beside it, µs a token": sum(beside)} if beside else {}),
        "engine, µs a token": engine,
        DUE: seen.bytes / bytes_of_a_token / seen.seconds / (streams / PACE),
        FAILED: seen.failed,
    }
