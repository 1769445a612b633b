"""Between the messages about generations and inference's own types."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

from msgspec.structs import replace

from inference.engine import (
    ChoiceOutput,
    EngineRequest,
    InputKind,
    Sampling,
    TokenCandidate,
    TokenLogprob,
)
from inference.events import (
    MAX_TIMEOUT,
    Accepted,
    Event,
    Finished,
    GenerationOrder,
    Refused,
)
from inference.openai_body import decode_object
from naru.api.inference.v1 import generation_pb2, inference_service_pb2
from naru.context import RequestContext, is_request_id
from naru.convert import (
    duration_from_proto,
    error_to_proto,
    principal_from_proto,
    timestamp_to_proto,
    usage_to_proto,
)
from naru.errors import NaruError, Reason, invalid_argument
from naru.identity import Principal, ServiceName
from naru.ids import is_uuid, new_request_id, uuid7
from naru.tracing import current_traceparent
from naru.usage import Outcome

_MODEL_NAME_MAX = 512
"""As many characters as accounting keeps: a batch of usage events must fit in a message, whatever callers call things."""

_CHAT, _COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_OPENAI = {
    generation_pb2.ENDPOINT_CHAT_COMPLETIONS: (InputKind.OPENAI_CHAT, _CHAT),
    generation_pb2.ENDPOINT_COMPLETIONS: (InputKind.OPENAI_COMPLETION, _COMPLETIONS),
    generation_pb2.ENDPOINT_MESSAGES: (InputKind.OPENAI_CHAT, "/v1/messages"),
    generation_pb2.ENDPOINT_RESPONSES: (InputKind.OPENAI_CHAT, "/v1/responses"),
    generation_pb2.ENDPOINT_EMBEDDINGS: (InputKind.OPENAI_EMBEDDINGS, "/v1/embeddings"),
    generation_pb2.ENDPOINT_RERANK: (InputKind.SCORE, "/v1/rerank"),
    generation_pb2.ENDPOINT_SCORE: (InputKind.SCORE, "/v1/score"),
}
_FINISHES = {
    Outcome.COMPLETED: generation_pb2.FINISH_OUTCOME_COMPLETED,
    Outcome.ABORTED: generation_pb2.FINISH_OUTCOME_ABORTED,
    Outcome.FAILED: generation_pb2.FINISH_OUTCOME_FAILED,
}


def order_from_proto(message: generation_pb2.Generation, context: RequestContext) -> GenerationOrder:
    """The request, attributed to whom the caller may speak for: anybody for the edge, itself for everybody else.

    Raises NaruError INVALID_ARGUMENT, or PERMISSION_DENIED for a caller that is nobody who could pay.
    """
    if context.caller.service is ServiceName.EDGE:
        return _order_of_edge(message)
    principal = context.caller.principal
    if principal is None:
        raise NaruError(
            Reason.PERMISSION_DENIED, "A generation needs somebody who pays.", metadata={"method": context.method}
        )
    if message.request_id and not is_request_id(message.request_id):
        raise invalid_argument(
            "request_id", "request_id takes 1 to 128 letters, digits, dots, underscores and hyphens."
        )
    request, endpoint = _request_from_proto(message, principal, None)
    return GenerationOrder(
        event_id=uuid7(),
        attempt=0,
        request_id=message.request_id or context.request_id,
        request=request,
        principal=principal,
        endpoint=endpoint,
        requested_model=message.requested_model[:_MODEL_NAME_MAX],
        timeout=_timeout(message),
        traceparent=message.traceparent or current_traceparent() or context.traceparent,
        client_address=context.client_address,
    )


def _order_of_edge(message: generation_pb2.Generation) -> GenerationOrder:
    if not is_uuid(message.event_id):
        raise invalid_argument("event_id", "event_id must be a UUID.")
    if message.attempt < 0:
        raise invalid_argument("attempt", "attempt must be at least 0.")
    if not message.principal.workspace_id:
        raise invalid_argument("principal", "principal must name a workspace.")
    principal = principal_from_proto(message.principal)
    cap = message.output_token_cap if message.HasField("output_token_cap") else None
    request, endpoint = _request_from_proto(message, principal, cap)
    return GenerationOrder(
        event_id=message.event_id,
        attempt=message.attempt,
        request_id=message.request_id or new_request_id(),
        request=request,
        principal=principal,
        endpoint=endpoint,
        requested_model=message.requested_model[:_MODEL_NAME_MAX],
        timeout=_timeout(message),
        traceparent=message.traceparent,
        reserved_prompt_tokens=message.reserved_prompt_tokens,
    )


def _timeout(message: generation_pb2.Generation) -> float:
    if not message.HasField("timeout"):
        return MAX_TIMEOUT
    seconds = duration_from_proto(message.timeout)
    if seconds <= 0:
        raise invalid_argument("timeout", "timeout must be more than 0.")
    return min(seconds, MAX_TIMEOUT)


def _request_from_proto(
    message: generation_pb2.Generation, principal: Principal, cap: int | None
) -> tuple[EngineRequest, str]:
    stream, salt = message.stream, cache_salt(principal)

    def request(kind: InputKind, sampling: Sampling | None = None, **input_fields: object) -> EngineRequest:
        return EngineRequest(
            kind=kind,
            model=message.model,
            stream=stream,
            output_token_cap=cap,
            sampling=sampling or Sampling(),
            cache_salt=salt,
            **input_fields,  # type: ignore[arg-type]  # each call below names fields of EngineRequest
        )

    match message.WhichOneof("input"):
        case "openai":
            kind, endpoint = _openai_kind(message.openai.endpoint)
            made = request(kind, openai_json=message.openai.json)
            named = None if made.model else decode_object(made.openai_json).get("model")
            return replace(made, model=named) if isinstance(named, str) else made, endpoint
        case "chat":
            if not message.chat.messages:
                raise invalid_argument("chat.messages", "chat.messages must hold at least one message.")
            messages = tuple((item.role, item.content) for item in message.chat.messages)
            return request(InputKind.CHAT, sampling_from_proto(message.chat.sampling), messages=messages), _CHAT
        case "text":
            if not message.text.text:
                raise invalid_argument("text.text", "text.text must not be empty.")
            sampling = sampling_from_proto(message.text.sampling)
            return request(InputKind.TEXT, sampling, text=message.text.text), _COMPLETIONS
        case "token_ids":
            if not message.token_ids.token_ids:
                raise invalid_argument("token_ids.token_ids", "token_ids.token_ids must not be empty.")
            sampling = sampling_from_proto(message.token_ids.sampling)
            return request(InputKind.TOKEN_IDS, sampling, token_ids=tuple(message.token_ids.token_ids)), _COMPLETIONS
        case _:
            raise invalid_argument("input", "One of openai, chat, text and token_ids must be set.")


def _openai_kind(endpoint: generation_pb2.Endpoint.ValueType) -> tuple[InputKind, str]:
    known = _OPENAI.get(endpoint)
    if known is None:
        raise invalid_argument("openai.endpoint", "openai.endpoint must be a known endpoint.")
    return known


def cache_salt(principal: Principal) -> str:
    """What keeps the prefix cache of one workspace from telling another what it was asked."""
    return hashlib.sha256(b"naru cache salt\0" + principal.workspace_id.encode()).hexdigest()


def sampling_from_proto(message: generation_pb2.SamplingParameters) -> Sampling:
    """How to generate. Raises NaruError INVALID_ARGUMENT naming the field that is out of range."""
    n = message.n if message.HasField("n") else 1
    for name, value, low, high in (
        ("temperature", message.temperature, 0.0, 2.0),
        ("presence_penalty", message.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", message.frequency_penalty, -2.0, 2.0),
        ("n", n, 1, 128),
        ("top_k", message.top_k, 0, math.inf),
    ):
        if not low <= value <= high:
            raise invalid_argument(name, f"{name} must be from {low:g} to {high:g}.")
    if message.HasField("top_p") and not 0 < message.top_p <= 1:
        raise invalid_argument("top_p", "top_p must be more than 0 and at most 1.")
    if message.HasField("max_tokens") and message.max_tokens < 1:
        raise invalid_argument("max_tokens", "max_tokens must be at least 1.")
    if len(message.stop) > 4:
        raise invalid_argument("stop", "stop takes at most 4 texts.")
    return Sampling(
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        top_k=message.top_k if message.HasField("top_k") else None,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        n=n,
        seed=message.seed if message.HasField("seed") else None,
        stop=tuple(message.stop),
        presence_penalty=message.presence_penalty if message.HasField("presence_penalty") else None,
        frequency_penalty=message.frequency_penalty if message.HasField("frequency_penalty") else None,
    )


def session_response_to_proto(
    batch: Iterable[tuple[int, Event]], load: inference_service_pb2.Load
) -> inference_service_pb2.GenerateSessionResponse:
    """What happened to streams of a session, each stream's events in order."""
    stream_ids: list[int] = []
    texts: list[str] = []
    completion_tokens: list[int] = []
    frames: list[inference_service_pb2.Frame] = []
    framed: set[int] = set()
    for stream_id, event in batch:
        # What is read before all frames must not have come after one.
        if isinstance(event, ChoiceOutput) and stream_id not in framed and _is_plain(event):
            stream_ids.append(stream_id)
            texts.append(event.text)
            completion_tokens.append(event.completion_tokens)
        else:
            framed.add(stream_id)
            frames.append(frame_to_proto(stream_id, event))
    plain_deltas = None
    if stream_ids:
        plain_deltas = inference_service_pb2.PlainDeltas(
            stream_ids=stream_ids, texts=texts, completion_tokens=completion_tokens
        )
    return inference_service_pb2.GenerateSessionResponse(frames=frames, load=load, plain_deltas=plain_deltas)


