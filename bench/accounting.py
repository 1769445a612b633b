"""How much accounting carries: the real service, Redis and PostgreSQL, asked over gRPC as the edge and inference ask.

`python -m bench.accounting` prints a table. Figures depend on the machine and on what else it does; those of
`docs/performance.md` name theirs.
"""

from __future__ import annotations

import argparse
import tempfile

import uvloop
from redis import Redis

from bench.recording import measure_record
from bench.reserving import measure_reserve
from bench.service import accounting
from naru.lifecycle import rarely_look_for_garbage
from naru.testing.postgres_server import postgres_cluster
from naru.testing.redis_server import redis_server


def _process_of(redis_url: str) -> int:
    with Redis.from_url(redis_url) as redis:
        return int(redis.info("server")["process_id"])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=["reserve", "record"])
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement of Reserve")
    parser.add_argument("--events", type=int, default=50_000, help="for each measurement of RecordUsage")
    parser.add_argument("--database", choices=["postgresql", "sqlite"], default="postgresql")
    arguments = parser.parse_args()
    rarely_look_for_garbage()  # as the edge does, in whose place this process asks
    # The disk is waited for, as in production.
    with (
        redis_server() as redis_url,
        postgres_cluster(durable=True) as cluster,
        tempfile.TemporaryDirectory() as folder,
    ):
        sqlite = f"sqlite+aiosqlite:///{folder}/accounting.db"
        database_url = cluster.new_database() if arguments.database == "postgresql" else sqlite
        with accounting(database_url, redis_url) as address:
            pids = {"accounting": address.pid, "PostgreSQL": cluster.pid, "Redis": _process_of(redis_url)}
            if arguments.only != "record":
                uvloop.run(measure_reserve(address, pids, arguments.seconds))
            if arguments.only != "reserve":
                uvloop.run(measure_record(address, pids, arguments.events))


if __name__ == "__main__":
    main()
