"""Many keys at once before a servicer of tests that tells of one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from naru.api.auth.v1 import auth_service_pb2
from naru.convert import error_to_proto
from naru.errors import NaruError


async def answered(
    authenticate: Callable[[Any, Any], Awaitable[auth_service_pb2.AuthenticateResponse]],
    request: auth_service_pb2.BatchAuthenticateRequest,
    call: Any,
) -> auth_service_pb2.BatchAuthenticateResponse:
    """What `authenticate` says of each of them."""

    async def result(one: auth_service_pb2.AuthenticateRequest) -> auth_service_pb2.AuthenticateResult:
        try:
            return auth_service_pb2.AuthenticateResult(response=await authenticate(one, call))
        except NaruError as error:
            return auth_service_pb2.AuthenticateResult(error=error_to_proto(error))

    return auth_service_pb2.BatchAuthenticateResponse(results=await asyncio.gather(*map(result, request.requests)))
