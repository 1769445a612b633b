"""Naru's kit: what every service is built with. It imports no service."""

import os

__version__ = "0.1.0"

# gRPC reads these when it is first imported, and nothing of ours imports it before this package.
#
# Our processes fork only to exec, and gRPC's fork handlers would write into the child's log.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Without its own threads for sockets: a message takes half the time and half the CPU. See ADR 20.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
