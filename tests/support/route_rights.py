"""What each kind of caller gets of each route of the edge, about things of one workspace, `home`."""

from __future__ import annotations

from enum import StrEnum


class Who(StrEnum):
    """Kinds of callers. Those without "foreign" belong to `home`, the others to another workspace."""

    NOBODY = "nobody"
    BAD_KEY = "bad key"
    WRONG_KEY = "wrong key"
    BLOCKED_KEY = "blocked key"
    USER_KEY = "user key"
    USER = "user"
    MANAGER = "workspace admin"
    FOREIGN_KEY = "foreign user key"
    FOREIGNER = "foreign user"
    FOREIGN_MANAGER = "foreign workspace admin"
    ADMIN = "admin key"
    FOREIGN_ADMIN = "foreign admin"


Rights = tuple[int, ...]
"""The status for each of `KNOWN`, in their order; 200 stands for 2xx, and for 400 where the request says too little."""
UNKNOWN = (Who.NOBODY, Who.BAD_KEY, Who.WRONG_KEY, Who.BLOCKED_KEY)
"""Those who get 401 wherever a credential is needed."""
KNOWN = tuple(who for who in Who if who not in UNKNOWN)

# In each: user key, user, workspace admin; the same three of another workspace; two administrators.
OPEN: Rights = ()
"""Needs no credential."""
_ALL: Rights = (200, 200, 200, 200, 200, 200, 200, 200)
_PEOPLE: Rights = (403, 200, 200, 403, 200, 200, 403, 200)
_MANAGERS: Rights = (403, 403, 200, 403, 403, 200, 200, 200)
_MANAGERS_HERE: Rights = (403, 403, 200, 403, 403, 403, 200, 200)
_MANAGERS_HERE_HIDDEN: Rights = (403, 403, 200, 403, 403, 404, 200, 200)
_MEMBERS_HERE: Rights = (200, 200, 200, 403, 403, 403, 200, 200)
_MEMBERS_HERE_HIDDEN: Rights = (200, 200, 200, 404, 404, 404, 200, 200)
_KEYS: Rights = (403, 200, 200, 403, 200, 200, 200, 200)
_KEY_OF_THE_USER: Rights = (403, 200, 200, 403, 404, 404, 200, 200)
_SECRET_OF_THE_USER: Rights = (403, 200, 403, 403, 404, 404, 200, 200)
_ADMINS: Rights = (403, 403, 403, 403, 403, 403, 200, 200)
_ADMINS_OF_NOTHING: Rights = (403, 403, 403, 403, 403, 403, 404, 404)

_GENERATING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/rerank",
    "/v1/score",
    "/tokenize",
    "/detokenize",
    "/v1/messages/count_tokens",
)
_REPLICA = "/api/replicas/{replica}"
_KEY, _USER, _WORKSPACE = "/api/keys/{key_id}", "/api/users/{user_id}", "/api/workspaces/{workspace_id}"
_LEDGER, _MEMBER = "/api/ledger/{workspace_id}", "/api/workspaces/{workspace_id}/members/{user_id}"

