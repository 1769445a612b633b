"""JSON becomes messages and messages JSON, strictly and with the proto's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge.openapi import document
from edge.routes.export import EXPORTS
from edge.routes.platform import WHOLE
from edge.routes.table import ALL_ROWS
from edge.rpcs import Rpc
from edge.transcoding import decode_object, enum_names, field_mask, fill, fill_text, to_json
from naru.api.accounting.v1 import (
    budget_service_pb2,
    limit_pb2,
    price_pb2,
    quota_service_pb2,
    tier_service_pb2,
    usage_service_pb2,
)
from naru.api.auth.v1 import api_key_pb2
from naru.convert import duration_to_proto
from naru.errors import NaruError, Reason
from naru.identity import Role
from naru.permissions import GRANTS

TIER: dict[str, Any] = {
    "name": "team",
    "limits": [
        {
            "scope": "workspace",
            "rule": {
                "kind": "cost",
                "window": "month",
                "limit": 9_000_000_000_000_000,
                "model": "",
                "shadow": True,
                "soft_thresholds": [80, 95],
            },
        }
    ],
    "default_output_tokens": 4096,
}


def wrong(message: Any, value: Any) -> NaruError:
    with pytest.raises(NaruError) as raised:
        fill(message, value)
    assert raised.value.reason is Reason.INVALID_ARGUMENT
    return raised.value


def test_what_is_read_is_shown() -> None:
    """A tier is read and shown with the same names, short enums and plain numbers; what is absent is left out."""
    tier = tier_service_pb2.Tier()
    fill(tier, TIER)
    limit = tier.limits[0]
    assert limit.scope == limit_pb2.LIMIT_SCOPE_WORKSPACE
    assert (limit.rule.kind, limit.rule.window) == (limit_pb2.LIMIT_KIND_COST, limit_pb2.LIMIT_WINDOW_MONTH)
    assert limit.rule.limit == 9_000_000_000_000_000
    assert list(limit.rule.soft_thresholds) == [80, 95]
    assert json.loads(msgspec.json.encode(to_json(tier))) == TIER


def test_enums_are_read_short_and_in_full() -> None:
    """The proto's own name of a value is read too; the unspecified value has a name."""
    for text in ("total_tokens", "LIMIT_KIND_TOTAL_TOKENS"):
        rule = limit_pb2.LimitRule()
        fill(rule, {"kind": text})
        assert rule.kind == limit_pb2.LIMIT_KIND_TOTAL_TOKENS
    assert to_json(limit_pb2.LimitRule(kind=limit_pb2.LIMIT_KIND_CONCURRENCY))["window"] == "unspecified"
    # Values of an enum without a common prefix would be shown whole.
    assert all(
        name.islower()
        for enum in limit_pb2.DESCRIPTOR.enum_types_by_name.values()
        for name in enum_names(enum).values()
    )


def test_an_enum_value_from_a_newer_build_is_shown_as_its_number() -> None:
    """What this build has no name for is still an answer."""
    assert to_json(limit_pb2.LimitRule.FromString(b"\x08\x63"))["kind"] == 99


def test_times_and_spans() -> None:
    """Times are RFC 3339, with any offset; spans are seconds."""
    price = price_pb2.Price()
    fill(price, {"effective_time": "2026-12-01T09:00:00+09:00", "create_time": None})
    assert to_json(price)["effective_time"] == "2026-12-01T00:00:00Z"
    assert not price.HasField("create_time")
    assert to_json(limit_pb2.LimitState(reset_delay=duration_to_proto(1.5)))["reset_delay"] == "1.500s"


