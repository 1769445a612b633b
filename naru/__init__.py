"""Naru's kit: what every service is built with. It imports no service."""

import os

__version__ = "0.1.0"

# Our processes fork only to exec, and gRPC's fork handlers would write into the child's log. gRPC reads this when it is
# first imported, and nothing of ours imports it before this package.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