RIGHTS: dict[tuple[str, str], Rights] = {
    **{("POST", path): _ALL for path in _GENERATING},
    ("GET", "/v1/models"): _ALL,
    ("GET", "/v1/models/{model}"): _ALL,
    **{
        ("GET", path): OPEN
        for path in ("/health", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/.well-known/jwks.json")
    },
    **{("POST", f"/api/auth/{verb}"): OPEN for verb in ("register", "login", "refresh", "logout")},
    ("GET", "/api/auth/me"): _ALL,
    ("POST", "/api/auth/password"): _PEOPLE,
    ("GET", "/api/tiers"): _ALL,
    ("POST", "/api/tiers"): _ADMINS,
    ("GET", "/api/tiers/{name}"): _ALL,
    ("PUT", "/api/tiers/{name}"): _ADMINS,
    ("DELETE", "/api/tiers/{name}"): _ADMINS,
    ("GET", "/api/budgets"): _ADMINS,
    ("POST", "/api/budgets"): _ADMINS,
    ("GET", "/api/budgets/{budget_id}"): _ADMINS,
    ("PUT", "/api/budgets/{budget_id}"): _ADMINS,
    ("DELETE", "/api/budgets/{budget_id}"): _ADMINS,
    ("GET", "/api/prices"): _ALL,
    ("POST", "/api/prices"): _ADMINS,
    ("DELETE", "/api/prices/{price_id}"): _ADMINS,
    ("GET", _LEDGER): _MEMBERS_HERE,
    ("GET", f"{_LEDGER}/entries"): _MANAGERS_HERE,
    ("POST", f"{_LEDGER}/credits"): _ADMINS,
    ("PUT", f"{_LEDGER}/overdraft"): _ADMINS,
    ("GET", "/api/ledger:verify"): _ADMINS,
    ("GET", "/api/limits"): _ALL,
    **{("GET", f"/api/{what}"): _ALL for what in ("usage", "usage/export", "requests")},
    **{("GET", f"/api/admin/{what}"): _MANAGERS for what in ("usage", "usage/export", "requests")},
    ("GET", "/api/keys"): _KEYS,
    ("POST", "/api/keys"): _KEYS,
    ("GET", _KEY): _KEY_OF_THE_USER,
    ("PATCH", _KEY): _KEY_OF_THE_USER,
    ("POST", f"{_KEY}/rotate"): _SECRET_OF_THE_USER,
    ("POST", f"{_KEY}/block"): _MANAGERS_HERE_HIDDEN,
    ("POST", f"{_KEY}/unblock"): _MANAGERS_HERE_HIDDEN,
    ("DELETE", _KEY): _KEY_OF_THE_USER,
    ("GET", "/api/audit"): _MANAGERS,
    ("GET", "/api/audit/export"): _MANAGERS,
    ("GET", "/api/users"): _MANAGERS,
    ("POST", "/api/users"): _ADMINS,
    ("GET", _USER): _MANAGERS_HERE_HIDDEN,
    ("PUT", _USER): _ADMINS,
    ("DELETE", _USER): _ADMINS,
    ("POST", f"{_USER}/password"): _ADMINS,
    ("DELETE", f"{_USER}/sessions"): _ADMINS,
    ("GET", "/api/invites"): _MANAGERS,
    ("POST", "/api/invites"): _MANAGERS,
    ("DELETE", "/api/invites/{invite_id}"): _MANAGERS_HERE_HIDDEN,
    ("GET", "/api/workspaces"): _ALL,
    ("POST", "/api/workspaces"): _ADMINS,
    ("GET", _WORKSPACE): _MEMBERS_HERE_HIDDEN,
    ("PUT", _WORKSPACE): _ADMINS,
    ("DELETE", _WORKSPACE): _ADMINS,
    ("GET", f"{_WORKSPACE}/members"): _MANAGERS_HERE,
    ("PUT", _MEMBER): _MANAGERS_HERE,
    ("DELETE", _MEMBER): _MANAGERS_HERE,
    ("GET", "/api/replicas"): _ADMINS,
    ("GET", _REPLICA): _ADMINS,
    **{
        ("POST", f"{_REPLICA}/{verb}"): _ADMINS
        for verb in ("pause", "drain", "reset-prefix-cache", "sleep", "wake", "resume")
    },
    ("GET", f"{_REPLICA}/adapters"): _ADMINS,
    ("POST", f"{_REPLICA}/adapters"): _ADMINS,
    ("DELETE", f"{_REPLICA}/adapters/{{name}}"): _ADMINS_OF_NOTHING,
}
"""By method and path, of every route that is no other name of one."""


def expected(rights: Rights, who: Who) -> int:
    """The status that somebody gets."""
    if rights == OPEN:
        return 200
    return 401 if who in UNKNOWN else rights[KNOWN.index(who)]