def test_an_empty_object_is_there() -> None:
    """`{}` is a message without fields, not an absent one."""
    request = tier_service_pb2.CreateTierRequest()
    fill(request.tier, {})
    assert request.HasField("tier")


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ({"nmae": "x"}, "nmae"),
        ({"createTime": "2026-12-01T00:00:00Z"}, "createTime"),
        ({"name": 5}, "name"),
        ({"name": ["x"]}, "name"),
        ({"limits": {}}, "limits"),
        ({"limits": [None]}, "limits[0]"),
        ({"limits": [5]}, "limits[0]"),
        ({"limits": [{"scope": "planet"}]}, "limits[0].scope"),
        ({"limits": [{"scope": 1}]}, "limits[0].scope"),
        ({"limits": [{}, {"rule": {"limit": "60"}}]}, "limits[1].rule.limit"),
        ({"limits": [{"rule": {"limit": 60.0}}]}, "limits[0].rule.limit"),
        ({"limits": [{"rule": {"limit": True}}]}, "limits[0].rule.limit"),
        ({"limits": [{"rule": {"limit": 2**63}}]}, "limits[0].rule.limit"),
        ({"limits": [{"rule": {"soft_thresholds": [80, 2**31]}}]}, "limits[0].rule.soft_thresholds[1]"),
        ({"limits": [{"rule": {"shadow": "yes"}}]}, "limits[0].rule.shadow"),
        ({"limits": [{"rule": {"shadow": 0}}]}, "limits[0].rule.shadow"),
        ({"limits": [{"rule": []}]}, "limits[0].rule"),
        ({"limits": [{"rule": {"per": "month"}}]}, "limits[0].rule.per"),
        ({"create_time": "yesterday"}, "create_time"),
        ({"create_time": "2026-12-01T00:00:00"}, "create_time"),
        ({"create_time": "2026-13-01T00:00:00Z"}, "create_time"),
        ({"create_time": "99999-12-01T00:00:00Z"}, "create_time"),
        ({"create_time": 1_800_000_000}, "create_time"),
    ],
)
def test_what_is_wrong_is_named(value: dict[str, Any], field: str) -> None:
    """An unknown field or a value of another type is an error that names the field, and reads nothing."""
    tier = tier_service_pb2.Tier()
    error = wrong(tier, value)
    assert error.metadata == {"field": field}
    assert field in error.message
    assert not tier.ListFields()


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"null", b"{", b"\xff", b'{"a":NaN}', b"[" * 100_000])
def test_what_is_no_object(body: bytes) -> None:
    """A body that is no JSON object is refused."""
    with pytest.raises(NaruError) as raised:
        decode_object(body)
    assert raised.value.reason is Reason.INVALID_ARGUMENT


def test_texts_of_a_query() -> None:
    """Numbers, enums, times and lists are read from texts; a list may be given twice or with commas."""
    request = usage_service_pb2.QueryUsageRequest()
    fill_text(request, "group_by", ["key,model", "day"], "by")
    fill_text(request, "page_size", ["20"], "page_size")
    fill_text(request, "start_time", ["2026-11-01T00:00:00Z"], "start_time")
    assert list(request.group_by) == [
        usage_service_pb2.USAGE_DIMENSION_KEY,
        usage_service_pb2.USAGE_DIMENSION_MODEL,
        usage_service_pb2.USAGE_DIMENSION_DAY,
    ]
    assert request.page_size == 20
    assert request.start_time.seconds == 1_793_491_200
    budgets = budget_service_pb2.ListBudgetsRequest()
    fill_text(budgets, "scope", ["key"], "scope")
    assert budgets.scope == limit_pb2.LIMIT_SCOPE_KEY


@pytest.mark.parametrize(
    ("field", "texts"),
    [
        ("group_by", ["key,colour"]),
        ("page_size", ["ten"]),
        ("page_size", ["99999999999"]),
        ("page_size", ["1", "2"]),
        ("start_time", ["today"]),
    ],
)
def test_wrong_texts_of_a_query_are_named_as_the_caller_wrote_them(field: str, texts: list[str]) -> None:
    """The error names the parameter, not the field behind it."""
    with pytest.raises(NaruError) as raised:
        fill_text(usage_service_pb2.QueryUsageRequest(), field, texts, "shown")
    assert raised.value.metadata == {"field": "shown"}


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: f"{row.method} {row.path}")
def test_every_row_fits_its_rpc(row: Any) -> None:
    """What a row names is there: the RPC, the fields of path, query and body, and the answer."""
    rpc = Rpc(row.rpc)
    fields = rpc.input.fields_by_name
    assert set(row.query.values()) <= set(fields)
    inside = fields[row.body].message_type.fields_by_name if row.body not in ("", WHOLE) else {}
    for name in row.path_fields:
        assert name in fields or name in inside
    assert not row.answer or rpc.output.fields_by_name[row.answer].message_type is not None
    # What changes something can be said twice; where a GET has the field, it looks for requests of that id. Every log-in is
    # another one.
    assert row.method == "GET" or row.path.startswith("/api/auth/") or "request_id" in fields
    assert not row.days or "start_time" in fields
    assert row.as_edge == isinstance(rpc.request(), quota_service_pb2.GetLimitsRequest)


