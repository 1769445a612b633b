"""A Lua script on Redis, called over connections of its own.

What redis-py's client does around a call takes as much CPU time as the call: its pool's locks, its own metrics, and a task for
each write. Its connections alone see to addresses, passwords, TLS and the protocol.
"""

from __future__ import annotations

import asyncio
import hashlib

from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, NoScriptError

_CONNECTIONS = 16


class Script:
    """Calls one script. Made inside or outside of a running loop; connects when first called.

    Args:
        redis: Where to, and how to get in.
        text: The script, which does the same when it is called again: a call that Redis may not have heard is repeated.
        timeout: Seconds that a call may take, the wait for a connection included.
    """

    def __init__(self, redis: Redis, text: str, *, timeout: float) -> None:
        self._pool = redis.connection_pool
        self._text = text
        self._digest = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        self._timeout = timeout
        self._free: list[AbstractConnection] = []
        self._places = asyncio.Semaphore(_CONNECTIONS)

    async def __call__(self, key: str, *arguments: str | bytes) -> bytes:
        """What it answers. Raises what redis-py raises, and TimeoutError."""
        async with asyncio.timeout(self._timeout), self._places:
            try:
                return await self._call(key, arguments)
            except ConnectionError:
                # Redis may have been restarted since: then no other connection works either.
                await self.close()
                return await self._call(key, arguments)

    async def close(self) -> None:
        """Closes the connections that are not in use."""
        while self._free:
            await self._free.pop().disconnect(nowait=True)

    async def _call(self, key: str, arguments: tuple[str | bytes, ...]) -> bytes:
        connection = self._free.pop() if self._free else self._connection()
        try:
            try:
                answer = await self._ask(connection, "EVALSHA", self._digest, 1, key, *arguments)
            except NoScriptError:
                answer = await self._ask(connection, "EVAL", self._text, 1, key, *arguments)
        finally:
            # Without an answer, whoever came next would get it; redis-py closes the connection then.
            if connection.is_connected:
                self._free.append(connection)
        return answer

    async def _ask(self, connection: AbstractConnection, *command: str | bytes | int) -> bytes:
        await connection.send_command(*command, check_health=False)
        answer: bytes = await connection.read_response(disable_decoding=True)
        return answer

    def _connection(self) -> AbstractConnection:
        # The time that a call may take is ours to watch: redis-py would begin a task for each part of it.
        return self._pool.connection_class(**self._pool.connection_kwargs | {"socket_timeout": None})
