"""What a user does first: one chat through all four services, with the real model and the unmodified OpenAI client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai
import pytest

from naru import api_key
from tests.support.otlp import Receiver
from tests.support.platform import MODEL, ROOT, Platform, until

# The first one starts the installation.
pytestmark = pytest.mark.timeout(300)

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def settled(naru: Platform, key: str, requests: int = 1) -> tuple[int, int, int]:
    """The usage of a key once that many requests are settled."""
    key_id = api_key.parse(key).key_id
    until(lambda: naru.usage(key_id)[0] >= requests, 20, f"{requests} settled requests of {key_id}")
    return naru.usage(key_id)


def test_the_openai_client_gets_an_answer(naru: Platform) -> None:
    """France's capital is Paris, also for a small model at temperature 0."""
    answer = naru.client().chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=32)
    assert "Paris" in (answer.choices[0].message.content or "")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_comes_in_pieces_and_then_its_usage(naru: Platform) -> None:
    """More than one chunk, the same text as without streaming, usage last."""
    whole = naru.client().chat.completions.create(model=MODEL, messages=QUESTION, temperature=0, max_tokens=32)
    chunks = list(
        naru.client().chat.completions.create(
            model=MODEL, messages=QUESTION, temperature=0, max_tokens=32, stream=True,
            stream_options={"include_usage": True},
        )
    )  # fmt: skip
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert len([text for text in texts if text]) > 1
    assert "".join(texts) == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage or chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_tool_is_called(naru: Platform) -> None:
    """A required call comes in pieces with its index, ends as OpenAI says, and its arguments are JSON of the schema."""
    city = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    tool = {"type": "function", "function": {"name": "get_weather", "strict": True, "parameters": city}}
    chunks = list(
        naru.client().chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is the weather in Paris?"}], temperature=0,
            max_tokens=64, stream=True, tools=[tool], tool_choice="required",
        )
    )  # fmt: skip
    pieces = [piece for chunk in chunks for piece in chunk.choices[0].delta.tool_calls or ()]
    assert {piece.index for piece in pieces} == {0}
    assert (pieces[0].type, pieces[0].function.name) == ("function", "get_weather")
    assert isinstance(json.loads("".join(piece.function.arguments for piece in pieces))["city"], str)
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_completions_answer_too(naru: Platform) -> None:
    """The legacy endpoint, with two prompts and a stop text."""
    answer = naru.client().completions.create(
        model=MODEL, prompt=["The capital of France is", "One, two,"], temperature=0, max_tokens=8, stop=["\n"]
    )
    assert len(answer.choices) == 2
    assert "Paris" in answer.choices[0].text


def test_usage_is_exactly_what_the_response_said(naru: Platform) -> None:
    """One chat, one row, the same figures; the command line shows them."""
    key = naru.new_key(description="usage test", tier="standard")
    answer = naru.client(key).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=20)
    assert answer.usage is not None
    assert settled(naru, key) == (1, answer.usage.prompt_tokens, answer.usage.completion_tokens)
    shown = subprocess.run(
        [sys.executable, "-m", "naru", "usage", "--key", api_key.parse(key).key_id],
        env={**naru.environ, "NARU_UP_STATE": str(naru.state.root), "COLUMNS": "200"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    cells = [cell.strip() for cell in next(line for line in shown.splitlines() if MODEL in line).split("│")]
    assert str(answer.usage.prompt_tokens) in cells
    assert str(answer.usage.completion_tokens) in cells


def test_hanging_up_bills_what_was_generated_and_frees_the_engine(naru: Platform) -> None:
    """After the third chunk the engine is idle at once, and usage shows exactly what it generated."""
    key = naru.new_key(description="hang up", tier="standard")
    before = naru.metric("inference", "naru_inference_completion_tokens_total")
    stream = naru.client(key).chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Tell me a very long story."}], max_tokens=1500, stream=True
    )
    for _ in range(3):
        next(stream)
    stream.close()
    idle = until(lambda: naru.metric("inference", "naru_inference_generations") == 0, 20, "an idle engine")
    print(f"the engine was idle {idle:.3f} s after the client hung up")
    requests, _, completion_tokens = settled(naru, key)
    generated = naru.metric("inference", "naru_inference_completion_tokens_total") - before
    assert requests == 1
    assert 0 < completion_tokens < 1000
    assert completion_tokens == generated


def test_a_bad_key_never_reaches_inference(naru: Platform) -> None:
    """Wrong, malformed, expired, revoked: the same 401, and inference is not called."""
    calls = naru.metric("inference", "naru_inference_refused_total") + naru.metric(
        "inference", "naru_inference_finished_total"
    )
    revoked = naru.new_key(description="to be revoked")
    naru.client(revoked).models.list()
    naru.revoke_key(api_key.parse(revoked).key_id)
    soon = naru.new_key(description="expires", expire_time={"seconds": int(time.time()) + 5})
    late = until(lambda: status_of_models(naru, revoked) == 401, 20, "a revoked key to be refused")
    print(f"the key was refused {late:.3f} s after it was revoked")
    until(lambda: status_of_models(naru, soon) == 401, 20, "an expired key to be refused")
    for key in ("sk-naru-nonsense", api_key.generate(os.urandom), naru.api_key[:-1] + "!", revoked, soon):
        with pytest.raises(openai.AuthenticationError) as raised:
            naru.client(key).chat.completions.create(model=MODEL, messages=QUESTION)
        assert raised.value.code == "invalid_api_key"
    after = naru.metric("inference", "naru_inference_refused_total") + naru.metric(
        "inference", "naru_inference_finished_total"
    )
    assert after == calls


def status_of_models(naru: Platform, key: str) -> int:
    """The HTTP status of GET /v1/models."""
    request = urllib.request.Request(f"{naru.url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_eleventh_request_in_a_minute_is_refused(naru: Platform) -> None:
    """Ten a minute on the free tier, counted down in the headers; then 429 with a time to wait."""
    key = naru.new_key(description="free", tier="free")
    client = naru.client(key)
    remaining = []
    for _ in range(10):
        raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=1)
        remaining.append(int(raw.headers["x-ratelimit-remaining-requests"]))
    assert remaining == list(range(9, -1, -1))
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=1)
    assert raised.value.code == "rate_limit_exceeded"
    headers = raised.value.response.headers
    assert 1 <= int(headers["retry-after"]) <= 61
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert settled(naru, key, 10)[0] == 10


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"temperature": 9}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"n": "two"}, "n"),
        ({"stream": "yes please"}, "stream"),
        ({"model": 7}, "model"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_bad_fields_are_named(naru: Platform, body: dict[str, object], param: str) -> None:
    """400, and `param` says which field."""
    with pytest.raises(openai.BadRequestError) as raised:
        naru.client().post("/chat/completions", body={"model": MODEL, "messages": QUESTION, **body}, cast_to=object)
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"


def test_other_refusals(naru: Platform) -> None:
    """Not JSON, an unknown model, a prompt that is too long: nothing of them is billed."""
    key = naru.new_key(description="refusals", tier="standard")
    client = naru.client(key)
    with pytest.raises(openai.NotFoundError) as not_found:
        client.chat.completions.create(model="gpt-99", messages=QUESTION)
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 5000}])
    assert too_long.value.code == "context_length_exceeded"
    request = urllib.request.Request(
        f"{naru.url}/v1/chat/completions", data=b"{not json", headers={"Authorization": f"Bearer {key}"}
    )
    with pytest.raises(urllib.error.HTTPError) as not_json:
        urllib.request.urlopen(request, timeout=5)
    assert not_json.value.code == 400
    assert json.loads(not_json.value.read())["error"]["type"] == "invalid_request_error"
    until(lambda: naru.leases() == 0, 20, "nothing to be left reserved")
    answer = client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=2)
    assert answer.usage is not None
    assert settled(naru, key) == (1, answer.usage.prompt_tokens, answer.usage.completion_tokens)


