"""Asking a service over one stream of messages, where a call for each question would cost more than its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar

from google.protobuf.message import Message

from naru.client import ServiceClient
from naru.errors import NaruError, Reason
from naru.message_stream import MessageStream

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)


class Conversation(Generic[Request, Response]):
    """Questions, each with one answer. The stream is opened by the first, and anew after it broke.

    Several may be asked at a time: they are heard in the order in which they were asked. What ends the stream before an answer
    came ends it for all that wait for theirs.

    Args:
        client: Of the service.
        path: Of a method that takes a stream and answers with one, whose responses come in the order of the requests.
        response: What it answers with.
    """

    def __init__(self, client: ServiceClient, path: str, response: type[Response]) -> None:
        self._client = client
        self._path = path
        self._response = response
        self._talk: _Talk | None = None
        # Lets in whoever came first: one opens the stream, and what is asked leaves in order.
        self._writing = asyncio.Lock()

    async def ask(self, request: Request, *, timeout: float) -> Response:
        """The answer, within `timeout` seconds.

        Raises NaruError when there is none; the question may have been heard then.
        """
        try:
            async with asyncio.timeout(timeout):
                async with self._writing:
                    talk = await self._opened()
                    answer = talk.ask(request.SerializeToString())
                return self._response.FromString(await talk.answered(answer))
        except TimeoutError:
            raise NaruError(Reason.DEADLINE_EXCEEDED, f"{self._client.name} did not answer in time.") from None

    def close(self) -> None:
        """Ends the stream; the next question opens another one."""
        if self._talk is not None:
            self._talk.stream.close()

    async def _opened(self) -> _Talk:
        """A stream that has sent all that was asked before: what has not left may be asked on the next one."""
        while True:
            talk = self._talk
            if talk is None or talk.failure is not None:
                talk = _Talk()
                talk.stream = await self._client.open_stream(self._path, talk)
                if talk.failure is not None:
                    raise talk.failure
                self._talk = talk
            await talk.sent()
            if talk.failure is None:
                return talk


class _Talk:
    """One stream, and who waits for what. Implements `naru.message_stream.Listener`."""

    stream: MessageStream

    def __init__(self) -> None:
        self.failure: NaruError | None = None
        self._answers: deque[asyncio.Future[bytes]] = deque()
        self._sent = asyncio.Event()
        self._sent.set()

    async def sent(self) -> None:
        """Returns once all questions have left, or none will any more."""
        _ = await self._sent.wait()

    def ask(self, question: bytes) -> asyncio.Future[bytes]:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self.stream.write(question)
        if not self.stream.is_ready:
            self._sent.clear()
        return answer

    async def answered(self, answer: asyncio.Future[bytes]) -> bytes:
        try:
            return await answer
        finally:
            if answer.cancelled():
                # Whoever asks next may be answered elsewhere, if this one answers nobody any more.
                self.stream.close()

    def message(self, message: bytes) -> None:
        if self._answers and not (answer := self._answers.popleft()).done():
            answer.set_result(message)

    def ready(self) -> None:
        self._sent.set()

    def ended(self, error: NaruError) -> None:
        self.failure = error
        self._sent.set()
        answers, self._answers = self._answers, deque()
        for answer in answers:
            if not answer.done():
                answer.set_exception(error)
