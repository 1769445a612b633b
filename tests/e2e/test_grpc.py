"""People and programs that call the gRPC services themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from naru import api_key
from naru.api.common.v1 import error_reason_pb2, principal_pb2
from naru.api.inference.v1 import generation_pb2, inference_service_pb2, inference_service_pb2_grpc
from naru.permissions import GRANTS
from tests.support.platform import MODEL, Platform, until

# The first one starts the installation.
pytestmark = pytest.mark.timeout(300)

CHAT = generation_pb2.ChatInput(
    messages=[generation_pb2.ChatMessage(role="user", content="What is the capital of France?")],
    sampling=generation_pb2.SamplingParameters(temperature=0, max_tokens=16),
)


def generate(
    naru: Platform, key: str, generation: generation_pb2.Generation
) -> list[inference_service_pb2.GenerateResponse]:
    """Runs one direct Generate."""
    with naru.channel("INFERENCE") as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        request = inference_service_pb2.GenerateRequest(generation=generation)
        return list(stub.Generate(request, metadata=naru.bearer(key), timeout=60))


def test_a_direct_call_is_metered_to_its_own_key(naru: Platform) -> None:
    """Whatever principal the request names, the credential pays."""
    victim = api_key.parse(naru.new_key(description="victim")).key_id
    key = naru.new_key(description="direct", tier="standard")
    responses = generate(
        naru,
        key,
        generation_pb2.Generation(
            event_id=str(uuid.uuid4()),
            principal=principal_pb2.Principal(key_id=victim, workspace_id="other", tier="unlimited"),
            stream=True,
            chat=CHAT,
        ),
    )
    assert responses[0].HasField("accepted")
    assert "Paris" in "".join(response.delta.text for response in responses)
    usage = responses[-1].finished.usage
    key_id = api_key.parse(key).key_id
    until(lambda: naru.usage(key_id)[0] == 1, 20, "the direct call to be settled")
    assert naru.usage(key_id) == (1, usage.prompt_tokens, usage.completion_tokens)
    assert naru.usage(victim) == (0, 0, 0)


def test_a_direct_call_is_limited_like_any_other(naru: Platform) -> None:
    """The eleventh in a minute on a free key is RESOURCE_EXHAUSTED or refused as such."""
    key = naru.new_key(description="direct free", tier="free")
    one = generation_pb2.Generation(
        text=generation_pb2.TextInput(text="Hello", sampling=generation_pb2.SamplingParameters(max_tokens=1))
    )
    for _ in range(10):
        assert generate(naru, key, one)[-1].HasField("finished")
        # Its place in flight is free a moment after it has ended: this is about requests in a minute.
        until(lambda: naru.leases() == 0, 10, "the request to be settled")
    (refusal,) = generate(naru, key, one)
    assert refusal.refused.error.reason == error_reason_pb2.ERROR_REASON_RATE_LIMIT_EXCEEDED
    assert refusal.refused.error.HasField("retry_delay")


def test_a_direct_call_without_a_credential_is_refused(naru: Platform) -> None:
    """UNAUTHENTICATED, before anything else."""
    with naru.channel("INFERENCE") as channel:
        stub = inference_service_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as raised:
            list(stub.Generate(inference_service_pb2.GenerateRequest(), timeout=10))
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_no_rpc_of_any_service_answers_a_stranger(naru: Platform) -> None:
    """Neither token nor key: UNAUTHENTICATED from every RPC, reflection included; health alone answers."""
    ports = {"auth": "AUTHSVC", "accounting": "ACCOUNTING", "inference": "INFERENCE"}
    for method in GRANTS:
        domains = [method.split(".")[2]] if method.startswith("/naru.api.") else ["auth", "accounting", "inference"]
        for domain in domains:
            with naru.channel(ports[domain]) as channel, pytest.raises(grpc.RpcError) as raised:
                # As a stream in both directions every kind of RPC can be called.
                list(channel.stream_stream(method)(iter([b""]), timeout=10))
            expected = grpc.StatusCode.UNAUTHENTICATED
            if method.startswith("/grpc.reflection.v1.") and raised.value.code() is grpc.StatusCode.UNIMPLEMENTED:
                continue  # the library offers v1alpha only
            assert raised.value.code() is expected, (method, domain)
    for port in ports.values():
        with naru.channel(port) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        assert check.status == health_pb2.HealthCheckResponse.SERVING


def test_buf_curl_with_reflection(naru: Platform) -> None:
    """A person with buf curl lists the services and runs a hand-written ChatInput, with nothing but a key."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    assert buf is not None
    url = f"http://127.0.0.1:{naru.ports['NARU_INFERENCE_PORT']}"
    authorization = f"authorization: Bearer {naru.api_key}"
    common = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--reflect-header", authorization]
    listed = subprocess.run([*common, "--list-services", url], capture_output=True, text=True, timeout=30, check=False)
    assert "naru.api.inference.v1.InferenceService" in listed.stdout, listed.stderr
    body = {
        "generation": {
            "model": MODEL,
            "chat": {
                "messages": [{"role": "user", "content": "What is the capital of France?"}],
                "sampling": {"temperature": 0, "maxTokens": 16},
            },
        }
    }
    method = f"{url}/naru.api.inference.v1.InferenceService/Generate"
    command = [*common, "--header", authorization, "--data", json.dumps(body), method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert '"accepted"' in done.stdout, done.stderr
    assert "Paris" in done.stdout
    assert '"finished"' in done.stdout
