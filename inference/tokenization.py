"""Which tokens a prompt is, and which text tokens are: asked of the engine, counted as a request and as nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from inference.admission import Need, Reservations
from inference.engine import Engine, EngineRequest, Tokens
from inference.events import GenerationOrder
from inference.generations import denial
from naru.errors import NaruError, Reason

_NEED = Need(input_tokens=0, output_tokens=1)
"""Nothing; but no output at all would be understood as output of unknown length."""


class Tokenization:
    """Answers questions about tokens, one at a time: a generation waits for one of them at most.

    Args:
        engine: Who knows.
        reservations: Counts the requests of callers who come without an edge.
    """

    def __init__(self, engine: Engine, reservations: Reservations) -> None:
        self._engine = engine
        self._reservations = reservations
        self._turn = asyncio.Lock()

    async def tokenize(
        self, request: EngineRequest, counted: GenerationOrder | None, *, strings: bool
    ) -> tuple[Tokens, int]:
        """The prompt's tokens, and most tokens of prompt and output together.

        Args:
            request: Its prompt is what is asked about.
            counted: Whose limits on requests count it; None when the edge has seen to that.
            strings: Whether to tell the tokens' texts.

        Raises NaruError for a wrong request, an unknown model, or a limit.
        """
        context_tokens = self._context_tokens(request.model)
        async with self._counting(counted, request.model), self._turn:
            return await self._engine.tokenize(request, strings=strings), context_tokens

    async def detokenize(self, model: str, token_ids: Sequence[int], counted: GenerationOrder | None) -> str:
        """The text of tokens; as `tokenize`."""
        self._context_tokens(model)
        async with self._counting(counted, model), self._turn:
            return await self._engine.detokenize(token_ids)

    def _context_tokens(self, name: str) -> int:
        models = self._engine.models()
        for model in models:
            if model.name == (name or models[0].name):
                return model.context_tokens
        raise NaruError(Reason.MODEL_NOT_FOUND, f"There is no model {name!r}.", metadata={"model": name})

    @asynccontextmanager
    async def _counting(self, order: GenerationOrder | None, model: str) -> AsyncIterator[None]:
        """Counts a request: what a release leaves of a reservation."""
        if order is None:
            yield
            return
        served = model or self._engine.models()[0].name
        objection = denial(order.principal, served)
        if objection is not None:
            raise objection
        try:
            decision = await self._reservations.reserve(order, _NEED, 0, served)
            if isinstance(decision, NaruError):
                raise decision
            yield
        finally:
            await self._reservations.release(order.key)