def _is_plain(output: ChoiceOutput) -> bool:
    """Whether it is text of the first choice and nothing else. Vectors and scores come with an end."""
    return not (
        output.choice_index
        or output.finish_reason
        or output.logprobs
        or output.token_ids
        or output.reasoning
        or output.tool_calls
        or output.prompt is not None
    )


def frame_to_proto(stream_id: int, event: Event) -> inference_service_pb2.Frame:
    """What happened to one stream of a session."""
    match event:
        case ChoiceOutput():
            return inference_service_pb2.Frame(stream_id=stream_id, delta=delta_to_proto(event))
        case Accepted():
            return inference_service_pb2.Frame(stream_id=stream_id, accepted=accepted_to_proto(event))
        case Refused():
            return inference_service_pb2.Frame(stream_id=stream_id, refused=refused_to_proto(event))
        case Finished():
            return inference_service_pb2.Frame(stream_id=stream_id, finished=finished_to_proto(event))


def response_to_proto(event: Event) -> inference_service_pb2.GenerateResponse:
    """What happened to the request of a Generate call."""
    match event:
        case ChoiceOutput():
            return inference_service_pb2.GenerateResponse(delta=delta_to_proto(event))
        case Accepted():
            return inference_service_pb2.GenerateResponse(accepted=accepted_to_proto(event))
        case Refused():
            return inference_service_pb2.GenerateResponse(refused=refused_to_proto(event))
        case Finished():
            return inference_service_pb2.GenerateResponse(finished=finished_to_proto(event))


