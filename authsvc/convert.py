"""Between the messages of `naru.api.auth.v1` and authsvc's own types."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.authentication import Authentication
from authsvc.invalidations import Notice
from authsvc.management import KeyPage, KeyWish
from authsvc.records import ApiKey
from naru.api.auth.v1 import api_key_pb2, api_key_service_pb2, auth_service_pb2
from naru.api.common.v1 import principal_pb2
from naru.convert import (
    principal_to_proto,
    role_from_proto,
    role_to_proto,
    scopes_from_proto,
    scopes_to_proto,
    timestamp_from_proto,
    timestamp_to_proto,
)
from naru.errors import invalid_argument
from naru.identity import Role

_SECONDS_MAX = 253_402_300_799  # 9999-12-31T23:59:59Z, the last second of google.protobuf.Timestamp


def wish_from_proto(request: api_key_service_pb2.CreateApiKeyRequest) -> KeyWish:
    """The wish. Raises NaruError INVALID_ARGUMENT for a role or a time that does not exist."""
    return KeyWish(
        request_id=request.request_id,
        description=request.description,
        workspace_id=request.workspace_id,
        service_account=request.service_account,
        role=_role_from_proto(request.role),
        tier=request.tier,
        scopes=scopes_from_proto(request.scopes),
        expire_time=_time_from_proto("expire_time", request.expire_time) if request.HasField("expire_time") else None,
    )


def api_key_to_proto(key: ApiKey) -> api_key_pb2.ApiKey:
    """The key on the wire."""
    return api_key_pb2.ApiKey(
        key_id=key.key_id,
        description=key.description,
        workspace_id=key.workspace_id,
        user_id=key.user_id,
        service_account=key.service_account,
        role=role_to_proto(key.role),
        tier=key.tier,
        scopes=scopes_to_proto(key.scopes),
        create_time=timestamp_to_proto(key.create_time),
        expire_time=_optional_time(key.expire_time),
        revoke_time=_optional_time(key.revoke_time),
    )


def page_to_proto(page: KeyPage) -> api_key_service_pb2.ListApiKeysResponse:
    """The page on the wire."""
    return api_key_service_pb2.ListApiKeysResponse(
        api_keys=[api_key_to_proto(key) for key in page.keys], next_page_token=page.next_page_token
    )


def authentication_to_proto(authentication: Authentication) -> auth_service_pb2.AuthenticateResponse:
    """The answer on the wire."""
    return auth_service_pb2.AuthenticateResponse(
        principal=principal_to_proto(authentication.principal),
        as_of=authentication.position.sequence,
        epoch=authentication.position.epoch,
        expire_time=_optional_time(authentication.expire_time),
    )


def notice_to_proto(notice: Notice) -> auth_service_pb2.WatchInvalidationsResponse:
    """The notice on the wire."""
    return auth_service_pb2.WatchInvalidationsResponse(
        sequence=notice.position.sequence, key_ids=notice.key_ids, epoch=notice.position.epoch
    )


def _role_from_proto(value: principal_pb2.Role.ValueType) -> Role:
    if value not in principal_pb2.Role.values():
        raise invalid_argument("role", f"There is no role with the number {value}.")
    return role_from_proto(value)


def _time_from_proto(field: str, message: Timestamp) -> float:
    if not 0 <= message.seconds <= _SECONDS_MAX or not 0 <= message.nanos < 1_000_000_000:
        raise invalid_argument(field, f"{field} is not a moment between the years 1970 and 9999.")
    return timestamp_from_proto(message)


def _optional_time(seconds: float | None) -> Timestamp | None:
    return None if seconds is None else timestamp_to_proto(seconds)
