"""Who may see which usage, and where pages begin."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accounting.usage.reporting import Dimension, UsageQuery, page_position, visible
from naru.errors import NaruError, Reason
from naru.identity import Caller, Principal, Role, ServiceName
from naru.paging import page_size, write_token

USER = Principal("ws-1", Role.USER, key_id="key-1", user_id="user-1")
METHOD = "/naru.api.accounting.v1.UsageService/QueryUsage"


def seen(asked: UsageQuery, principal: Principal) -> UsageQuery | Reason:
    """What becomes of a question."""
    try:
        return visible(asked, Caller(principal=principal), METHOD)
    except NaruError as error:
        return error.reason


@pytest.mark.parametrize("caller", [Caller(service=ServiceName.OPERATOR), Caller(principal=Principal("w", Role.ADMIN))])
def test_operators_and_admins_see_everything(caller: Caller) -> None:
    """Their questions stay as they are."""
    assert visible(UsageQuery(workspace_id="other"), caller, METHOD) == UsageQuery(workspace_id="other")


def test_a_workspace_admin_sees_its_workspace() -> None:
    """And any key in it."""
    manager = replace(USER, role=Role.WORKSPACE_ADMIN)
    assert seen(UsageQuery(), manager) == UsageQuery(workspace_id="ws-1")
    assert seen(UsageQuery(key_id="key-2"), manager) == UsageQuery(key_id="key-2", workspace_id="ws-1")
    assert seen(UsageQuery(workspace_id="ws-2"), manager) is Reason.PERMISSION_DENIED


def test_a_user_sees_its_own_key() -> None:
    """With a key, that key's; with a token, the user's; with neither, nothing."""
    assert seen(UsageQuery(), USER) == UsageQuery(key_id="key-1", workspace_id="ws-1")
    assert seen(UsageQuery(key_id="key-2"), USER) is Reason.PERMISSION_DENIED
    assert seen(UsageQuery(workspace_id="ws-2"), USER) is Reason.PERMISSION_DENIED
    assert seen(UsageQuery(user_id="user-2"), USER) is Reason.PERMISSION_DENIED
    assert seen(UsageQuery(user_id="user-1"), USER) == UsageQuery(key_id="key-1", user_id="user-1", workspace_id="ws-1")
    by_token = replace(USER, key_id="")
    assert seen(UsageQuery(), by_token) == UsageQuery(user_id="user-1", workspace_id="ws-1")
    assert seen(UsageQuery(key_id="key-1"), by_token) is Reason.PERMISSION_DENIED
    assert seen(UsageQuery(), replace(by_token, user_id="")) is Reason.PERMISSION_DENIED


def test_page_sizes() -> None:
    """100 by default, at most 1,000, never negative."""
    assert [page_size(asked) for asked in (0, 5, 1_000, 5_000)] == [100, 5, 1_000, 1_000]
    with pytest.raises(NaruError):
        page_size(-1)


def test_a_token_is_of_its_question() -> None:
    """With a value of the right kind for each dimension."""
    query = UsageQuery((Dimension.KEY, Dimension.DAY))
    token = write_token((query,), ("key-1", 20_000))
    assert page_position(query, token) == ("key-1", 20_000)
    assert page_position(query, "") is None
    for other in (replace(query, model="m"), UsageQuery((Dimension.DAY, Dimension.KEY))):
        with pytest.raises(NaruError, match="page_token"):
            page_position(other, token)
    for wrong in (("key-1",), ("key-1", "1"), (1, 1)):
        with pytest.raises(NaruError, match="page_token"):
            page_position(query, write_token((query,), wrong))
