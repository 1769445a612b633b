"""POST /tokenize and /detokenize as vLLM's server answers them, and /v1/messages/count_tokens as Anthropic's does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import msgspec
from aiohttp import web

from edge.anthropic.requests import parse_countable
from edge.exchange import EXCHANGE
from edge.gateway import check_endpoint
from edge.generation import Tokens
from edge.openai.requests import check_model_name, decode
from edge.ports import Progress
from edge.routes.access import Access
from edge.routes.generating import Slots
from edge.tokenization import Question, Tokenization
from naru.errors import invalid_argument

TOKENIZE, DETOKENIZE, COUNT_TOKENS = "/tokenize", "/detokenize", "/v1/messages/count_tokens"


class _Tokenize(msgspec.Struct):
    model: str | None = None


class _Detokenize(_Tokenize):
    tokens: list[Annotated[int, msgspec.Meta(ge=0, lt=2**32)]] | msgspec.UnsetType = msgspec.UNSET


_About = Callable[[str | None], Question]
_Ask = Callable[[bytes, _About, Progress], Awaitable[dict[str, Any]]]
_TOKENIZE = msgspec.json.Decoder(_Tokenize)
_DETOKENIZE = msgspec.json.Decoder(_Detokenize)


class TokenizingRoutes:
    """Answers questions about tokens; they share `slots` with what generates."""

    def __init__(self, access: Access, tokenization: Tokenization, slots: Slots) -> None:
        self._access = access
        self._tokenization = tokenization
        self._slots = slots

    async def tokenize(self, request: web.Request) -> web.Response:
        """The tokens of a text or a conversation."""

        async def ask(body: bytes, about: _About, progress: Progress) -> dict[str, Any]:
            question = about(decode(_TOKENIZE, body).model)
            return _tokens_object(await self._tokenization.tokenize(question, body, progress))

        return await self._answer(request, TOKENIZE, ask)

    async def detokenize(self, request: web.Request) -> web.Response:
        """The text of tokens."""

        async def ask(body: bytes, about: _About, progress: Progress) -> dict[str, Any]:
            asked = decode(_DETOKENIZE, body)
            if isinstance(asked.tokens, msgspec.UnsetType):
                raise invalid_argument("tokens", "Missing required parameter: 'tokens'.")
            return {"prompt": await self._tokenization.detokenize(about(asked.model), asked.tokens, progress)}

        return await self._answer(request, DETOKENIZE, ask)

    async def count_tokens(self, request: web.Request) -> web.Response:
        """How many tokens the prompt of a message would have."""

        async def ask(body: bytes, about: _About, progress: Progress) -> dict[str, Any]:
            model, translated = parse_countable(body)
            tokens = await self._tokenization.tokenize(about(model), translated, progress)
            return {"input_tokens": len(tokens.token_ids)}

        return await self._answer(request, COUNT_TOKENS, ask)

    async def _answer(self, request: web.Request, endpoint: str, ask: _Ask) -> web.Response:
        exchange = request[EXCHANGE]
        principal = await self._access.authenticate(request)
        check_endpoint(principal, endpoint)

        def about(model: str | None) -> Question:
            exchange.requested_model = check_model_name(model)
            return Question(
                request_id=exchange.request_id,
                principal=principal,
                client_address=exchange.client_address,
                endpoint=endpoint,
                requested_model=exchange.requested_model,
            )

        with self._slots.take():
            body = await self._access.read_body(request)
            answer = await ask(body, about, exchange.progress)
        return web.Response(body=msgspec.json.encode(answer), content_type="application/json")


def _tokens_object(tokens: Tokens) -> dict[str, Any]:
    return {
        "count": len(tokens.token_ids),
        "max_model_len": tokens.context_tokens,
        "tokens": tokens.token_ids,
        "token_strs": tokens.strings or None,
    }
