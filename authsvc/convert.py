"""Between the messages of `naru.api.auth.v1` and authsvc's own types."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from authsvc.authentication import Authentication
from authsvc.invalidations import Notice
from authsvc.key_changes import KeyUpdate
from authsvc.management import KeyPage, KeyWish
from authsvc.records import ApiKey, KeyFilters, KeyState
from naru.api.auth.v1 import api_key_pb2, api_key_service_pb2, auth_service_pb2
from naru.api.common.v1 import principal_pb2
from naru.convert import (
    duration_from_proto,
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

_STATES_TO_PROTO = {
    KeyState.ACTIVE: api_key_pb2.API_KEY_STATE_ACTIVE,
    KeyState.BLOCKED: api_key_pb2.API_KEY_STATE_BLOCKED,
    KeyState.EXPIRED: api_key_pb2.API_KEY_STATE_EXPIRED,
    KeyState.REVOKED: api_key_pb2.API_KEY_STATE_REVOKED,
}
_STATES = {number: state for state, number in _STATES_TO_PROTO.items()}
_UPDATABLE = ("description", "tier", "expire_time", "scopes", "metadata")
_SCOPES = ("models", "endpoints", "source_cidrs")
_USES_MAX = 10_000
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
        expire_time=time_from_proto("expire_time", request.expire_time) if request.HasField("expire_time") else None,
        user_id=request.user_id,
        metadata=dict(request.metadata),
    )


def filters_from_proto(request: api_key_service_pb2.ListApiKeysRequest) -> KeyFilters:
    """Which keys are asked for. Raises NaruError INVALID_ARGUMENT for a state that does not exist."""
    if request.state and request.state not in _STATES:
        raise invalid_argument("state", f"There is no state with the number {request.state}.")
    return KeyFilters(
        workspace_id=request.workspace_id,
        show_revoked=request.show_revoked,
        tier=request.tier,
        user_id=request.user_id,
        service_account=request.service_account,
        state=_STATES.get(request.state),
        description_contains=request.description_contains,
    )


def update_from_proto(request: api_key_service_pb2.UpdateApiKeyRequest) -> KeyUpdate:
    """What is to be changed. Raises NaruError INVALID_ARGUMENT for a field that there is not or that cannot be changed."""
    key, paths = request.api_key, set(request.update_mask.paths)
    if not request.HasField("update_mask"):
        paths = {name for name in _UPDATABLE if name in {field.name for field, _ in key.ListFields()}}
    elif "*" in paths:
        paths = set(_UPDATABLE)
    if "scopes" in paths:
        paths = paths - {"scopes"} | {f"scopes.{name}" for name in _SCOPES}
    unknown = sorted(paths - set(_UPDATABLE) - {f"scopes.{name}" for name in _SCOPES})
    if unknown:
        raise invalid_argument(f"api_key.{unknown[0]}", f"'{unknown[0]}' is no field of a key that can be changed.")
    scopes = scopes_from_proto(key.scopes)
    expire_time = time_from_proto("expire_time", key.expire_time) if key.HasField("expire_time") else None
    return KeyUpdate(
        description=key.description if "description" in paths else None,
        tier=key.tier if "tier" in paths else None,
        expire_time=(expire_time,) if "expire_time" in paths else None,
        models=scopes.models if "scopes.models" in paths else None,
        endpoints=scopes.endpoints if "scopes.endpoints" in paths else None,
        source_cidrs=scopes.source_cidrs if "scopes.source_cidrs" in paths else None,
        metadata=dict(key.metadata) if "metadata" in paths else None,
    )


def grace_from_proto(request: api_key_service_pb2.RotateApiKeyRequest) -> float | None:
    """Seconds of grace; None: what is usual."""
    return duration_from_proto(request.grace_period) if request.HasField("grace_period") else None


def uses_from_proto(request: auth_service_pb2.NoteKeyUsesRequest) -> dict[str, float]:
    """When which key was used. Raises NaruError INVALID_ARGUMENT for too many."""
    if len(request.uses) > _USES_MAX:
        raise invalid_argument("uses", f"uses has {len(request.uses)} entries; at most {_USES_MAX} are allowed.")
    return {use.key_id: time_from_proto("uses.time", use.time) for use in request.uses}


def api_key_to_proto(key: ApiKey, now: float) -> api_key_pb2.ApiKey:
    """The key on the wire, as it stands at `now`."""
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
        block_time=_optional_time(key.block_time),
        state=_STATES_TO_PROTO[key.state(now)],
        metadata=key.metadata,
        rotate_time=_optional_time(key.rotate_time),
        earlier_secrets_expire_time=_optional_time(key.earlier_secrets_expire_time),
        last_used_time=_optional_time(key.last_used_time),
    )


def page_to_proto(page: KeyPage, now: float) -> api_key_service_pb2.ListApiKeysResponse:
    """The page on the wire."""
    return api_key_service_pb2.ListApiKeysResponse(
        api_keys=[api_key_to_proto(key, now) for key in page.keys], next_page_token=page.next_page_token
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
        sequence=notice.position.sequence,
        key_ids=notice.key_ids,
        epoch=notice.position.epoch,
        user_ids=notice.user_ids,
    )


def _role_from_proto(value: principal_pb2.Role.ValueType) -> Role:
    if value not in principal_pb2.Role.values():
        raise invalid_argument("role", f"There is no role with the number {value}.")
    return role_from_proto(value)


def time_from_proto(field: str, message: Timestamp) -> float:
    """Seconds since the epoch. Raises NaruError INVALID_ARGUMENT naming the field."""
    if not 0 <= message.seconds <= _SECONDS_MAX or not 0 <= message.nanos < 1_000_000_000:
        raise invalid_argument(field, f"{field} is not a moment between the years 1970 and 9999.")
    return timestamp_from_proto(message)


def _optional_time(seconds: float | None) -> Timestamp | None:
    return None if seconds is None else timestamp_to_proto(seconds)
