"""How `naru up` asks what it started: as somebody on this machine does."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp


def reached_at(host: str) -> str:
    """Where this machine reaches what listens on `host`, as URLs have it."""
    address = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{address}]" if ":" in address else address


async def status(url: str, headers: Mapping[str, str] | None = None) -> int:
    """Of an answer; 0 without one."""
    try:
        timeout = aiohttp.ClientTimeout(total=3)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, headers=headers) as response:
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


class Edge:
    """The edge, asked at the address it listens on and by a name that it answers to.

    Args:
        environ: That of the services.
    """

    def __init__(self, environ: Mapping[str, str], port: int) -> None:
        self.url = f"http://{reached_at(environ.get('NARU_EDGE_HOST', ''))}:{port}"
        trusted = [name.strip() for name in environ.get("NARU_EDGE_TRUSTED_HOSTS", "*").split(",") if name.strip()]
        # Any name below *.example.com will do.
        self._headers = {} if "*" in trusted or not trusted else {"Host": trusted[0].replace("*", "naru", 1)}

    async def status(self, path: str, api_key: str = "") -> int:
        """Of an answer; 0 without one."""
        return await status(self.url + path, self._by(api_key))

    async def models(self, api_key: str) -> list[str]:
        """The models that it lists; none when it lists nothing."""
        try:
            timeout = aiohttp.ClientTimeout(total=10)
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{self.url}/v1/models", headers=self._by(api_key), raise_for_status=True) as response,
            ):
                return [str(model["id"]) for model in (await response.json())["data"]]
        except (aiohttp.ClientError, TimeoutError, LookupError):
            return []

    def _by(self, api_key: str) -> dict[str, str]:
        return self._headers | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
