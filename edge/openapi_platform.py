"""The part of the OpenAPI document that the table of /api/* and the descriptors of its messages tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from edge.routes.export import CONTENT_TYPES, ExportRow
from edge.routes.export import QUERY as EXPORT_QUERY
from edge.routes.export import RPC as EXPORT_RPC
from edge.routes.platform import Row
from edge.rpcs import Rpc
from edge.transcoding import DURATION, INTEGERS, TIMESTAMP, enum_names
from naru.usage_export import ExportFormat

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
    fields = Rpc(EXPORT_RPC).input.fields_by_name
    paths: dict[str, Schema] = {}
    for row in exports:
        written = {"type": "string", "enum": list(ExportFormat), "default": ExportFormat.CSV}
        parameters = [{"name": "format", "in": "query", "schema": written}]
        parameters += [
            {"name": name, "in": "query", "schema": _of_field(fields[field])} for name, field in EXPORT_QUERY.items()
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
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in row.path_fields
    ]
    parameters += [
        {"name": name, "in": "query", "schema": _of_field(rpc.input.fields_by_name[field])}
        for name, field in row.query.items()
    ]
    if row.days:
        parameters.append(_DAYS)
    if row.method != "GET":
        parameters.append(_IDEMPOTENCY_KEY)
    if parameters:
        operation["parameters"] = parameters
    if row.body:
        content = {"application/json": {"schema": _reference(_member(rpc.input, row.body))}}
        operation["requestBody"] = {"required": True, "content": content}
    answer = {"application/json": {"schema": _reference(_member(rpc.output, row.answer))}}
    operation["responses"] = {"200": {"description": "OK", "content": answer}}
    return operation


def _member(message: Descriptor, field: str) -> Descriptor:
    """The message that is a field, or the message itself."""
    if not field:
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
        if field.message_type is not None:
            _add(schemas, field.message_type)


def _of_field(field: FieldDescriptor) -> Schema:
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
