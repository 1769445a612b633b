"""The part of the OpenAPI document that the table of /api/* and the descriptors of its messages tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from edge.routes.export import CONTENT_TYPES, ExportRow
from edge.routes.platform import WHOLE, Row
from edge.rpcs import Rpc
from edge.transcoding import DURATION, INTEGERS, TIMESTAMP, enum_names, is_map
from naru.export import ExportFormat

Schema = dict[str, Any]
_IDEMPOTENCY_KEY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A UUID of yours; the same one again changes nothing more. `request_id` in the body overrules it.",
    "schema": {"type": "string"},
}

_DAYS: Schema = {
    "name": "days",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1},
    "description": "Instead of start_time: the last so many days in UTC, with today.",
}


def platform_paths(rows: Iterable[Row]) -> dict[str, Schema]:
    """Operations by path and method, without descriptions of answers other than 200."""
    paths: dict[str, Schema] = {}
    for row in rows:
        paths.setdefault(row.path, {})[row.method.lower()] = _operation(row, Rpc(row.rpc))
    return paths


def export_paths(exports: Iterable[ExportRow]) -> dict[str, Schema]:
    """Operations of the routes that export, as `platform_paths`."""
    paths: dict[str, Schema] = {}
    for row in exports:
        fields = Rpc(row.kind.rpc).input.fields_by_name
        written = {"type": "string", "enum": list(ExportFormat), "default": ExportFormat.CSV}
        parameters = [{"name": "format", "in": "query", "schema": written}]
        parameters += [
            {"name": name, "in": "query", "schema": _of_field(fields[field])} for name, field in row.kind.query.items()
        ]
        if row.days:
            parameters.append(_DAYS)
        content = {media.partition(";")[0]: {"schema": {"type": "string"}} for media in CONTENT_TYPES.values()}
        paths[row.path] = {
            "get": {
                "summary": row.summary,
                "description": row.summary,
                "parameters": parameters,
                "responses": {"200": {"description": "OK", "content": content}},
            }
        }
    return paths


def platform_schemas(rows: Iterable[Row]) -> dict[str, Schema]:
    """The schemas that these operations name."""
    schemas: dict[str, Schema] = {}
    for row in rows:
        rpc = Rpc(row.rpc)
        _add(schemas, _member(rpc.output, row.answer))
        if row.body:
            _add(schemas, _member(rpc.input, row.body))
    return schemas


def _operation(row: Row, rpc: Rpc) -> Schema:
    operation: Schema = {"summary": row.summary, "description": row.summary}
    if row.open:
        operation["security"] = []
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in row.path_names
    ]
    parameters += [
        {"name": name, "in": "query", "schema": _of_field(rpc.input.fields_by_name[field])}
        for name, field in row.query.items()
    ]
    if row.days:
        parameters.append(_DAYS)
    if "request_id" in rpc.input.fields_by_name and row.method != "GET":
        parameters.append(_IDEMPOTENCY_KEY)
    if parameters:
        operation["parameters"] = parameters
    if row.body:
        content = {"application/json": {"schema": _reference(_member(rpc.input, row.body))}}
        operation["requestBody"] = {"required": row.body != WHOLE, "content": content}
    schema = _reference(_member(rpc.output, row.answer))
    if row.every_replica:
        schema = {"type": "object", "properties": {f"{row.answer}s": {"type": "array", "items": schema}}}
    answer = {"application/json": {"schema": schema}}
    operation["responses"] = {"200": {"description": "OK", "content": answer}}
    return operation


def _member(message: Descriptor, field: str) -> Descriptor:
    """The message that is a field, or the message itself."""
    if field in ("", WHOLE):
        return message
    member = message.fields_by_name[field].message_type
    assert member is not None  # noqa: S101 -- bodies and answers are messages
    return member


def _name(message: Descriptor) -> str:
    return message.full_name.removeprefix("naru.api.")


def _reference(message: Descriptor) -> Schema:
    return {"$ref": f"#/components/schemas/{_name(message)}"}


def _add(schemas: dict[str, Schema], message: Descriptor) -> None:
    """Adds the schema of a message, and of all messages in it."""
    if _name(message) in schemas or message.full_name in (TIMESTAMP, DURATION):
        return
    properties = {field.name: _of_field(field) for field in message.fields}
    schemas[_name(message)] = {"type": "object", "properties": properties, "additionalProperties": False}
    for field in message.fields:
        if field.message_type is not None and not is_map(field):
            _add(schemas, field.message_type)


def _of_field(field: FieldDescriptor) -> Schema:
    if is_map(field):
        assert field.message_type is not None  # noqa: S101 -- every map's is
        return {"type": "object", "additionalProperties": _of_value(field.message_type.fields_by_name["value"])}
    schema = _of_value(field)
    return {"type": "array", "items": schema} if field.is_repeated else schema


def _of_value(field: FieldDescriptor) -> Schema:
    if field.message_type is not None:
        if field.message_type.full_name == TIMESTAMP:
            return {"type": "string", "format": "date-time"}
        if field.message_type.full_name == DURATION:
            return {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$"}
        return _reference(field.message_type)
    if field.enum_type is not None:
        return {"type": "string", "enum": list(enum_names(field.enum_type).values())}
    if field.cpp_type in INTEGERS:
        wide = field.cpp_type in (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
        return {"type": "integer", "format": "int64" if wide else "int32"}
    kinds = {FieldDescriptor.CPPTYPE_BOOL: "boolean", FieldDescriptor.CPPTYPE_STRING: "string"}
    return {"type": kinds.get(field.cpp_type, "number")}
