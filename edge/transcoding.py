"""Between JSON over HTTP and protobuf messages, for the platform's own REST.

Protobuf's own JSON mapping with the fields named as in the proto, and three differences: enums are short and lower-case
("requests" for LIMIT_KIND_REQUESTS, which is read too), 64-bit integers are numbers, and what is read is strict: a field that
does not exist, or a value of another type, is an error that names the field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from naru.errors import NaruError, Reason, invalid_argument

TIMESTAMP, DURATION = Timestamp.DESCRIPTOR.full_name, Duration.DESCRIPTOR.full_name
INTEGERS: dict[int, tuple[int, int]] = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
"""The least and the greatest value of each type of integer."""
_INTEGER = re.compile(r"-?\d{1,20}", re.ASCII)
_BOOLEANS = {"true": True, "false": False}


def decode_object(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises NaruError INVALID_ARGUMENT."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        raise NaruError(Reason.INVALID_ARGUMENT, "The body of the request is not valid JSON.") from None
    if not isinstance(value, dict):
        raise NaruError(Reason.INVALID_ARGUMENT, "The JSON body of the request must be an object.")
    return value


def fill(message: Message, value: Mapping[str, Any]) -> None:
    """Puts a JSON object into `message`. Raises NaruError INVALID_ARGUMENT naming the field."""
    # A message without any field is there all the same.
    message.SetInParent()
    json_format.ParseDict(_read_object(_descriptor(message), value, ""), message)


def fill_text(message: Message, field: str, texts: Sequence[str], shown: str) -> None:
    """Puts what a path or a query says into one field of `message`; a repeated one takes several, or one with commas.

    `shown` is what the caller knows the field by. Raises NaruError INVALID_ARGUMENT naming it.
    """
    descriptor = _descriptor(message).fields_by_name[field]
    value: Any
    if descriptor.is_repeated:
        parts = (part.strip() for text in texts for part in text.split(","))
        value = [_read(descriptor, _from_text(descriptor, part), shown) for part in parts if part]
    elif len(texts) > 1:
        raise invalid_argument(shown, f"'{shown}' may be given once only.")
    else:
        value = _read(descriptor, _from_text(descriptor, texts[0]), shown)
    json_format.ParseDict({field: value}, message)


def field_mask(message: Message, value: Mapping[str, Any]) -> list[str]:
    """The fields that a JSON object names, to `fill` in `message`; of a message in it, the fields that it names."""
    paths = []
    for name, member in value.items():
        field = _descriptor(message).fields_by_name.get(name)
        nested = field is not None and field.message_type is not None and not is_map(field)
        paths += [f"{name}.{one}" for one in member] if nested and isinstance(member, dict) else [name]
    return paths


def to_json(message: Message) -> dict[str, Any]:
    """The message as a JSON object, with all fields but absent messages."""
    value: dict[str, Any] = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _shown(_descriptor(message), value)


def enum_names(enum: EnumDescriptor) -> dict[int, str]:
    """The short name of each value, by its number."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values}


def _descriptor(message: Message) -> Descriptor:
    """The same in every implementation of protobuf, whatever its types say."""
    return cast(Descriptor, message.DESCRIPTOR)