def test_the_document_tells_the_routes_and_their_schemas() -> None:
    """Every row is in the OpenAPI document, every schema that is named is there, and fields have the proto's names."""
    shown = document({}, ALL_ROWS)
    for row in ALL_ROWS:
        assert row.method.lower() in shown["paths"][row.path]
    schemas = shown["components"]["schemas"]
    named = {text.rpartition("/")[2] for text in _references(shown)}
    assert named <= set(schemas)
    rule = schemas["accounting.v1.LimitRule"]["properties"]
    assert rule["limit"] == {"type": "integer", "format": "int64"}
    assert "output_tokens" in rule["kind"]["enum"]
    assert rule["soft_thresholds"] == {"type": "array", "items": {"type": "integer", "format": "int32"}}
    assert schemas["accounting.v1.Tier"]["properties"]["create_time"] == {"type": "string", "format": "date-time"}
    by = next(p for p in shown["paths"]["/api/usage"]["get"]["parameters"] if p["name"] == "by")
    assert by["schema"]["items"]["enum"] == list(enum_names(usage_service_pb2.UsageDimension.DESCRIPTOR).values())


def test_the_page_tells_the_routes_and_who_may() -> None:
    """docs/api.md has a line for each route, with its RPC and the least role."""
    page = (Path(__file__).parents[3] / "docs/api.md").read_text()
    lines = [
        line for line in page.splitlines() if line.startswith(("| `GET", "| `POST", "| `PUT", "| `PATCH", "| `DELETE"))
    ]
    routes = [(row.method, row.path, row.rpc, None if row.open else row.role) for row in ALL_ROWS]
    routes += [("GET", row.path, row.kind.rpc, row.role) for row in EXPORTS]
    assert len(lines) == len(routes)
    for method, path, rpc, needed in routes:
        beginning = f"| `{method} {path}` | `{rpc}` | "
        (line,) = [line for line in lines if line.startswith(beginning)]
        role = GRANTS[Rpc(rpc).path].role
        if needed is None:
            assert role is None
            assert line.removeprefix(beginning).startswith("anybody")
            continue
        assert role is not None
        least = max(role, needed, key=lambda one: one.rank)
        words = {Role.USER: "user", Role.WORKSPACE_ADMIN: "a workspace's admin", Role.ADMIN: "admin"}
        assert line.removeprefix(beginning).startswith(words[least])


def test_maps_are_objects() -> None:
    """A map is a JSON object, read strictly and shown as it is, and no list of entries anywhere."""
    key = api_key_pb2.ApiKey()
    fill(key, {"metadata": {"team": "search", "cost.center": "7"}, "scopes": {"models": ["a*"]}})
    assert dict(key.metadata) == {"team": "search", "cost.center": "7"}
    assert to_json(key)["metadata"] == {"team": "search", "cost.center": "7"}
    for wrong, field in (({"metadata": []}, "metadata"), ({"metadata": {"a": 1}}, "metadata.a")):
        with pytest.raises(NaruError) as raised:
            fill(key, wrong)
        assert raised.value.metadata == {"field": field}
    schemas = document({}, ALL_ROWS)["components"]["schemas"]
    shown = schemas["auth.v1.ApiKey"]["properties"]["metadata"]
    assert shown == {"type": "object", "additionalProperties": {"type": "string"}}
    assert not [name for name in schemas if name.endswith("Entry") and "Metadata" in name]


def test_a_body_tells_what_it_changes() -> None:
    """What a body names is its field mask, also what it clears; of a message only the fields that it names."""
    body = {"tier": None, "expire_time": "2027-01-15T08:00:00Z", "metadata": {"a": "b"}, "scopes": {"models": ["m"]}}
    assert field_mask(api_key_pb2.ApiKey(), body) == ["tier", "expire_time", "metadata", "scopes.models"]
    assert field_mask(api_key_pb2.ApiKey(), {"scopes": None, "nothing": {"a": 1}}) == ["scopes", "nothing"]


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [item for key, one in value.items() for item in ([one] if key == "$ref" else _references(one))]
    return [item for one in value for item in _references(one)] if isinstance(value, list) else []
