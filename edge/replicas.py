"""Which replica serves a request, and which models there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from edge.generation import GenerationRequest, GenerationStream, ServedModel, Tokens
from naru.errors import NaruError, Reason, unavailable

Answer = TypeVar("Answer")


class Replica(Protocol):
    """One inference replica."""

    @property
    def address(self) -> str:
        """host:port."""

    @property
    def connected(self) -> bool:
        """Whether requests can be submitted right now."""

    @property
    def draining(self) -> bool:
        """Whether it takes no new requests, because it is about to stop or was told to."""

    @property
    def away(self) -> bool:
        """Whether it cannot serve for now, because the upstream that would does not answer."""

    @property
    def models(self) -> Mapping[str, ServedModel]:
        """What it serves, or served when it was last seen."""

    @property
    def outstanding(self) -> int:
        """Requests of this edge that it has not ended."""

    @property
    def load(self) -> int:
        """Requests of all callers in its engine, as it last said."""

    def submit(self, request: GenerationRequest) -> GenerationStream:
        """Begins a request."""

    async def tokenize(self, model: str, body: bytes) -> Tokens:
        """See `edge.ports.Tokenizers`."""

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """See `edge.ports.Tokenizers`."""


class ReplicaPool:
    """Implements `edge.ports.Replicas`: the least busy of the connected replicas that serve the model."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    def models(self) -> tuple[ServedModel, ...]:
        """All models that can be asked for now, by name. Raises NaruError SERVICE_UNAVAILABLE when no replica is up."""
        up = [replica for replica in self._replicas if replica.connected]
        if not up:
            raise _unavailable()
        models = {name: model for replica in up for name, model in replica.models.items()}
        return tuple(models[name] for name in sorted(models))

    def known_models(self) -> tuple[ServedModel, ...]:
        """What all replicas serve, or served when they were last seen."""
        return tuple(model for replica in self._replicas for model in replica.models.values())

    def check(self, model: str) -> None:
        """Raises NaruError unless `model` can be served now: MODEL_NOT_FOUND, or SERVICE_UNAVAILABLE if that may pass."""
        if self._able(model, ()):
            return
        served_before = any(model in replica.models for replica in self._replicas)
        if served_before or not any(replica.connected for replica in self._replicas):
            raise self._unavailable(model)
        raise model_not_found(model)

    def submit(self, request: GenerationRequest, without: Collection[str] = ()) -> GenerationStream:
        """Begins `request` at the least busy replica that is not in `without`. Raises NaruError SERVICE_UNAVAILABLE."""
        return self._least_busy(request.model, without).submit(request)

    async def tokenize(self, model: str, body: bytes) -> Tokens:
        """See `edge.ports.Tokenizers`; asked once more elsewhere when the replica does not answer."""
        return await self._ask(model, lambda replica: replica.tokenize(model, body))

    async def detokenize(self, model: str, token_ids: Sequence[int]) -> str:
        """As `tokenize`."""
        return await self._ask(model, lambda replica: replica.detokenize(model, token_ids))

    async def _ask(self, model: str, ask: Callable[[Replica], Awaitable[Answer]]) -> Answer:
        first = self._least_busy(model, ())
        try:
            return await ask(first)
        except NaruError as error:
            if error.reason is not Reason.SERVICE_UNAVAILABLE or not self.has_other(model, {first.address}):
                raise
        return await ask(self._least_busy(model, {first.address}))

    def _least_busy(self, model: str, without: Collection[str]) -> Replica:
        able = self._able(model, without)
        if not able:
            raise self._unavailable(model)
        return min(able, key=lambda replica: (replica.outstanding, replica.load))

    def has_other(self, model: str, without: Collection[str]) -> bool:
        """Whether a replica that is not in `without` can serve `model` now."""
        return bool(self._able(model, without))

    def _able(self, model: str, without: Collection[str]) -> list[Replica]:
        return [
            replica
            for replica in self._replicas
            if _takes_requests(replica) and model in replica.models and replica.address not in without
        ]

    def _unavailable(self, model: str) -> NaruError:
        """Says that it is the upstream where it is."""
        serving = [replica for replica in self._replicas if replica.connected and model in replica.models]
        if serving and all(replica.away for replica in serving):
            return unavailable("inference", "The model's upstream is not available right now.", retry_after=2.0)
        return _unavailable()


def _takes_requests(replica: Replica) -> bool:
    return replica.connected and not replica.draining and not replica.away


def model_not_found(model: str) -> NaruError:
    """The error for a model that is not served, or not to this caller."""
    return NaruError(
        Reason.MODEL_NOT_FOUND,
        f"The model `{model}` does not exist or you do not have access to it.",
        metadata={"model": model},
    )


def _unavailable() -> NaruError:
    return unavailable("inference", "The model is not available right now.", retry_after=2.0)
