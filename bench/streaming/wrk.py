"""Load from wrk, a native client: a slow one would measure itself."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer {key}"
wrk.body = [==[{body}]==]
done = function(summary, latency, requests)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{{"requests":%d,"microseconds":%d,"bytes":%d,"failed":%d,"p50":%d,"p99":%d}}\\n',
    summary.requests, summary.duration, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """What wrk saw. `bytes` are all that it read, of unfinished answers too; times are of whole requests, in seconds."""

    requests: int
    seconds: float
    bytes: int
    failed: int
    p50: float
    p99: float


def load(url: str, key: str, body: dict[str, Any], *, connections: int, seconds: int) -> Load:
    """Asks again and again on so many connections. Raises RuntimeError when wrk did not run to its end."""
    with tempfile.TemporaryDirectory(prefix="naru-bench-") as folder:
        script = Path(folder) / "load.lua"
        script.write_text(_SCRIPT.format(key=key, body=json.dumps(body)))
        options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "60s", "-s", str(script)]
        ended = subprocess.run(["wrk", *options, url], capture_output=True, text=True, check=False)
    told = re.search(r"^\{.*\}$", ended.stderr, re.MULTILINE)
    if ended.returncode or told is None:
        raise RuntimeError(f"wrk: {ended.stderr or ended.stdout}")
    figures = json.loads(told.group())
    return Load(
        requests=figures["requests"],
        seconds=figures["microseconds"] / 1e6,
        bytes=figures["bytes"],
        failed=figures["failed"],
        p50=figures["p50"] / 1e6,
        p99=figures["p99"] / 1e6,
    )
