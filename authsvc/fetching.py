"""Fetching small documents over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp

from authsvc.jwks import ProviderError, check_url
from authsvc.provider_keys import Fetch

BODY_BYTES_MAX = 256 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=5.0, connect=3.0)
# What is not compressed cannot grow when it is unpacked.
_HEADERS = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "naru"}


@asynccontextmanager
async def fetching(*, insecure_http: bool) -> AsyncIterator[Fetch]:
    """A way to fetch, inside the block: at most 256 KiB in 5 seconds, no redirects, no cookies, https as `check_url` says."""
    async with aiohttp.ClientSession(
        timeout=_TIMEOUT, headers=_HEADERS, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:

        async def fetch(url: str) -> bytes:
            try:
                check_url(url, insecure_http=insecure_http)
                async with session.get(url, allow_redirects=False) as response:
                    if response.status != 200:
                        raise ProviderError(f"{url} answered {response.status}")
                    return await _read(response, url)
            except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
                raise ProviderError(f"{url} cannot be read: {error!r}") from error

        yield fetch


async def _read(response: aiohttp.ClientResponse, url: str) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > BODY_BYTES_MAX:
            raise ProviderError(f"{url} has more than {BODY_BYTES_MAX} bytes")
    return bytes(body)
