"""/api/replicas: rows of the platform's table that one inference replica answers, or every one."""

from __future__ import annotations

from edge.routes.platform import PAGE, Row

REPLICA_ROWS = (
    Row(
        "GET",
        "/api/replicas",
        "ControlService/GetReplica",
        "List the replicas behind this edge, and what they do with requests.",
        answer="replica",
        every_replica=True,
    ),
    Row(
        "GET",
        "/api/replicas/{replica}",
        "ControlService/GetReplica",
        "Show a replica.",
        answer="replica",
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/pause",
        "ControlService/Pause",
        "Take no requests, and hold up those in the engine.",
        answer="replica",
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/drain",
        "ControlService/Drain",
        "Take no requests, and finish those in the engine.",
        answer="replica",
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/resume",
        "ControlService/Resume",
        "Take requests again, and go on with those that were held up.",
        answer="replica",
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/reset-prefix-cache",
        "ControlService/ResetPrefixCache",
        "Forget what the engine keeps of earlier prompts.",
        answer="replica",
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/sleep",
        "ControlService/Sleep",
        "Give the accelerator's memory back; nothing may run.",
        answer="replica",
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/wake",
        "ControlService/Wake",
        "End the sleep of a replica.",
        answer="replica",
    ),
    Row(
        "GET",
        "/api/replicas/{replica}/adapters",
        "ModelService/ListAdapters",
        "List the adapters that a replica has loaded, by name.",
        query=PAGE,
    ),
    Row(
        "POST",
        "/api/replicas/{replica}/adapters",
        "ModelService/LoadAdapter",
        "Load an adapter.",
        body="adapter",
        answer="adapter",
    ),
    Row(
        "DELETE",
        "/api/replicas/{replica}/adapters/{name}",
        "ModelService/UnloadAdapter",
        "Unload an adapter, after requests that use it.",
        query={"wait": "wait"},
    ),
)