def test_one_trace_one_request_id(naru: Platform, otlp: Receiver) -> None:
    """HTTP span, authenticate, reserve and generate are one trace, with the request id of the response and the logs."""
    key = naru.new_key(description="trace", tier="standard")
    raw = naru.client(key).chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=4)
    request_id = raw.headers["x-request-id"]

    def http_spans() -> list[str]:
        return [
            span.trace_id.hex()
            for service, span in otlp.spans
            if service == "naru-edge"
            and any(a.key == "naru.request_id" and a.value.string_value == request_id for a in span.attributes)
        ]

    until(lambda: bool(http_spans()), 15, "the edge's span")
    trace_id = http_spans()[0]

    def complete() -> bool:
        names = " ".join(f"{service}:{span.name}" for service, span in otlp.of_trace(trace_id))
        return all(
            part in names for part in ("naru-authsvc", "Authenticate", "naru-accounting", "Reserve", "naru-inference")
        )

    until(complete, 15, f"one trace through all services, got {[(s, x.name) for s, x in otlp.of_trace(trace_id)]}")
    for service in ("edge", "inference"):
        lines = [
            json.loads(line)
            for line in (naru.state.logs / f"{service}.log").read_text().splitlines()
            if request_id in line
        ]
        assert any(line.get("trace_id") == trace_id for line in lines), service


def test_pages_and_probes(naru: Platform) -> None:
    """Health, documentation and the model list answer."""
    for path in ("/health", "/healthz", "/readyz", "/docs", "/openapi.json", "/metrics"):
        with urllib.request.urlopen(f"{naru.url}{path}", timeout=5) as response:
            assert response.status == 200, path
    models = naru.client().models.list().data
    assert [model.id for model in models] == [MODEL]
    assert naru.client().models.retrieve(MODEL).id == MODEL


def test_many_at_once_are_all_metered(naru: Platform) -> None:
    """Sixteen concurrent chats: the ledger has the sum of what the responses said."""
    key = naru.new_key(description="many", tier="unlimited")
    client, totals = naru.client(key), []

    def chat(number: int) -> None:
        usage = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": f"Count to {number}."}], max_tokens=5 + number
        ).usage
        assert usage is not None
        totals.append((usage.prompt_tokens, usage.completion_tokens))

    threads = [threading.Thread(target=chat, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert settled(naru, key, 16) == (16, sum(p for p, _ in totals), sum(c for _, c in totals))


def test_logs_hold_no_secrets(naru: Platform) -> None:
    """Neither keys nor prompts are in any log."""
    marker = "zanzibar-marker"
    naru.client().chat.completions.create(model=MODEL, messages=[{"role": "user", "content": marker}], max_tokens=1)
    secrets = [path.read_text().strip() for path in naru.state.secrets.glob("*") if path.name != "redis.conf"]
    for log in naru.state.logs.glob("*.log"):
        text = log.read_text()
        assert marker not in text, log
        for secret in (api_key.parse(naru.api_key).secret, *secrets):
            assert secret not in text, log


def test_secret_files_are_private(naru: Platform) -> None:
    """Only their owner can read them."""
    for path in (*naru.state.secrets.iterdir(), naru.state.dev_env):
        assert Path(path).stat().st_mode & 0o077 == 0, path