def _read_object(descriptor: Descriptor, value: Mapping[str, Any], path: str) -> dict[str, Any]:
    read: dict[str, Any] = {}
    for name, member in value.items():
        shown = f"{path}.{name}" if path else name
        field = descriptor.fields_by_name.get(name)
        if field is None:
            raise invalid_argument(shown, f"Unknown field: '{shown}'.")
        if member is None:
            continue
        if is_map(field):
            read[name] = _read_map(field, member, shown)
        elif not field.is_repeated:
            read[name] = _read(field, member, shown)
        elif isinstance(member, list):
            read[name] = [_read(field, one, f"{shown}[{index}]") for index, one in enumerate(member)]
        else:
            raise _wrong(shown, "an array")
    return read


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map, which on the wire is a repeated message of key and value."""
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _read_map(field: FieldDescriptor, value: Any, shown: str) -> dict[str, Any]:
    assert field.message_type is not None  # noqa: S101 -- every map's is
    if not isinstance(value, dict):
        raise _wrong(shown, "an object")
    one = field.message_type.fields_by_name["value"]
    return {name: _read(one, member, f"{shown}.{name}") for name, member in value.items()}


def _read(field: FieldDescriptor, value: Any, shown: str) -> Any:
    """What json_format takes for a value of the field."""
    kind = field.cpp_type
    if field.message_type is not None:
        return _read_message(field.message_type, value, shown)
    if field.enum_type is not None:
        return _read_enum(field.enum_type, value, shown)
    if kind in INTEGERS:
        least, most = INTEGERS[kind]
        if type(value) is not int:
            raise _wrong(shown, "an integer")
        if not least <= value <= most:
            raise invalid_argument(shown, f"Invalid value for '{shown}': must be between {least} and {most}.")
    elif kind == FieldDescriptor.CPPTYPE_BOOL:
        if type(value) is not bool:
            raise _wrong(shown, "a boolean")
    elif kind == FieldDescriptor.CPPTYPE_STRING:
        if type(value) is not str:
            raise _wrong(shown, "a string")
    elif type(value) not in (int, float):
        raise _wrong(shown, "a number")
    return value


def _read_message(descriptor: Descriptor, value: Any, shown: str) -> Any:
    if descriptor.full_name == TIMESTAMP:
        return _checked(Timestamp().FromJsonString, value, shown, "a time such as 2026-12-01T00:00:00Z (RFC 3339)")
    if descriptor.full_name == DURATION:
        return _checked(Duration().FromJsonString, value, shown, 'a span in seconds such as "1.5s"')
    if not isinstance(value, dict):
        raise _wrong(shown, "an object")
    return _read_object(descriptor, value, shown)


def _checked(parse: Callable[[str], None], value: Any, shown: str, expected: str) -> str:
    if not isinstance(value, str):
        raise _wrong(shown, expected)
    try:
        parse(value)
    except (ValueError, OverflowError):
        raise invalid_argument(shown, f"Invalid value for '{shown}': expected {expected}.") from None
    return value


def _read_enum(enum: EnumDescriptor, value: Any, shown: str) -> int:
    if not isinstance(value, str):
        raise _wrong(shown, "a string")
    names = enum_names(enum)
    for number, name in names.items():
        if value in (name, enum.values_by_number[number].name):
            return number
    known = ", ".join(name for number, name in names.items() if number)
    raise invalid_argument(shown, f"Invalid value for '{shown}': must be one of {known}.")


def _from_text(field: FieldDescriptor, text: str) -> Any:
    """A text as the JSON value it stands for; as it is when it stands for none of the field's type."""
    if field.cpp_type in INTEGERS and _INTEGER.fullmatch(text):
        return int(text)
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _BOOLEANS.get(text, text)
    return text


def _shown(descriptor: Descriptor, value: dict[str, Any]) -> dict[str, Any]:
    """What json_format wrote, as we show it."""
    for field in descriptor.fields:
        if field.name in value and not is_map(field):
            member = value[field.name]
            value[field.name] = (
                [_shown_value(field, one) for one in member] if field.is_repeated else _shown_value(field, member)
            )
    return value


def _shown_value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        return _shown(field.message_type, value) if isinstance(value, dict) else value
    if field.enum_type is not None:
        # A number stands for a value that this build does not know.
        number = field.enum_type.values_by_name[value].number if isinstance(value, str) else value
        return enum_names(field.enum_type).get(number, value)
    return int(value) if field.cpp_type in INTEGERS else value


def _wrong(shown: str, expected: str) -> NaruError:
    return invalid_argument(shown, f"Invalid type for '{shown}': expected {expected}.")
