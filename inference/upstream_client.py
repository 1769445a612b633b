"""Speaking to an OpenAI-compatible endpoint over HTTP, by the `openai` library."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx2
import openai

from inference.upstream_body import UpstreamCall
from inference.upstream_bounds import ACCEPT_ENCODING, AnswerBounds
from inference.upstream_chunks import broken
from inference.upstream_errors import AWAY, Refusal, from_status, from_stream
from inference.upstream_health import UpstreamHealth
from inference.upstream_settings import UpstreamEngineConfig
from naru.errors import NaruError, unavailable
from naru.logs import Logger

_NOT_CONNECTED = ("ConnectError", "ConnectTimeout")
"""What the HTTP client below the library raises when nothing was sent yet; its name differs between versions."""
_FIRST_PAUSE_SECONDS = 0.1
# Turns and queues say how many ask at once; of connections that wait for one there is a bound.
_CONNECTIONS = httpx2.Limits(max_connections=None, max_keepalive_connections=100)


class UpstreamClient:
    """One endpoint. Make it in the running loop.

    Args:
        config: Where it is.
        health: Hears whether it answers.
        logger: Where refusals are told that the operator has to mend; never with words of the upstream's.
    """

    def __init__(self, config: UpstreamEngineConfig, health: UpstreamHealth, logger: Logger) -> None:
        self._config = config
        self._health = health
        self._logger = logger
        self._client = openai.AsyncOpenAI(
            # Nothing that is empty: the library would look for variables that may hold a key for somebody else.
            api_key=config.api_key or "none",
            base_url=config.base_url,
            max_retries=0,
            timeout=openai.Timeout(None, connect=config.connect_timeout, pool=config.connect_timeout),
            http_client=openai.DefaultAsyncHttpxClient(
                limits=_CONNECTIONS,
                headers={"Accept-Encoding": ACCEPT_ENCODING},
                event_hooks={"response": [AnswerBounds(config.answer_bytes)]},
            ),
        )
        self._headers: dict[str, str | openai.Omit] = {
            "Authorization": f"Bearer {config.api_key}" if config.api_key else openai.Omit(),
            "OpenAI-Organization": openai.Omit(),
            "OpenAI-Project": openai.Omit(),
        }

    async def chunks(self, call: UpstreamCall) -> AsyncGenerator[object, None]:
        """The chunks of a stream, or a whole answer, as decoded JSON. Closing it ends the request.

        Raises NaruError when the upstream cannot be reached, refuses, breaks off, or sends what is no JSON.
        """
        with self._translated():
            answer = await self._post(call)
            self._health.answered()
            if not isinstance(answer, openai.AsyncStream):
                yield answer
                return
            try:
                async for chunk in answer:
                    yield chunk
            finally:
                await answer.close()

    async def models(self) -> Mapping[str, Mapping[str, Any]]:
        """What the upstream says of its models, by its names; empty when it lists none.

        Raises NaruError when it cannot be reached, or answers with an error.
        """
        with self._translated(probing=True):
            listed = await self._client.get("/models", cast_to=object, options={"headers": self._headers})
        self._health.answered()
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            return {}
        return {str(entry.get("id")): entry for entry in entries if isinstance(entry, dict)}

    async def close(self) -> None:
        """Closes all connections."""
        await self._client.close()

    async def _post(self, call: UpstreamCall) -> object:
        """Sends the request, once: it is only tried again as long as there was no connection to send it on."""
        tries = 0
        while True:
            try:
                return await self._client.post(
                    call.path,
                    cast_to=object,
                    body=dict(call.body),
                    options={"headers": self._headers},
                    stream=call.stream,
                    stream_cls=openai.AsyncStream[object],
                )
            except openai.APIConnectionError as error:
                if not _not_connected(error) or tries >= self._config.connect_retries:
                    raise
            await asyncio.sleep(_FIRST_PAUSE_SECONDS * 2**tries)
            tries += 1

    @contextmanager
    def _translated(self, *, probing: bool = False) -> Iterator[None]:
        """Raises our errors for the library's. Without the cause: it knows the request, headers and all.

        Args:
            probing: Whether a connection that breaks without an answer is a miss, as one that is not made is.
        """
        try:
            yield
        except openai.APIStatusError as error:
            if error.status_code < 500:
                self._health.answered()
            raise self._told(
                from_status(error.status_code, error.body, error.response.headers, self._config.api_key),
                error.status_code,
            ) from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, NaruError):
                # What is too much, which the library takes for a connection that broke.
                raise error.__cause__ from None
            if probing or _not_connected(error):
                self._health.missed()
            raise unavailable("inference", AWAY) from None
        except openai.APIError as error:
            raise self._told(from_stream(error.body, self._config.api_key), 200) from None
        except (openai.OpenAIError, ValueError):
            raise broken() from None

    def _told(self, refusal: Refusal, status: int) -> NaruError:
        if refusal.ours:
            self._logger.error("upstream refuses this installation", status=status)
        return refusal.error


def _not_connected(error: openai.APIConnectionError) -> bool:
    return any(kind.__name__ in _NOT_CONNECTED for kind in type(error.__cause__).__mro__)
