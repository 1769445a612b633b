"""Who calls this service."""

from __future__ import annotations

from naru.context import current
from naru.errors import NaruError, Reason
from naru.identity import Principal


def current_principal() -> Principal:
    """Whoever makes the call that the current task works for.

    Raises NaruError PERMISSION_DENIED for a service, which is nobody's user and manages no keys.
    """
    request = current()
    if request.caller.principal is None:
        raise NaruError(
            Reason.PERMISSION_DENIED, "You are not allowed to make this call.", metadata={"method": request.method}
        )
    return request.caller.principal
