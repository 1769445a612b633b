"""When keys were used, as a replica hands it on to authsvc."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from naru.api.auth.v1 import auth_service_pb2
from naru.key_uses import KeyUses
from tests.support.generation_bench import eventually
from tests.support.inference_service import generation, inference_service
from tests.support.scripted_engine import ScriptedEngine


async def test_uses_that_are_being_handed_on_when_it_stops_are_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are handed on again, after the call that was under way was given up."""
    monkeypatch.setattr("naru.credentials.KeyUses", partial(KeyUses, interval=0.05))
    noted: list[list[str]] = []

    async def hold_the_first(request: auth_service_pb2.NoteKeyUsesRequest) -> None:
        noted.append([use.key_id for use in request.uses])
        if len(noted) == 1:
            await asyncio.Event().wait()

    async with inference_service(tmp_path, ScriptedEngine()) as service:
        service.keys.noting = hold_the_first
        key, owner = service.new_key()
        async with service.generate(generation(), key=key) as messages:
            await anext(messages)
        await eventually(lambda: noted)
    assert noted == [[owner.key_id]] * 2
