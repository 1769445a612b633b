"""/api/keys and /api/audit: rows of the platform's table that authsvc answers."""

from __future__ import annotations

from edge.routes.platform import PAGE, WHOLE, Row

_FILTERS = ("workspace_id", "show_revoked", "tier", "user_id", "service_account", "state", "description_contains")
_AUDIT = ("actor", "action", "object_id", "workspace_id", "start_time", "end_time")
_KEY = "/api/keys/{key_id}"

KEY_ROWS = (
    Row(
        "GET",
        "/api/keys",
        "ApiKeyService/ListApiKeys",
        "List the keys that you manage, newest first.",
        query=PAGE | {name: name for name in _FILTERS},
    ),
    Row("POST", "/api/keys", "ApiKeyService/CreateApiKey", "Make a key. It is shown once.", body=WHOLE),
    Row("GET", _KEY, "ApiKeyService/GetApiKey", "Show a key, without its secret.", answer="api_key"),
    Row(
        "PATCH",
        _KEY,
        "ApiKeyService/UpdateApiKey",
        "Change what the body names of a key; null clears it.",
        body="api_key",
        answer="api_key",
    ),
    Row("DELETE", _KEY, "ApiKeyService/RevokeApiKey", "Revoke a key, for good.", answer="api_key"),
    Row(
        "POST",
        f"{_KEY}/rotate",
        "ApiKeyService/RotateApiKey",
        "Give a key another secret, shown once; the one before works on for grace_period.",
        body=WHOLE,
    ),
    Row("POST", f"{_KEY}/block", "ApiKeyService/BlockApiKey", "Block a key.", answer="api_key"),
    Row("POST", f"{_KEY}/unblock", "ApiKeyService/UnblockApiKey", "Unblock a key.", answer="api_key"),
    Row(
        "GET",
        "/api/audit",
        "AuditService/ListAuditEntries",
        "List who changed what, newest first.",
        query=PAGE | {name: name for name in _AUDIT},
        days=True,
    ),
)