def delta_to_proto(output: ChoiceOutput) -> generation_pb2.Delta:
    """What one choice gained."""
    delta = generation_pb2.Delta(
        choice_index=output.choice_index, text=output.text, completion_tokens=output.completion_tokens
    )
    # Runs for every token: most have none of these, and naming them above would take twice the time.
    if output.finish_reason:
        delta.detailed = True
        delta.finish_reason = output.finish_reason
        delta.stop_text = output.stop_text
        if output.stop_token_id is not None:
            delta.stop_token_id = output.stop_token_id
    if output.logprobs:
        delta.detailed = True
        delta.logprobs.extend(map(_logprob_to_proto, output.logprobs))
    if output.token_ids:
        delta.detailed = True
        delta.token_ids.extend(output.token_ids)
    if output.reasoning or output.tool_calls or output.prompt is not None:
        _add_parsed(delta, output)
    # Only ever together with an end, which has said that there are details.
    if output.embedding:
        delta.embedding = output.embedding
    elif output.score is not None:
        delta.score = output.score
    return delta


def _add_parsed(delta: generation_pb2.Delta, output: ChoiceOutput) -> None:
    delta.detailed = True
    delta.reasoning = output.reasoning
    delta.tool_calls.extend(
        generation_pb2.ToolCallDelta(index=call.index, id=call.id, name=call.name, arguments=call.arguments)
        for call in output.tool_calls
    )
    if output.prompt is not None:
        logprobs = map(_logprob_to_proto, output.prompt.logprobs)
        delta.prompt.CopyFrom(generation_pb2.PromptOutput(token_ids=output.prompt.token_ids, logprobs=logprobs))


def _logprob_to_proto(logprob: TokenLogprob) -> generation_pb2.TokenLogprob:
    return generation_pb2.TokenLogprob(
        chosen=_candidate_to_proto(logprob.chosen),
        top=[_candidate_to_proto(candidate) for candidate in logprob.top],
        unknown=logprob.unknown,
    )


def _candidate_to_proto(candidate: TokenCandidate) -> generation_pb2.TokenCandidate:
    return generation_pb2.TokenCandidate(
        token=candidate.token, logprob=candidate.logprob, token_id=candidate.token_id, rank=candidate.rank
    )


def accepted_to_proto(event: Accepted) -> generation_pb2.Accepted:
    """The engine has the request."""
    return generation_pb2.Accepted(
        event_id=event.event_id,
        request_id=event.request_id,
        model=event.model,
        prompt_tokens=event.prompt_tokens,
        choices=event.choices,
        accept_time=timestamp_to_proto(event.accept_time),
    )


def refused_to_proto(event: Refused) -> generation_pb2.Refused:
    """The request was not taken."""
    return generation_pb2.Refused(error=error_to_proto(event.error), prompt_tokens=event.prompt_tokens)


def finished_to_proto(event: Finished) -> generation_pb2.Finished:
    """The request is over."""
    return generation_pb2.Finished(
        outcome=_FINISHES[event.outcome],
        usage=usage_to_proto(event.usage),
        error=None if event.error is None else error_to_proto(event.error),
    )
