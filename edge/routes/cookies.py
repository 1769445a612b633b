"""Open WebUI's `token` cookie as a credential, for pages of origins that an operator names."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

from naru import access_token
from naru.errors import NaruError, Reason

_NAME = "token"


def read_cookie(request: web.Request, origins: Collection[str]) -> str:
    """The token in the cookie; empty when there is none, or when no origin is allowed, which switches cookies off.

    Browsers send a cookie whatever page made the request, and say which page in `Origin`: so a request with it that does not
    come from an allowed page is refused, also one that only reads.

    Raises:
        NaruError: PERMISSION_DENIED for another origin, or none.
    """
    token = request.cookies.get(_NAME, "") if origins else ""
    if not access_token.looks_like(token):
        return ""
    said = request.headers.getall("Origin", [])
    if len(said) != 1 or said[0] not in origins:
        raise NaruError(
            Reason.PERMISSION_DENIED,
            "A request with a cookie must come from an allowed page, which its Origin header names. Send the token in an"
            " Authorization header instead.",
            metadata={"method": request.path},
        )
    return token
