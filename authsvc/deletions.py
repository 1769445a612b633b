"""Deleting users and workspaces: who may, and when not."""

from __future__ import annotations

from authsvc.checks import check_id, check_request_id
from authsvc.deletions_store import DeletionStore
from authsvc.invalidations import InvalidationFeed
from naru.clock import Clock
from naru.errors import NaruError, Reason
from naru.identity import Principal


class Deletions:
    """Deletes for good. Only administrators get here.

    Args:
        feed: Told of each deletion, so that keys and sessions end at once.
    """

    def __init__(self, *, store: DeletionStore, feed: InvalidationFeed, clock: Clock) -> None:
        self._store = store
        self._feed = feed
        self._clock = clock

    async def delete_user(self, caller: Principal, user_id: str, request_id: str) -> None:
        """Deletes a user, with their sessions, memberships and keys.

        Raises:
            NaruError: INVALID_ARGUMENT; NOT_FOUND; FAILED_PRECONDITION for the caller themselves and for the last
                administrator who is not blocked.
        """
        check_request_id(request_id)
        check_id("user_id", user_id)
        if user_id == caller.user_id:
            raise NaruError(Reason.FAILED_PRECONDITION, "You cannot delete yourself; another administrator can.")
        self._feed.announce(await self._store.delete_user(user_id, self._clock.time()))

    async def delete_workspace(self, workspace_id: str, request_id: str) -> None:
        """Deletes a workspace, with its keys and invites.

        Raises:
            NaruError: INVALID_ARGUMENT; NOT_FOUND; FAILED_PRECONDITION while it has members, and for the installation's first
                one.
        """
        check_request_id(request_id)
        check_id("workspace_id", workspace_id)
        sequence = await self._store.delete_workspace(workspace_id, self._clock.time())
        if sequence is not None:
            self._feed.announce(sequence)
