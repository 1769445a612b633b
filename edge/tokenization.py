"""The story of a question about tokens: reserve, ask a replica, give back. No HTTP and no gRPC in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from edge.accounts import EventRef, Reservation
from edge.gateway import Gateway
from edge.generation import Tokens
from edge.ports import GatewayPolicy, Progress, Quota, Tokenizers
from edge.reserving import ask_quota
from naru.identity import Principal


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks about which model's tokens."""

    request_id: str
    principal: Principal
    client_address: str
    endpoint: str
    requested_model: str


class Tokenization:
    """What the routes ask.

    Args:
        gateway: Knows which model is meant and who may use it.
        new_event_id: Makes the UUIDv7 of a request.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        quota: Quota,
        tokenizers: Tokenizers,
        policy: GatewayPolicy,
        new_event_id: Callable[[], str],
    ) -> None:
        self._gateway = gateway
        self._quota = quota
        self._tokenizers = tokenizers
        self._policy = policy
        self._new_event_id = new_event_id

    async def tokenize(self, question: Question, body: bytes, progress: Progress) -> Tokens:
        """The tokens of a body of /tokenize. Raises NaruError for whatever stops it."""
        async with self._counted(question, progress) as model:
            return await self._tokenizers.tokenize(model, body)

    async def detokenize(self, question: Question, token_ids: Sequence[int], progress: Progress) -> str:
        """The text of tokens; as `tokenize`."""
        async with self._counted(question, progress) as model:
            return await self._tokenizers.detokenize(model, token_ids)

    @asynccontextmanager
    async def _counted(self, question: Question, progress: Progress) -> AsyncIterator[str]:
        """Counts a request, which is what a release leaves of a reservation, and nothing else."""
        served = progress.served_model = self._gateway.resolve(question.principal, question.requested_model)
        progress.event_id = self._new_event_id()
        reservation = Reservation(
            event_id=progress.event_id,
            attempt=0,
            revision=0,
            principal=question.principal,
            client_address=question.client_address,
            requested_model=question.requested_model,
            served_model=served,
            endpoint=question.endpoint,
            input_tokens=0,
            # None at all would be understood as output of unknown length.
            output_tokens=1,
            choices=1,
            request_id=question.request_id,
        )
        try:
            result = await ask_quota(self._quota, reservation, admit_without=self._policy.admit_without_accounting)
            progress.limits = result.limits
            if result.refusal is not None:
                raise result.refusal
            yield served
        finally:
            # Also after a refusal, which took nothing, and a call that was lost, which may have.
            self._quota.release(EventRef(progress.event_id, 0))
