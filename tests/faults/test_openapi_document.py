"""Everything that /openapi.json says can be asked, and much that it does not, of a whole installation; by schemathesis."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.platform import Platform, platform

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
MODEL = "small"
ENVIRON = {
    "NARU_INFERENCE_ENGINE": "simulated",
    "NARU_INFERENCE_MODEL": MODEL,
    "NARU_INFERENCE_SERVED_MODEL_NAME": "",
    "NARU_INFERENCE_SIMULATED_TOKENS_PER_SECOND": "5000",
    "NARU_INFERENCE_SIMULATED_PREFILL_SECONDS": "0",
}
EXAMPLES, EXAMPLES_OF_ALIASES = 15, 4
STOPPING = ("/drain", "/pause", "/sleep")
"""Routes after which the rest would wait: they are asked of replicas that are not there."""
SECONDS = 60.0
"""An answer that takes longer hangs, on however slow a machine."""
CHECKS: Any = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    ignored_auth,
]


@pytest.fixture(scope="module")
def naru(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One installation."""
    with platform(tmp_path_factory.mktemp("naru") / "state", ENVIRON) as running:
        yield running


def asked(naru: Platform, method: str, path: str, body: object = None) -> Any:
    """What the administrator is told."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {naru.api_key}", "Content-Type": "application/json"}
    request = urllib.request.Request(naru.url + path, data, headers, method=method)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def made(naru: Platform) -> dict[str, str]:
    """One of each thing that a path can name, none of them what the requests of this test stand on."""
    workspace = asked(naru, "POST", "/api/workspaces", {"name": "spare"})["workspace_id"]
    rule = {"kind": "requests", "window": "month", "limit": 5}
    budget = {"scope": "workspace", "scope_id": workspace, "rule": rule}
    return {
        "workspace_id": workspace,
        "user_id": asked(naru, "POST", "/api/users", {"email": "spare@example.com"})["user"]["user_id"],
        "key_id": asked(naru, "POST", "/api/keys", {"workspace_id": workspace})["api_key"]["key_id"],
        "budget_id": asked(naru, "POST", "/api/budgets", budget)["budget_id"],
        "replica": asked(naru, "GET", "/api/replicas")["replicas"][0]["name"],
        "model": MODEL,
    }


def document(naru: Platform) -> dict[str, Any]:
    """What the edge says of itself, with names of what there is in place of any text, so that not all is unknown."""
    told: dict[str, Any] = asked(naru, "GET", "/openapi.json")
    names = made(naru)
    for name, schema in told["components"]["schemas"].items():
        if name.endswith("Request") and "model" in schema["properties"]:
            schema["properties"]["model"] = {"enum": [MODEL]}
    for path, methods in told["paths"].items():
        for operation in methods.values():
            # What is said there is of the whole stream; schemathesis takes it to be of each event.
            operation["responses"]["200"]["content"].get("text/event-stream", {}).pop("schema", None)
            for parameter in operation.get("parameters", ()):
                if parameter["in"] != "path" or path.endswith(STOPPING):
                    continue
                if parameter["name"] == "name":
                    parameter["schema"] = {"enum": ["free", "unlimited", "none"]}
                elif there := names.get(parameter["name"]):
                    parameter["schema"] = {"enum": [there, str(uuid.UUID(int=0))]}
                elif parameter["name"].endswith("_id"):
                    parameter["schema"] = {"type": "string", "format": "uuid"}
    return told


def test_answers_are_as_documented(naru: Platform) -> None:
    """No 500, nothing undocumented in status, type, headers or body, nothing for who brings no key, and nothing hangs."""
    headers = {"Authorization": f"Bearer {naru.api_key}"}
    told: set[tuple[str, int]] = set()

    def check(case: Case) -> None:
        response = case.call(base_url=naru.url, headers=headers, timeout=SECONDS)
        # The others that are documented are a busy machine's.
        assert response.status_code != 500, case.as_curl_command()
        case.validate_response(response, checks=CHECKS, headers=headers)
        told.add((case.operation.label, response.status_code))

    for found in schemathesis.openapi.from_dict(document(naru)).get_all_operations():
        operation: Any = found.ok()
        raw = operation.definition.raw
        examples = EXAMPLES_OF_ALIASES if raw["description"].startswith("The same as") else EXAMPLES
        varied = bool(raw.get("parameters") or raw.get("requestBody"))
        for mode in GenerationMode if varied else (GenerationMode.POSITIVE,):
            fuzzed = given(operation.as_strategy(generation_mode=mode))(check)
            settings(
                max_examples=examples,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(fuzzed)()
    labels = {label for label, _ in told}
    assert len(labels) > 40
    # Routes that never said yes were not shown to say it as documented.
    assert len({label for label, status in told if status == 200}) > len(labels) // 2, sorted(told)
    errors = [
        line
        for log in sorted(naru.state.logs.glob("*.log"))
        for line in log.read_text().splitlines()
        if "Traceback" in line
    ]
    assert errors == []
