"""Who may do what with keys, and by which request: shared by those who make them and those who change them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from authsvc.checks import check_request_id, within_scopes
from authsvc.records import ApiKey, RequestMark, Workspace
from naru.errors import NaruError, Reason, not_found
from naru.identity import Principal, Role


def check_may_manage(caller: Principal, workspace_id: str, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED unless the caller manages keys of the workspace: all, or users their own."""
    if caller.role is Role.ADMIN:
        return
    # A key of a user's must not make itself successors, which would live on when it is revoked: users have to be logged in.
    may = caller.role is Role.WORKSPACE_ADMIN or is_logged_in(caller)
    if not may or workspace_id != caller.workspace_id:
        raise denied(rpc, "You may not manage the keys of this workspace.")


def check_may_manage_all(caller: Principal, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED unless the caller manages also keys that are not theirs."""
    if caller.role.rank < Role.WORKSPACE_ADMIN.rank:
        raise denied(rpc, "You may not do this to a key; revoke it instead, or ask an administrator.")


def is_logged_in(caller: Principal) -> bool:
    """Whether it is a user in person, with a token of a session, and no key."""
    return bool(caller.user_id) and not caller.key_id


def check_whole(caller: Principal, method: str) -> None:
    """Raises NaruError PERMISSION_DENIED for a narrowed key: whom it lets in or promotes would not be narrowed as it is."""
    if caller.scopes.models or caller.scopes.source_cidrs:
        raise NaruError(
            Reason.PERMISSION_DENIED,
            "A key that is narrowed to models or networks cannot let anybody in, or change what they are.",
            metadata={"method": method},
        )


def check_sees(caller: Principal, key: ApiKey) -> None:
    """Raises NaruError NOT_FOUND for a key that the caller does not manage: nobody learns of it."""
    if caller.role is Role.ADMIN:
        return
    if key.workspace_id != caller.workspace_id or (caller.role is Role.USER and not _owns(caller, key)):
        raise not_found("api_key", key.key_id)


def check_may_stop(caller: Principal, key: ApiKey, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED for a key whose role is above the caller's, but for their own."""
    # What stands in a user's key helps it no further than the user.
    if key.role.rank > caller.role.rank and not _owns(caller, key):
        raise denied(rpc, "You may not do this to a key that may do more than you.")


def check_may_change(caller: Principal, key: ApiKey, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED for a key that may do anything that the caller may not."""
    check_may_stop(caller, key, rpc)
    if not within_scopes(key.scopes, caller.scopes):
        raise denied(rpc, "You may not do this to a key that may do more than you.")


def check_may_give_tier(caller: Principal, tier: str, workspace: Workspace | None, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED for a tier that the caller must not give: administrators may give any.

    A workspace's admin may give the workspace's, a user none: their keys have theirs, also when that changes.
    """
    if caller.role is Role.ADMIN or not tier:
        return
    if caller.role is Role.USER or workspace is None or tier != workspace.tier:
        raise denied(rpc, "Only an administrator may give a key a tier other than its workspace's.")


def check_may_give_end(maker: ApiKey | None, expire_time: float | None, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED for an end after that of the key by which it is given; None: by no key that ends."""
    if maker is None or maker.expire_time is None:
        return
    if expire_time is None or expire_time > maker.expire_time:
        raise denied(rpc, "A key cannot be given a later end than that of the key that gives it.")


def check_may_rotate(
    caller: Principal, key: ApiKey, workspace: Workspace | None, maker: ApiKey | None, rpc: str
) -> None:
    """Raises NaruError PERMISSION_DENIED for a key of others that the caller could not make: they are shown its secret.

    Args:
        caller: Whoever asks.
        key: Theirs, or one that they may change.
        workspace: The caller's.
        maker: The key that they ask by, as `maker_of` has it.
        rpc: What they ask for.
    """
    if caller.role is Role.ADMIN or key.key_id == caller.key_id or _owns(caller, key):
        return
    if key.user_id not in ("", caller.user_id):
        raise denied(rpc, "Only its user or an administrator may rotate the key of a user.")
    check_may_give_tier(caller, key.tier, workspace, rpc)
    check_may_give_end(maker, key.expire_time, rpc)


async def maker_of(caller: Principal, get_key: Callable[[str], Awaitable[ApiKey | None]]) -> ApiKey | None:
    """The key by which the caller gives rights that end with it; None for people and for administrators."""
    return None if caller.role is Role.ADMIN or not caller.key_id else await get_key(caller.key_id)


def check_own_update(caller: Principal, before: ApiKey, after: ApiKey, rpc: str) -> None:
    """Raises NaruError PERMISSION_DENIED for a user who changes more than description and metadata."""
    if caller.role is not Role.USER:
        return
    if after != replace(before, description=after.description, metadata=after.metadata):
        raise denied(rpc, "Of your keys you may change the description and the metadata.")


def _owns(caller: Principal, key: ApiKey) -> bool:
    return is_logged_in(caller) and key.user_id == caller.user_id


def denied(rpc: str, message: str) -> NaruError:
    """A call of ApiKeyService that this caller may not make."""
    return NaruError(Reason.PERMISSION_DENIED, message, metadata={"method": f"/naru.api.auth.v1.ApiKeyService/{rpc}"})


def request_mark(caller: Principal, request_id: str, body: Mapping[str, Any]) -> RequestMark | None:
    """What a request is recognised by when it comes again; None for one without an id. Raises NaruError INVALID_ARGUMENT."""
    check_request_id(request_id)
    if not request_id:
        return None
    who = f"key:{caller.key_id}" if caller.key_id else f"user:{caller.user_id}"
    return RequestMark(who, request_id, hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest())
