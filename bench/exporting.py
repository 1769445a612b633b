"""Whether an export grows with what it exports: events in PostgreSQL, as a client reads them, and the memory of the services.

`python -m bench.exporting` prints a line for an export of a day, and one for an export of everything.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
import urllib.request
from pathlib import Path

import asyncpg

from bench.installation import Installation, installation
from tests.support.platform import Platform

_EVENTS = """
    INSERT INTO usage_events (event_id, attempt, evidence, accuracy, outcome, key_id, user_id, service_account, workspace_id,
        tier, requested_model, served_model, endpoint, prompt_tokens, completion_tokens, cached_prompt_tokens,
        reasoning_tokens, reserve_time, end_time, request_id, replica, epoch, record_time, settled_time, cost)
    SELECT gen_random_uuid()::text, 0, 3, 'exact', 'completed', 'key-' || n % 200, '', 'dev-team', 'ws-' || n % 20, 'free',
        'gpt-4o-mini', 'smollm2', '/v1/chat/completions', 500, 200, 0, 0, t, t, 'req_' || n, 'r', 'e', t, t, 2000
    FROM (SELECT n, (extract(epoch FROM now()) * 1000000)::bigint - 1000000::bigint * n AS t FROM generate_series(1, $1) n) one
"""
_SERVICES = ("edge", "accounting")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--format", choices=["jsonl", "csv"], default="jsonl")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, installation(Path(folder), {}) as running:
        asyncio.run(_fill(running, arguments.events))
        # The first reads little: what a process needs at all is not what an export needs.
        for days in (1, 365):
            _measure(running.naru, arguments.format, days)


async def _fill(running: Installation, events: int) -> None:
    connection = await asyncpg.connect(running.database_url.replace("+asyncpg", ""))
    await connection.execute(_EVENTS, events, timeout=600)
    # As PostgreSQL does by itself within minutes; until then it plans as if the table were empty.
    await connection.execute("ANALYZE usage_events", timeout=600)
    await connection.close()


def _measure(naru: Platform, written: str, days: int) -> None:
    before, most = _memory(naru), _memory(naru)
    url = f"{naru.url}/api/admin/usage/export?format={written}&days={days}"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {naru.api_key}"})
    lines, size, looked, started = 0, 0, 0.0, time.monotonic()
    with urllib.request.urlopen(request, timeout=60) as answer:
        while chunk := answer.read(1 << 16):
            lines += chunk.count(b"\n")
            size += len(chunk)
            if time.monotonic() - looked > 0.5:
                looked = time.monotonic()
                most = {name: max(most[name], now) for name, now in _memory(naru).items()}
    seconds = time.monotonic() - started
    memory = ", ".join(f"{name} {before[name]:.0f} MiB before, {most[name]:.0f} at most" for name in _SERVICES)
    print(f"{written}, {days} days: {lines:,} lines, {size / 2**20:.0f} MiB in {seconds:.1f} s; {memory}", flush=True)


def _memory(naru: Platform) -> dict[str, float]:
    """MiB in memory, by service."""
    found = {}
    for name in _SERVICES:
        (process_id,) = naru.service_ids(name)
        (line,) = [
            one for one in Path(f"/proc/{process_id}/status").read_text().splitlines() if one.startswith("VmRSS")
        ]
        found[name] = int(line.split()[1]) / 1024
    return found


if __name__ == "__main__":
    main()
