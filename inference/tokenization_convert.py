"""Between the messages about tokens and inference's own types."""

from __future__ import annotations

from inference.engine import EngineRequest, InputKind, Tokens
from inference.events import GenerationOrder
from inference.openai_body import decode_object
from naru.api.inference.v1 import tokenization_pb2
from naru.context import RequestContext
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import ServiceName
from naru.ids import uuid7

_TOKENIZE, _DETOKENIZE = "/tokenize", "/detokenize"
_MOST_BYTES = 512 << 10
"""Of text or JSON. Its tokens and their texts fit into a message, and take the tokenizer less than a second."""
_MOST_TOKEN_IDS = 262_144


def request_from_proto(message: tokenization_pb2.TokenizeRequest) -> tuple[EngineRequest, bool]:
    """A request with the prompt that is asked about, and whether the tokens' texts are wanted.

    Raises NaruError INVALID_ARGUMENT or PAYLOAD_TOO_LARGE.
    """
    if message.ByteSize() > _MOST_BYTES:
        raise NaruError(
            Reason.PAYLOAD_TOO_LARGE,
            f"What to tokenize is larger than {_MOST_BYTES} bytes.",
            metadata={"limit_bytes": str(_MOST_BYTES)},
        )
    strings = message.return_token_strings
    match message.WhichOneof("input"):
        case "json":
            body = decode_object(message.json)
            kind = InputKind.OPENAI_CHAT if "messages" in body else InputKind.OPENAI_COMPLETION
            if kind is InputKind.OPENAI_COMPLETION and not isinstance(body.get("prompt"), str):
                raise invalid_argument("prompt", "One of `prompt`, a string, and `messages` must be given.")
            model = message.model or str(body.get("model") or "")
            request = EngineRequest(kind=kind, model=model, stream=False, openai_json=message.json)
            return request, strings or body.get("return_token_strs") is True
        case "text":
            if not message.text:
                raise invalid_argument("text", "text must not be empty.")
            return EngineRequest(kind=InputKind.TEXT, model=message.model, stream=False, text=message.text), strings
        case "conversation":
            messages = tuple((item.role, item.content) for item in message.conversation.messages)
            request = EngineRequest(kind=InputKind.CHAT, model=message.model, stream=False, messages=messages)
            return request, strings
        case _:
            raise invalid_argument("input", "One of json, text and conversation must be set.")


def token_ids_from_proto(message: tokenization_pb2.DetokenizeRequest) -> EngineRequest:
    """A request with the tokens that are asked about. Raises NaruError INVALID_ARGUMENT."""
    if len(message.token_ids) > _MOST_TOKEN_IDS:
        raise invalid_argument("tokens", f"At most {_MOST_TOKEN_IDS} tokens can be asked about at a time.")
    return EngineRequest(
        kind=InputKind.TOKEN_IDS, model=message.model, stream=False, token_ids=tuple(message.token_ids)
    )


def counted_order(request: EngineRequest, context: RequestContext) -> GenerationOrder | None:
    """Whose request it is and which; None for the edge, which has counted it. Raises NaruError PERMISSION_DENIED."""
    if context.caller.service is ServiceName.EDGE:
        return None
    principal = context.caller.principal
    if principal is None:
        raise NaruError(
            Reason.PERMISSION_DENIED, "This call needs somebody whose it is.", metadata={"method": context.method}
        )
    return GenerationOrder(
        event_id=uuid7(),
        attempt=0,
        request_id=context.request_id,
        request=request,
        principal=principal,
        endpoint=_DETOKENIZE if request.kind is InputKind.TOKEN_IDS else _TOKENIZE,
        client_address=context.client_address,
    )


def tokens_to_proto(tokens: Tokens, context_tokens: int) -> tokenization_pb2.TokenizeResponse:
    """What a prompt is."""
    return tokenization_pb2.TokenizeResponse(
        token_ids=tokens.token_ids, token_strings=tokens.strings or (), context_tokens=context_tokens
    )
